"""The contract of a tower: its inputs, how it divides time, and its outputs.

A tower is one class. Without weights, its class methods derive from a transformers config how a recording is
prepared (`inputs`) and how many tokens a window yields (`tokens_in_window`); the processor, the vLLM plugin
and the data workers need no more. As a module it turns prepared chunks into tokens.

A *window* is the unit of the rest of the model (see `media.windows`). A *chunk* is what the tower reads at
once: one window of pictures, or, for a tower with a native length, as many whole windows of sound as fit.

A tower is a pretrained `encoder` and, perhaps, a small `mixer` on top, which trains while the encoder is
frozen: `forward` is `mixer(encode(values))`, and a feature cache keeps what `encode` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from mllm.errors import ConfigError
from mllm.models.bases import base_folder
from mllm.models.quiet import no_bars, no_warnings


class WindowSize(NamedTuple):
    """One window: its length in seconds and its number of pictures."""

    seconds: float
    frames: int


@dataclass(frozen=True)
class PixelInputs:
    """Pictures of one size: uint8 pixels, normalised on the model's device.

    Attributes:
        image_size: height and width, pixels.
        image_mean, image_std: per channel, of pixels in 0..1.
    """

    image_size: int
    image_mean: list[float]
    image_std: list[float]

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [..., channels, height, width] -> float32 of the same shape."""
        mean = torch.tensor(self.image_mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(self.image_std, device=pixels.device).view(-1, 1, 1)
        return (pixels.float() / 255 - mean) / std


@dataclass(frozen=True)
class SoundInputs:
    """Sound at 16 kHz, prepared chunk by chunk where the recording is read.

    Attributes:
        chunk_seconds: length of a chunk.
    """

    chunk_seconds: float

    def prepare(self, samples: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """float32 [chunks, samples] -> [chunks, …], the tower's input.

        The first `lengths` [chunks] samples of each chunk are sound, the rest silence.
        """
        raise NotImplementedError


class Tower(nn.Module):
    """The contract. A subclass sets `config_class` and `encoder_class` and implements `tokens_in_window`.

    It overrides `encode` if its encoder's output is not `last_hidden_state`.

    Attributes:
        reads: which part of a window it encodes: frames or waveform.
        config_class, encoder_class: the classes of transformers.
        encoder_options: further arguments of `encoder_class`, such as `add_pooling_layer=False`.
        inputs_class: the type that `inputs` returns.
        fixed: parameters that are never trained.
        own_fields: fields beside those of `config_class`, with their defaults; also read from the
            preprocessor's file of a base.
        unused: prefixes of weights of a base that the tower has no use for.
        mixer: turns the output of `encode` into the tower's tokens; None if it already is those.
        width: size of a token.
        tokens_per_chunk: tokens that `forward` returns for a chunk.
        tokens_per_window: tokens of one window, at most `tokens_per_chunk`.
        windows_per_chunk: windows packed into one chunk.
        kept: a feature cache's replacement for `encode`, or None.
    """

    reads: ClassVar[Literal["frames", "waveform"]]
    config_class: ClassVar[type[PreTrainedConfig]]
    encoder_class: ClassVar[type[PreTrainedModel]]
    encoder_options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    inputs_class: ClassVar[type[PixelInputs] | type[SoundInputs]]
    own_fields: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    fixed: ClassVar[tuple[str, ...]] = ()

    encoder: PreTrainedModel
    mixer: nn.Module | None
    unused: tuple[str, ...] = ()
    kept: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __init__(self, config: PreTrainedConfig, window: WindowSize):
        super().__init__()
        self.check(config, window)
        self.encoder = self.encoder_class(config, **self.encoder_options)
        self.mixer = None
        self._no_split_modules = self.encoder._no_split_modules  # transformers looks for them here
        self.width: int = config.hidden_size
        self.tokens_per_window = self.tokens_in_window(config, window)
        self.windows_per_chunk = 1
        self.tokens_per_chunk = self.tokens_per_window

    def train(self, mode: bool = True) -> Self:
        """As for any module, but a frozen encoder stays in evaluation mode.

        Batch normalisation by the statistics of a batch, or dropout, would change its features: what is
        trained on top would learn others than those it is used with.
        """
        super().train(mode)
        if not any(weight.requires_grad for weight in self.encoder.parameters()):
            self.encoder.eval()
        return self

    # --- without weights ------------------------------------------------------------------------------------

    @classmethod
    def decided_fields(cls, window: WindowSize) -> dict[str, Any]:
        """Config fields that follow from the size of a window."""
        return {}

    @classmethod
    def check(cls, config: PreTrainedConfig, window: WindowSize) -> None:
        """Raises ValueError if the tower cannot read windows of this size."""

    @classmethod
    def inputs(cls, config: PreTrainedConfig, window: WindowSize) -> PixelInputs | SoundInputs:
        """How recordings are prepared for a tower with this config."""
        raise NotImplementedError

    @classmethod
    def tokens_in_window(cls, config: PreTrainedConfig, window: WindowSize) -> int:
        """How many tokens one window yields."""
        raise NotImplementedError

    # --- with weights ---------------------------------------------------------------------------------------

    def ready(self, values: torch.Tensor) -> torch.Tensor:
        """Converts inputs as stored in a batch to the form and dtype that `forward` expects."""
        return values.to(self.encoder.dtype)

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """[chunks, …] -> [chunks, *encoded_shape]"""
        return self.encoder(values).last_hidden_state

    def encoded_shape(self, values: torch.Tensor) -> tuple[int, int]:
        """How many tokens `encode` returns for each of the chunks `values`, and their size."""
        return self.tokens_per_chunk, self.width

    def encoding_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the name and value of all weights that `encode` depends on."""
        for name, value in self.state_dict(keep_vars=True).items():
            if not name.startswith("mixer."):
                yield name, value

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[chunks, …] -> [chunks, tokens_per_chunk, width]"""
        encoded = self.encode(values) if self.kept is None else self.kept(values)
        return encoded if self.mixer is None else self.mixer(encoded)

    def windows(self, values: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:
        """The model's entry point: prepared chunks -> [windows, tokens_per_window, width].

        Args:
            values: [chunks, …], see `inputs`.
            counts: [chunks], how many windows each chunk holds, from its start; None means one.
        """
        features = self(self.ready(values))
        per_chunk, tokens = self.windows_per_chunk, self.tokens_per_window
        windows = features[:, : per_chunk * tokens].unflatten(1, (per_chunk, tokens))
        if counts is None:
            return windows[:, 0]
        filled = torch.arange(per_chunk, device=features.device) < counts.view(-1, 1).to(features.device)
        return windows[filled]

    # --- pretrained weights ---------------------------------------------------------------------------------

    @classmethod
    def pretrained_state(cls, name: str) -> dict[str, torch.Tensor]:
        """The encoder's weights from a base, a hub id or a folder, float32."""
        return whole_state(cls.encoder_class, name, **cls.encoder_options)

    @classmethod
    def fit(cls, key: str, value: torch.Tensor, wanted: torch.Size) -> torch.Tensor:
        """Adapts a pretrained weight to a config that differs from its base's; unchanged by default."""
        return value

    def load_pretrained(self, name: str) -> None:
        """Loads the encoder's weights from a base, a hub id or a folder.

        Raises:
            ConfigError: if a weight does not fit the tower; the message names the first one.
        """
        wanted = self.encoder.state_dict()
        state = {k: v for k, v in self.pretrained_state(name).items() if not k.startswith(self.unused)}
        fitted = {k: self.fit(k, v, wanted[k].shape) if k in wanted else v for k, v in state.items()}
        _load(self.encoder, fitted, name)


class FrameTower(Tower):
    """A tower that reads the pictures of one window: uint8 [windows, frames, channels, height, width]."""

    reads = "frames"
    inputs_class = PixelInputs
    own_fields = MappingProxyType({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]})

    def __init__(self, config: PreTrainedConfig, window: WindowSize):
        super().__init__(config, window)
        self.pixels = self.inputs(config, window)

    @classmethod
    def inputs(cls, config: PreTrainedConfig, window: WindowSize) -> PixelInputs:
        return PixelInputs(config.image_size, list(config.image_mean), list(config.image_std))

    @classmethod
    def decided_fields(cls, window: WindowSize) -> dict[str, Any]:
        return {"num_frames": window.frames} if "num_frames" in cls.config_class().to_dict() else {}

    @classmethod
    def check(cls, config: PreTrainedConfig, window: WindowSize) -> None:
        # With any other number of frames, divided attention silently regroups tokens wrongly.
        if getattr(config, "num_frames", window.frames) != window.frames:
            raise ValueError(
                f"frames_per_window is {window.frames} but the video tower takes {config.num_frames} frames: "
                "make them equal"
            )

    def ready(self, values: torch.Tensor) -> torch.Tensor:
        return self.pixels.normalise(values).to(self.encoder.dtype)

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """Normalised pixels [windows, frames, channels, height, width] -> [windows, tokens, width]."""
        frames = getattr(self.encoder.config, "num_frames", values.shape[1])
        if values.shape[1] != frames:
            raise ValueError(f"the video tower takes {frames} frames a window, got {values.shape[1]}")
        return super().encode(values)

    def images(self, values: torch.Tensor, frames: int) -> torch.Tensor:
        """uint8 [images, channels, height, width] -> [images, tokens_per_window, width].

        An image is read as a window of `frames` equal frames.
        """
        return self.windows(values.unsqueeze(1).expand(-1, frames, -1, -1, -1))


class SoundTower(Tower):
    """A tower that encodes chunks of sound."""

    reads = "waveform"

    def __init__(self, config: PreTrainedConfig, window: WindowSize):
        super().__init__(config, window)
        chunk_seconds = self.inputs(config, window).chunk_seconds
        self.windows_per_chunk = windows_per_chunk(chunk_seconds, window.seconds)
        self.tokens_per_chunk = self.tokens_in_window(config, WindowSize(chunk_seconds, 0))

    @classmethod
    def inputs(cls, config: PreTrainedConfig, window: WindowSize) -> SoundInputs:
        raise NotImplementedError


class TextTower(nn.Module):
    """The text side of the shared space; not a `Tower`, since it reads tokens and has no windows.

    It reads the decoder's token ids or, with weights from a base, those of the base's own tokenizer.

    Attributes:
        width: size of a token.
    """

    config_class: ClassVar[type[PreTrainedConfig]]
    encoder_class: ClassVar[type[PreTrainedModel]]
    encoder_options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    encoder: PreTrainedModel

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.encoder = self.encoder_class(config, **self.encoder_options)
        self.width: int = config.hidden_size

    @classmethod
    def longest(cls, config: PreTrainedConfig) -> int:
        """The longest text in tokens."""
        return config.max_position_embeddings

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """input_ids, attention_mask [texts, tokens] -> [texts, tokens, width]."""
        return self.encoder(input_ids, attention_mask=attention_mask).last_hidden_state

    def load_pretrained(self, name: str) -> None:
        """See `Tower.load_pretrained`."""
        _load(self.encoder, whole_state(self.encoder_class, name, **self.encoder_options), name)


def whole_state(model_class: type[PreTrainedModel], name: str, **options: Any) -> dict[str, torch.Tensor]:
    """The weights of a base, a hub id or a folder, float32.

    Raises:
        ConfigError: if weights of the model are missing, which transformers would initialise at random.
    """
    folder = base_folder(name)
    with no_bars(), no_warnings():  # of weights that a tower does not use, such as a pooler's
        model, found = model_class.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **options
        )
    if missing := sorted(found["missing_keys"]):
        raise ConfigError(
            f"{name} does not fit the tower: it lacks {len(missing)} weights of a {model_class.__name__}, "
            f"{missing[0]} for one"
        )
    return model.state_dict()


def _load(encoder: nn.Module, state: Mapping[str, torch.Tensor], name: str) -> None:
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ConfigError(f"{name} does not fit the tower: {reason}") from None


def windows_per_chunk(chunk_seconds: float, window_seconds: float) -> int:
    """Whole windows that fit side by side into a chunk."""
    return int(chunk_seconds / window_seconds + 1e-6)


def described(inputs: PixelInputs | SoundInputs) -> dict[str, Any]:
    """Inputs as a JSON object; `inputs_class(**values)` reverses it."""
    return asdict(inputs)
