"""Linear probes of each label on the Q-Former's outputs, for clips with a single shape.

If a linear map cannot read the colour from them, a decoder hardly will: run this after stage 1, before hours
of stage 2.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from mllm.models.model import MllmForConditionalGeneration
from mllm.models.processor import MllmProcessor
from mllm.records.source import DataSource

LABELS = {
    "colour": "colours",
    "shape": "shapes",
    "motion": "motions",
}  # name here: name among a pair's labels


@torch.inference_mode()
def query_outputs(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    source: DataSource,
    clips: int,
    batch: int = 32,
) -> tuple[torch.Tensor, list[dict[str, str]]]:
    """Video query outputs of the window that shows the shape.

    Returns:
        features float32 [clips, queries × width], and the labels of each clip by name.
    """
    pixels: list[torch.Tensor] = []
    truth: list[dict[str, str]] = []
    index = 0
    while len(truth) < clips and index < len(source):
        pair = source.pair(index)
        index += 1
        labels = pair["labels"]
        if labels.get("form") not in ("both", "video") or any(
            len(labels[key]) != 1 for key in LABELS.values()
        ):
            continue
        shown = processor.media(pair["clip"], "video", want_audio=False).pixel_values
        assert shown is not None  # its form says that there is a picture
        pixels.append(shown[labels["shape_windows"][0]])
        truth.append({name: labels[key][0] for name, key in LABELS.items()})
    rows = [
        model.model.query_outputs(pixel_values=torch.stack(pixels[first : first + batch]).to(model.device))[
            "video"
        ]
        for first in range(0, len(pixels), batch)
    ]
    return torch.cat(rows).float().flatten(1).cpu(), truth


def probe(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    train: DataSource,
    val: DataSource,
    clips: int = 1000,
) -> dict[str, tuple[float, float]]:
    """Accuracy on `val` of a linear probe and of the most frequent label, for each of LABELS."""
    seen, truth = query_outputs(model, processor, train, clips)
    unseen, wanted = query_outputs(model, processor, val, max(clips // 4, 1))
    mean, spread = seen.mean(0), seen.std(0) + 1e-6
    seen, unseen = (seen.clone() - mean) / spread, (unseen.clone() - mean) / spread
    result = {}
    for name in LABELS:
        classes = sorted({labels[name] for labels in truth})
        targets = torch.tensor([classes.index(labels[name]) for labels in truth])
        wanted_targets = torch.tensor(
            [classes.index(labels[name]) if labels[name] in classes else -1 for labels in wanted]
        )
        predicted = fit(seen, targets, len(classes))(unseen).argmax(-1)
        accuracy = (predicted == wanted_targets).float().mean().item()
        majority = (wanted_targets == targets.mode().values).float().mean().item()
        result[name] = (accuracy, majority)
    return result


def fit(features: torch.Tensor, targets: torch.Tensor, classes: int) -> torch.nn.Linear:
    """Fits multinomial logistic regression with weight decay by LBFGS."""
    layer = torch.nn.Linear(features.shape[1], classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(layer(features), targets) + 1e-3 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return layer
