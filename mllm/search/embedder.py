"""Embeds text and recordings as unit vectors of the shared space, compared by dot product.

The index, the retrieval scores and the embeddings endpoint all call this, so their vectors are comparable.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch

from mllm.errors import ConfigError, MediaError
from mllm.media.recording import open_recording
from mllm.media.sources import OWN_FILES, MediaLimits
from mllm.media.windows import Window, load_windows
from mllm.models.config import MllmConfig
from mllm.models.encoded import MediaFeatures, collate_media
from mllm.models.feature_cache import FeatureCache, freeze_and_keep
from mllm.models.model import MllmForConditionalGeneration
from mllm.models.processor import MllmProcessor
from mllm.models.sides import cut_settings
from mllm.models.towers import TextTower, find_tower
from mllm.records.chat_form import escape
from mllm.search.fingerprint import OF_VECTORS, delta_fingerprint, model_fingerprint, tunes_vectors

Modality = Literal["video", "audio", "both", "image"]
MODALITIES: tuple[str, ...] = get_args(Modality)
PIECE_BYTES = 128_000_000  # frames of a long recording that are held in memory at once


@dataclass(frozen=True)
class WindowVector:
    """One window of a recording as the index stores it; `vector` is float32 [dim] of length 1."""

    start: float
    end: float
    modality: str
    vector: np.ndarray


def text_inputs(
    processor: MllmProcessor, texts: Sequence[str], max_tokens: int, pad_to_multiple_of: int = 1
) -> dict[str, torch.Tensor]:
    """The inputs of the shared space's text side; training calls this too.

    Args:
        texts: captions or queries; special tokens of the decoder in them are escaped.
        max_tokens: longer texts are truncated.

    Returns:
        input_ids and attention_mask, int64 [texts, tokens], padded on the right.
    """
    own = processor.space_tokenizer
    tokenizer = processor.tokenizer if own is None else own
    rows: list[list[int]] = []
    for text in texts:
        if own is None:
            ids = tokenizer.encode(escape(text, processor.special_tokens), add_special_tokens=False)
        else:
            ids = own.encode(processor.space_prefix + text, truncation=True, max_length=max_tokens)
        # An empty text still needs something to attend to.
        rows.append(ids[:max_tokens] or [tokenizer.pad_token_id])
    length = max(map(len, rows))
    length = min(length + -length % pad_to_multiple_of, max_tokens)
    input_ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        input_ids[i, : len(row)] = torch.tensor(row)
        attention_mask[i, : len(row)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def longest_text(config: MllmConfig) -> int:
    """Maximum length in tokens of the shared space's text tower."""
    return find_tower(config.space_config.model_type, TextTower).longest(config.space_config)


class Embedder:
    """A model and its processor, as a function from media or text to vectors.

    Args:
        model: with a shared space (`config.space_config` set); put into evaluation mode.
        processor: the model's own.
        name: name of the model in an index and in errors.
        batch_windows: windows that go through the towers at once.

    Raises:
        ConfigError: if the model has no shared space.
    """

    def __init__(
        self,
        model: MllmForConditionalGeneration,
        processor: MllmProcessor,
        name: str = "",
        batch_windows: int = 64,
    ):
        if model.config.space_config is None:
            raise ConfigError(
                "this model has no shared space: give it a `text` tower and train the contrastive stage"
            )
        self.model = model.eval()
        self.processor = processor
        self.name = name or str(getattr(model.config, "_name_or_path", "") or "model")
        self.batch_windows = batch_windows
        self.dim: int = model.config.embedding_dim
        self._fingerprint: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | None = None,
        features: str | Path | None = None,
        **options,
    ) -> Embedder:
        """The embedder of a checkpoint folder or hub id; None takes the default one that ships.

        Args:
            features: folder in which `mllm.models.feature_cache` keeps the towers' outputs.
        """
        from mllm.models.checkpoint import fetch, find_shipped, load, resolve
        from mllm.models.deltas import is_delta

        folder = find_shipped() if folder is None else folder
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, processor = load(folder, dtype=dtype, device=device)
        if features is not None:
            freeze_and_keep(model, FeatureCache(features))
        name = str(Path(folder).resolve()) if Path(folder).exists() else str(folder)
        embedder = cls(model, processor, name=name, **options)
        base, adapter = resolve(folder)
        if is_delta(fetch(base)) and (adapter is None or not tunes_vectors(adapter)):
            embedder._fingerprint = delta_fingerprint(fetch(base), embedder._settings())
        return embedder

    # --- text -----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str], batch: int = 256) -> np.ndarray:
        """Texts -> unit float32 [texts, dim]."""
        limit = longest_text(self.model.config)
        vectors = []
        for first in range(0, len(texts), batch):
            inputs = text_inputs(self.processor, texts[first : first + batch], limit)
            vectors.append(self.model.model.space.text(**self._on_device(inputs)))
        return self._stack(vectors)

    # --- recordings -----------------------------------------------------------------------------------------

    def embed_clips(self, sources: Sequence[Any], modality: Modality = "both") -> np.ndarray:
        """Whole recordings, one vector each -> unit float32 [sources, dim].

        Args:
            sources: anything `media.load_clip` takes (path, bytes, data: URI, folder of frames, Clip), or
                lists of `Window` that are already cut.
            modality: "video" reads only the picture, "audio" only the sound, "image" a still; "both" adds the
                vectors of picture and sound, or uses the only one there is.

        Raises:
            MediaError: if a recording cannot be read, or has nothing of the modality.
            ValueError: for an unknown modality.
        """
        if modality not in MODALITIES:
            raise ValueError(f"no modality '{modality}': choose from {', '.join(MODALITIES)}")
        vectors: list[torch.Tensor] = []
        waiting: list[MediaFeatures] = []
        for source in sources:
            features = self._features(source, modality)
            _require(features, modality, source)
            waiting.append(features)
            if sum(len(item.layout) or 1 for item in waiting) >= self.batch_windows:
                vectors.append(self._embed(waiting, modality))
                waiting = []
        if waiting:
            vectors.append(self._embed(waiting, modality))
        return self._stack(vectors)

    def windows(
        self, source: Any, limits: MediaLimits = OWN_FILES, isolated: bool = False
    ) -> Iterator[WindowVector]:
        """Every window of a recording, each embedded as a clip of its own: the rows of the index.

        A window yields a row "video" if it has a picture and a row "audio" if it has sound; if it has both,
        also a row "both", the fused vector. A still image yields one row "image". Unlike a prompt, which
        samples `max_windows` windows evenly, this covers the recording from start to end, piece by piece.

        Args:
            source: see `media.open_recording`.
            limits: upper bounds; by default a recording may be of any size and length.
            isolated: see `media.open_recording`.

        Raises:
            MediaError: if the recording cannot be read.
        """
        with open_recording(source, limits, isolated=isolated) as recording:
            if recording.info.is_image:
                picture = recording.clip(size=self.processor.image_size)
                yield WindowVector(0.0, 0.0, "image", self.embed_clips([picture], "image")[0])
                return
            spec = replace(self.processor.spec, max_windows=sys.maxsize)
            starts = spec.starts(recording.info.duration)
            step = self._whole_chunks(PIECE_BYTES // (spec.frames_per_window * spec.image_size**2 * 3))
            for first in range(0, len(starts), step):
                begin, rest = starts[first], starts[first + step :]
                span = {"start": begin or None, "end": rest[0] if rest else None}
                piece, _ = load_windows(recording, spec, **span, **self.processor.wanted("video"))
                yield from self._window_vectors(piece, begin)

    def _window_vectors(self, windows: Sequence[Window], offset: float) -> Iterator[WindowVector]:
        found: list[dict[str, np.ndarray]] = []
        batch = self._whole_chunks(self.batch_windows)
        for first in range(0, len(windows), batch):
            found += self._each_alone(windows[first : first + batch])
        for window, sides_found in zip(windows, found, strict=True):
            if len(sides_found) == 2:
                sides_found["both"] = _unit(sides_found["video"] + sides_found["audio"])
            for modality, vector in sides_found.items():
                yield WindowVector(offset + window.start, offset + window.end, modality, vector)

    def _whole_chunks(self, windows: int) -> int:
        """Rounds a number of windows so that the audio tower's chunks begin where they do in a prompt."""
        per_chunk = self.processor.windows_per_chunk
        return max(1, windows // per_chunk) * per_chunk

    @torch.inference_mode()
    def _each_alone(self, windows: Sequence[Window]) -> list[dict[str, np.ndarray]]:
        """Vectors of windows by modality; towers read them in shared chunks, as they do in a prompt."""
        features = self.processor.media_from_windows(windows, "video")
        queries = self.model.model.query_outputs(**self._on_device(collate_media([features])))
        found: list[dict[str, np.ndarray]] = [{} for _ in windows]
        for side, outputs in queries.items():
            has = [number for number, window in enumerate(features.layout) if getattr(window, side)]
            ones = torch.ones(len(has), dtype=torch.long, device=self.model.device)
            vectors = self._stack([self.model.model.embed(side, outputs, ones)])
            for number, vector in zip(has, vectors, strict=True):
                found[number][side] = vector
        return found

    def _features(self, source: Any, modality: str) -> MediaFeatures:
        kind = "video" if modality == "both" else modality
        if isinstance(source, list) and all(isinstance(window, Window) for window in source):
            features = self.processor.media_from_windows(source, kind)
        elif modality == "image":
            features = self.processor.media(source, "image")
        else:
            features = self.processor.media(source, kind, want_audio=modality != "video")
        if (
            modality == "video" and features.input_features is not None
        ):  # windows that were cut with their sound
            layout = [window._replace(audio=False) for window in features.layout]
            features = replace(features, input_features=None, layout=layout)
        return features

    @torch.inference_mode()
    def _embed(self, items: Sequence[MediaFeatures], modality: str) -> torch.Tensor:
        model, device = self.model.model, self.model.device
        queries = model.query_outputs(**self._on_device(collate_media(items)))
        if modality == "image":
            ones = torch.ones(len(items), dtype=torch.long, device=device)
            return model.embed("video", queries["image"], ones)
        summed = torch.zeros(len(items), self.dim, device=device)
        for side, outputs in queries.items():
            counts = [sum(getattr(window, side) for window in item.layout) for item in items]
            windows_per_clip = torch.tensor(counts, device=device)
            has = windows_per_clip > 0
            summed[has] += model.embed(side, outputs, windows_per_clip[has])
        return torch.nn.functional.normalize(summed, dim=-1)

    def _on_device(self, tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.model.device) for name, tensor in tensors.items()}

    def _stack(self, vectors: Sequence[torch.Tensor]) -> np.ndarray:
        if not vectors:
            return np.zeros((0, self.dim), np.float32)
        return torch.cat(list(vectors)).float().cpu().numpy()

    # --- identity -------------------------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """See `model_fingerprint`, and `delta_fingerprint` for a checkpoint of bases and deltas.

        Weights are hashed as float32, so a bf16 checkpoint has the same fingerprint in whatever dtype it is
        loaded. The decoder is left out: tuning only the decoder leaves an index valid.
        """
        if self._fingerprint is None:
            state = self.model.model.state_dict()
            names = sorted(name for name in state if name.startswith(OF_VECTORS))
            self._fingerprint = model_fingerprint(
                self._settings(), ((name, state[name].detach().float().cpu().numpy()) for name in names)
            )
        return self._fingerprint

    def _settings(self) -> bytes:
        processor = self.processor
        read_by = processor.tokenizer if processor.space_tokenizer is None else processor.space_tokenizer
        return cut_settings(
            processor.sides,
            processor.window_seconds,
            processor.frames_per_window,
            read_by.get_vocab().items(),
        )


def _require(features: MediaFeatures, modality: str, source: Any) -> None:
    if modality == "image":
        return
    has_picture, has_sound = features.pixel_values is not None, features.input_features is not None
    missing = {
        "video": "" if has_picture else "picture",
        "audio": "" if has_sound else "sound",
        "both": "" if has_picture or has_sound else "picture and no sound",
    }[modality]
    if missing:
        name = source if isinstance(source, str | Path) and len(str(source)) < 500 else "this recording"
        raise MediaError(f"{name} has no {missing}: embed it with another modality")


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)
