"""Whisper's encoder over native chunks of sound, and its log-mel spectrogram."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig, WhisperConfig, WhisperModel
from transformers.audio_utils import mel_filter_bank
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from mllm.media.recording import SAMPLE_RATE
from mllm.models.towers.base import SoundInputs, SoundTower, WindowSize, whole_state

HOP, FFT = 160, 400  # samples
TOKENS_PER_SECOND = 50  # 100 spectra, halved by the second convolution


@dataclass(frozen=True)
class LogMelInputs(SoundInputs):
    """A log-mel spectrogram, [chunks, mel_bins, spectra].

    Attributes:
        mel_bins: number of mel bands.
    """

    mel_bins: int

    def prepare(self, samples: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Equals WhisperFeatureExtractor on each chunk; one batched STFT is several times faster."""
        spectrum = torch.stft(samples, FFT, HOP, window=torch.hann_window(FFT), return_complex=True)
        power = torch.view_as_real(spectrum[..., :-1]).square().sum(-1)
        log_power = (_mel_filters(self.mel_bins) @ power).clamp(min=1e-10).log10()
        loudest = log_power.amax(dim=(1, 2), keepdim=True)
        return (torch.maximum(log_power, loudest - 8.0) + 4.0) / 4.0


@cache
def _mel_filters(mel_bins: int) -> torch.Tensor:
    filters = mel_filter_bank(1 + FFT // 2, mel_bins, 0.0, 8000.0, SAMPLE_RATE, "slaney", "slaney")
    return torch.from_numpy(filters).float().T.contiguous()


class WhisperTower(SoundTower):
    """Whisper's encoder (Radford et al., 2022, arXiv:2212.04356).

    With `layers` in its config, a token is these hidden states side by side, each normalised to mean 0 and
    variance 1: 0 is the input of the first layer, `encoder_layers` the encoder's output. The early layers
    know more of voices and sounds, the last more of words. By default, a token is the encoder's output alone,
    as it is.
    """

    config_class = WhisperConfig
    encoder_class = WhisperEncoder
    inputs_class = LogMelInputs
    own_fields = MappingProxyType({"layers": None})
    fixed = ("encoder.embed_positions.weight",)  # sinusoids

    def __init__(self, config: PreTrainedConfig, window: WindowSize):
        super().__init__(config, window)
        self.layers: list[int] = config.layers or []
        self.width *= len(self.layers) or 1
        if self.layers and (needed := max(self.layers)) < config.encoder_layers:  # the rest need not run
            above = range(needed, config.encoder_layers)
            self.unused = ("layer_norm.", *(f"layers.{layer}." for layer in above))
            self.encoder.layers = self.encoder.layers[:needed]
            self.encoder.layer_norm = nn.Identity()

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """Spectrograms [chunks, mel bins, spectra] -> [chunks, tokens, width]."""
        if not self.layers:
            return super().encode(values)
        states = self.encoder(values, output_hidden_states=True).hidden_states
        chosen = [states[layer] for layer in self.layers]
        return torch.cat([functional.layer_norm(state, state.shape[-1:]) for state in chosen], -1)

    @classmethod
    def inputs(cls, config: PreTrainedConfig, window: WindowSize) -> LogMelInputs:
        return LogMelInputs(config.max_source_positions / TOKENS_PER_SECOND, config.num_mel_bins)

    @classmethod
    def check(cls, config: PreTrainedConfig, window: WindowSize) -> None:
        if not set(config.layers or ()) <= set(range(config.encoder_layers + 1)):
            raise ValueError(
                f"layers of the audio tower are {config.layers}: name hidden states from 0, the input of its "
                f"first layer, to {config.encoder_layers}, its output"
            )
        tokens, chunk = window.seconds * TOKENS_PER_SECOND, config.max_source_positions / TOKENS_PER_SECOND
        if tokens != int(tokens) or window.seconds > chunk + 1e-6:
            raise ValueError(
                f"window_seconds is {window.seconds}: the audio tower hears {chunk} s at a time in steps of "
                f"0.02 s, so take a multiple of 0.02 s, at most {chunk} s"
            )

    @classmethod
    def tokens_in_window(cls, config: PreTrainedConfig, window: WindowSize) -> int:
        return round(window.seconds * TOKENS_PER_SECOND)

    @classmethod
    def pretrained_state(cls, name: str) -> dict[str, torch.Tensor]:
        state = whole_state(WhisperModel, name)
        return {
            key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")
        }

    @classmethod
    def fit(cls, key: str, value: torch.Tensor, wanted: torch.Size) -> torch.Tensor:
        """Truncates the positions to a shorter chunk: sinusoids do not depend on their number."""
        return value[: wanted[0]] if key == "embed_positions.weight" else value
