"""EfficientNet-Lite of PyTorch state dicts, batch norm folded into the convolutions before it.

The names of the folded weights are those of `mllm.models.towers.efficientnet`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

EPSILON = 1e-3  # of its batch norms
SIZES: dict[str, dict[str, Any]] = {  # Lite's compound scaling
    "lite0": {"width_multiplier": 1.0, "depth_multiplier": 1.0, "image_size": 224},
    "lite2": {"width_multiplier": 1.1, "depth_multiplier": 1.2, "image_size": 260},
}
BLOCK = (
    ("_expand_conv", "_bn0", "expand"),
    ("_depthwise_conv", "_bn1", "depthwise"),
    ("_project_conv", "_bn2", "project"),
)


def convert(files: Sequence[Path], folder: Path) -> None:
    """Writes a transformers folder from one `.pth`, whose name holds the size: efficientnet-lite0-….pth."""
    (file,) = files
    state = folded(torch.load(file, map_location="cpu", weights_only=True))
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    size = SIZES[file.name.split("-")[1]]
    config = {
        "model_type": "efficientnet_lite",
        **size,
        "num_labels": len(state["classes.bias"]),
        "dtype": "float32",
    }
    pixels = {
        "do_resize": True,
        "size": {"height": size["image_size"], "width": size["image_size"]},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,  # (pixel - 127) / 128
        "image_mean": [127 / 255] * 3,
        "image_std": [128 / 255] * 3,
    }
    for name, values in (("config.json", config), ("preprocessor_config.json", pixels)):
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def folded(old: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights without batch norm: float32, rounded once from float64, so the same on every machine."""
    new: dict[str, torch.Tensor] = {}

    def fold(conv: str, norm: str, to: str) -> None:
        gamma, beta, mean, variance = (
            old[f"{norm}.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gamma / (variance + EPSILON).sqrt()
        new[f"{to}.weight"] = (
            (old[f"{conv}.weight"].double() * scale[:, None, None, None]).float().contiguous()
        )
        new[f"{to}.bias"] = (beta - mean * scale).float()

    fold("_conv_stem", "_bn0", "stem")
    for n in sorted({int(match[1]) for name in old if (match := re.match(r"_blocks\.(\d+)\.", name))}):
        for conv, norm, to in BLOCK:
            if f"_blocks.{n}.{conv}.weight" in old:  # the first blocks do not expand
                fold(f"_blocks.{n}.{conv}", f"_blocks.{n}.{norm}", f"blocks.{n}.{to}")
    fold("_conv_head", "_bn1", "top")
    new["classes.weight"], new["classes.bias"] = old["_fc.weight"].contiguous(), old["_fc.bias"]
    return new
