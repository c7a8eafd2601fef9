"""A linear reading of frozen features: how much of a task the towers know before anything is trained on them.

Each recording is the mean and the standard deviation of its tower's tokens over its true length (what the
feature cache keeps; silence that fills the last chunk is left out). A logistic regression reads the task from
them. What it reads and the model does not say is lost on the way from the tower to the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from mllm.errors import MediaError
from mllm.media.recording import SAMPLE_RATE
from mllm.media.windows import load_windows

if TYPE_CHECKING:
    from mllm.models.model import MllmForConditionalGeneration
    from mllm.models.processor import MllmProcessor

STRENGTHS = (0.0003, 0.003, 0.03)  # C, as in scikit-learn: the weight of the data against that of the penalty
FOLDS = 3
BATCH = 16  # recordings


class FrozenFeatures:
    """Recordings as vectors of frozen features, each computed once."""

    def __init__(self, model: MllmForConditionalGeneration, processor: MllmProcessor):
        self.model, self.processor = model, processor
        self._known: dict[tuple[str, str], np.ndarray] = {}

    def of(self, side: str, paths: Sequence[str]) -> np.ndarray:
        """float32 [recordings, 2 * width of the tower].

        Args:
            side: the tower that reads them: "audio", or "video" for stills.

        Raises:
            MediaError: if a recording cannot be read, or has no such side.
        """
        new = [path for path in dict.fromkeys(paths) if (side, path) not in self._known]
        for first in range(0, len(new), BATCH):
            some = new[first : first + BATCH]
            for path, vector in zip(some, self._computed(side, some), strict=True):
                self._known[side, path] = vector
        return np.stack([self._known[side, path] for path in paths])

    @torch.inference_mode()
    def _computed(self, side: str, paths: Sequence[str]) -> list[np.ndarray]:
        tower = self.model.model.towers[side]
        read = self._heard if side == "audio" else self._seen
        items = [read(path) for path in paths]
        values = tower.ready(torch.cat([values for values, _ in items]).to(self.model.device))
        chunks = (tower.encode if tower.kept is None else tower.kept)(values).float().cpu()
        vectors = []
        for (_, true), tokens in zip(items, chunks.split([len(values) for values, _ in items]), strict=True):
            inside = tokens.flatten(0, 1)[torch.cat([torch.arange(first, last) for first, last in true])]
            vectors.append(torch.cat([inside.mean(0), inside.std(0, correction=0)]).numpy())
        return vectors

    def _heard(self, path: str) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """Chunks of sound for the tower, and which of their tokens lie within the recording."""
        tower, spec = self.model.model.towers["audio"], self.processor.spec
        windows, _ = load_windows(path, spec, want_video=False, isolated=True)
        sounds = [window.waveform for window in windows if window.waveform is not None]
        values, _ = self.processor.sound_features(sounds)
        if values is None:
            raise MediaError(f"{path}: it has no sound that a linear probe could read")
        true = []
        for number, sound in enumerate(sounds):
            chunk, slot = divmod(number, tower.windows_per_chunk)
            first = chunk * tower.tokens_per_chunk + slot * tower.tokens_per_window
            share = len(sound) / (SAMPLE_RATE * spec.window_seconds)
            true.append((first, first + max(1, math.ceil(share * tower.tokens_per_window))))
        return values, true

    def _seen(self, path: str) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """A still as the video tower gets it."""
        tower = self.model.model.towers["video"]
        pixels = self.processor.media(path, "image", isolated=True).pixel_values
        assert pixels is not None
        # Below a mixer, frames are encoded one by one; otherwise the encoder reads a fixed number.
        frames = 1 if tower.mixer is not None else getattr(tower.encoder.config, "num_frames", 1)
        values = pixels.unsqueeze(1).expand(-1, frames, -1, -1, -1)
        return values, [(0, tower.encoded_shape(values)[0])]


class LogisticRegression:
    """Multinomial logistic regression with an L2 penalty, on standardised features (torch's L-BFGS).

    Args:
        features: float32 [examples, width].
        truths: one an example.
        groups: one an example; C is chosen among STRENGTHS by cross-validation that keeps a group (a speaker,
            a source) in one fold.
    """

    def __init__(self, features: np.ndarray, truths: Sequence[str], groups: Sequence[Hashable]):
        self.classes = sorted(set(truths))
        self.mean, self.scale = features.mean(0), features.std(0) + 1e-6
        x = torch.from_numpy((features - self.mean) / self.scale)
        y = torch.tensor([self.classes.index(truth) for truth in truths])
        number = {group: i for i, group in enumerate(dict.fromkeys(groups))}
        order = np.random.default_rng(0).permutation(len(number))
        fold = torch.tensor([order[number[group]] % FOLDS for group in groups])
        self.strength = max(STRENGTHS, key=lambda strength: self._validated(x, y, fold, strength))
        self.weights = self._fitted(x, y, self.strength)

    def log_odds(self, features: np.ndarray) -> np.ndarray:
        """float32 [examples, classes], in the order of `classes`."""
        return _logits(torch.from_numpy((features - self.mean) / self.scale), self.weights).numpy()

    def _validated(self, x: torch.Tensor, y: torch.Tensor, fold: torch.Tensor, strength: float) -> float:
        right = 0
        for held_out in range(FOLDS):
            inside, outside = fold != held_out, fold == held_out
            if inside.any() and outside.any():
                weights = self._fitted(x[inside], y[inside], strength)
                right += int((_logits(x[outside], weights).argmax(1) == y[outside]).sum())
        return right

    def _fitted(self, x: torch.Tensor, y: torch.Tensor, strength: float) -> torch.Tensor:
        """[width + 1, classes]; the last row is the bias, which has no penalty."""
        weights = torch.zeros(x.shape[1] + 1, len(self.classes), requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=200, history_size=10, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            penalty = weights[:-1].square().sum() / 2
            value = functional.cross_entropy(_logits(x, weights), y) + penalty / (strength * len(x))
            value.backward()
            return value

        optimizer.step(loss)
        return weights.detach()


def _logits(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return x @ weights[:-1] + weights[-1]
