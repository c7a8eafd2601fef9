"""Speech as text with word times: Whisper (Radford et al. 2022) over what of a recording is speech.

    transcript = Transcriber.from_pretrained().transcribe("talk.mp4")
    transcript.language, transcript.text, transcript.segments[0].words

Silero VAD finds the stretches, so that silence and noise give no words. They are joined to pieces of at most
30 s that start and end in silence. A piece is always padded to 30 s: at its true length the decoder repeats
itself. Pieces are encoded one by one, which is faster on a CPU, and decoded together.

A piece that was decoded badly, by openai-whisper's thresholds, is decoded again at higher temperatures. Words
get their times as in openai-whisper, by dynamic time warping over the attention of the heads that align text
with sound, and never reach into silence.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mllm.errors import ConfigError
from mllm.media.recording import SAMPLE_RATE, open_recording
from mllm.media.speech import SpeechDetector, into_speech
from mllm.models.bases import base_folder
from mllm.models.quiet import no_bars, no_warnings
from mllm.records.transcript import Transcript, Word, segments_of

if TYPE_CHECKING:
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

DEFAULT = "whisper-base"
PIECE = 30.0  # s, what Whisper hears at once
GAP = 5.0  # s without speech between two pieces
MARGIN = 0.2  # s around a piece: the detector is late at a soft onset
TOGETHER = 8  # pieces decoded at once
FRAME = 0.02  # s of sound per position of the encoder
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8)
MOST_COMPRESSED = 2.4  # text bytes per zlib byte: more means repeats
LEAST_LIKELY = -1.0  # mean log-probability of a token
NO_SPEECH = 0.6  # probability
TOKENS_PER_SECOND = 16  # more than any language needs; bounds a runaway decoder
REMEMBERED = 64  # transcripts


@dataclass
class _Piece:
    """A stretch of the waveform (samples), with the speech in it (s, from the waveform's start)."""

    start: int
    end: int
    speech: list[tuple[float, float]]
    states: torch.Tensor | None = None  # [1, positions, width], the encoder's
    silent: float = 0.0  # probability that nothing is said

    @property
    def seconds(self) -> float:
        return (self.end - self.start) / SAMPLE_RATE


@dataclass
class _Heard:
    """A decoded piece.

    Attributes:
        ids: text tokens.
        likelihood: mean log-probability of a token.
        compression: bytes of text per byte of its zlib form.
        times: start of each token, and the end of the last, s from the piece's start.
    """

    ids: list[int]
    likelihood: float
    compression: float
    times: np.ndarray

    @property
    def bad(self) -> bool:
        return self.compression > MOST_COMPRESSED or self.likelihood < LEAST_LIKELY

    def rank(self) -> tuple[bool, float]:
        return self.compression <= MOST_COMPRESSED, self.likelihood


NOTHING = _Heard([], 0.0, 0.0, np.zeros(1))


class Transcriber:
    """A Whisper model that writes down what is said; threads take turns.

    Args:
        model: with heads for alignment in its generation config, or else its upper layers align.
        tokenizer, extractor: the model's own.
        name: identifies the model in reports and caches.
        language: such as "en"; None detects it in each recording.
    """

    def __init__(
        self,
        model: WhisperForConditionalGeneration,
        tokenizer: WhisperTokenizer,
        extractor: WhisperFeatureExtractor,
        name: str = "whisper",
        language: str | None = None,
    ):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.extractor = extractor
        self.name = name
        self.language = language
        config = model.generation_config
        self._languages: dict[str, int] = {
            token.strip("<|>"): id for token, id in (getattr(config, "lang_to_id", None) or {}).items()
        }
        if language is not None and language not in (self._languages or {"en": 0}):
            raise ConfigError(
                f"{name} knows no language {language!r}: give one of {' '.join(self._languages)}"
            )
        layers, heads = model.config.decoder_layers, model.config.decoder_attention_heads
        self._aligning = getattr(config, "alignment_heads", None) or [
            (layer, head) for layer in range(layers // 2, layers) for head in range(heads)
        ]
        self._speech = SpeechDetector(longest=PIECE - 1.0)
        self._lock = threading.Lock()
        self._remembered: dict[bytes, Transcript] = {}

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path = DEFAULT,
        language: str | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> Transcriber:
        """The transcriber of a base, a hub id or a folder.

        Args:
            language: a code or an English name; None detects it in each recording.
            dtype: by default bfloat16 where it is fast (a GPU, a CPU with AMX), else float32.
            device: by default a GPU if there is one.

        Raises:
            ConfigError: if it is no Whisper model, or does not know the language.
        """
        from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer

        folder = base_folder(str(name))
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        fast = device.type == "cuda" or torch.cpu.get_capabilities().get("amx_bf16", False)
        try:
            with no_bars():
                model = WhisperForConditionalGeneration.from_pretrained(
                    folder, dtype=dtype or (torch.bfloat16 if fast else torch.float32)
                )
            tokenizer = WhisperTokenizer.from_pretrained(folder)
            extractor = WhisperFeatureExtractor.from_pretrained(folder)
        except (OSError, ValueError, TypeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"{name}: no Whisper model can be loaded ({reason}): give {DEFAULT}, a hub id or a folder"
            ) from None
        return cls(model.to(device), tokenizer, extractor, str(name), language and language_code(language))

    def transcribe(self, source: Any, isolated: bool = False, **span: Any) -> Transcript:
        """Transcribes a recording; empty if it has no sound, or nothing is said.

        Args:
            source: path, bytes, `data:` URI, Clip or open recording (see `open_recording`).
            isolated: decode it in a worker process.
            span: start, end (s; the transcript's times count from start), audio (a separate sound), limits.

        Raises:
            MediaError: if the recording cannot be read.
        """
        cut = {name: span.pop(name, None) for name in ("start", "end")}
        with open_recording(source, isolated=isolated, **span) as recording:
            if not recording.info.has_audio:
                return Transcript()
            waveform = recording.clip(**cut, want_video=False).waveform
        return Transcript() if waveform is None else self.hear(waveform)

    @torch.inference_mode()
    def hear(self, waveform: np.ndarray) -> Transcript:
        """Transcribes float32 [samples] at 16 kHz; remembers recent ones by their content."""
        key = hashlib.sha256(waveform.tobytes()).digest()
        with self._lock:
            found = self._remembered.pop(key, None)
            self._remembered[key] = found or self._hear(waveform)
            while len(self._remembered) > REMEMBERED:
                del self._remembered[next(iter(self._remembered))]
            return self._remembered[key]

    def _hear(self, waveform: np.ndarray) -> Transcript:
        pieces = pieces_of(self._speech(waveform), len(waveform))
        if not pieces:
            return Transcript()
        votes = torch.stack([self._encode(piece, waveform) for piece in pieces]).sum(0)
        language = self.language or self._most_voted(votes)
        words: list[Word] = []
        for first in range(0, len(pieces), TOGETHER):
            some = pieces[first : first + TOGETHER]
            for piece, heard in zip(some, self._decode(some, language), strict=True):
                words += self._words(piece, heard, language)
                piece.states = None
        return Transcript(language, segments_of(words)) if words else Transcript()

    # --- what is said ---------------------------------------------------------------------------------------

    def _encode(self, piece: _Piece, waveform: np.ndarray) -> torch.Tensor:
        """Encodes a piece; returns the log-probability of each language, [languages]."""
        sound = waveform[piece.start : piece.end]
        features = self.extractor(sound, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        piece.states = self.model.get_encoder()(features.to(self.model.device, self.model.dtype))[0]
        config = self.model.generation_config
        logits = self._logits(piece, [config.decoder_start_token_id])[0][0]
        piece.silent = float(logits.softmax(-1)[config.no_timestamps_token_id - 1])
        ids = list(self._languages.values()) or [0]
        return logits[ids].log_softmax(-1)

    def _most_voted(self, votes: torch.Tensor) -> str:
        return list(self._languages)[int(votes.argmax())] if self._languages else "en"

    def _prompt(self, language: str) -> list[int]:
        config = self.model.generation_config
        chosen = [self._languages[language], config.task_to_id["transcribe"]] if self._languages else []
        return [config.decoder_start_token_id, *chosen, config.no_timestamps_token_id]

    def _decode(self, pieces: Sequence[_Piece], language: str) -> list[_Heard]:
        """The likeliest text of each piece, of those that do not repeat themselves if there is one."""
        best: dict[int, _Heard] = {}
        for temperature in TEMPERATURES:
            left = [index for index in range(len(pieces)) if index not in best or best[index].bad]
            texts = self._generate([pieces[index] for index in left], language, temperature)
            for index, ids in zip(left, texts, strict=True):
                heard = self._align(pieces[index], ids, language)
                best[index] = max(filter(None, (best.get(index), heard)), key=_Heard.rank)
                if pieces[index].silent > NO_SPEECH and best[index].likelihood < LEAST_LIKELY:
                    best[index] = NOTHING
        return [best[index] for index in range(len(pieces))]

    def _generate(self, pieces: Sequence[_Piece], language: str, temperature: float) -> list[list[int]]:
        """The text tokens of each piece."""
        from transformers.modeling_outputs import BaseModelOutput

        if not pieces:
            return []
        states = torch.cat([piece.states for piece in pieces if piece.states is not None])
        most = round(8 + TOKENS_PER_SECOND * max(piece.seconds for piece in pieces))
        asked = {"language": language, "task": "transcribe"} if self._languages else {}
        with torch.random.fork_rng(), no_warnings():
            torch.manual_seed(0)
            rows = self.model.generate(
                encoder_outputs=BaseModelOutput(states),
                attention_mask=states.new_ones(len(states), 2 * states.shape[1], dtype=torch.long),
                temperature=temperature,
                max_new_tokens=min(most, self.model.config.max_target_positions // 2),
                **asked,
            )
        end = self.model.generation_config.eos_token_id
        return [[id for id in row if id < end] for row in rows.tolist()]

    def _align(self, piece: _Piece, ids: list[int], language: str) -> _Heard:
        """Measures a text, and finds the times of its tokens."""
        from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

        if not ids:
            return NOTHING
        prompt = self._prompt(language)
        told = [*ids, self.model.generation_config.eos_token_id]
        logits, attention = self._logits(piece, [*prompt, *ids], attention=True)
        likely = logits[len(prompt) - 1 :].log_softmax(-1)
        likelihood = float(likely[torch.arange(len(told)), told].mean())
        # A position attends to what it predicts: the first text token at the prompt's last one.
        weights = attention[:, len(prompt) - 1 :, : max(1, round(piece.seconds / FRAME))]
        spread, mean = torch.std_mean(weights, dim=-2, keepdim=True, unbiased=False)
        weights = _median_filter((weights - mean) / spread, self.model.config.median_filter_width).mean(0)
        rows, columns = _dynamic_time_warping(-weights.double().cpu().numpy())
        times = columns[np.diff(rows, prepend=-1) > 0] * FRAME
        text = self.tokenizer.decode(ids).strip().encode()
        return _Heard(ids, likelihood, len(text) / max(1, len(zlib.compress(text))), times)

    def _logits(
        self, piece: _Piece, ids: list[int], attention: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits, float32 [ids, vocabulary], and the aligning heads' attention, [heads, ids, positions]."""
        config = self.model.config
        usual, config._attn_implementation = config._attn_implementation, "eager" if attention else "sdpa"
        try:
            found = self.model(
                encoder_outputs=(piece.states,),
                decoder_input_ids=torch.tensor([ids], device=self.model.device),
                output_attentions=attention,
            )
        finally:
            config._attn_implementation = usual
        heads = [found.cross_attentions[layer][0, head] for layer, head in self._aligning if attention]
        return found.logits[0].float(), torch.stack(heads).float() if heads else found.logits

    def _words(self, piece: _Piece, heard: _Heard, language: str) -> Iterator[Word]:
        """The words of a piece with times in the recording, moved out of the silence between them."""
        from transformers.models.whisper.tokenization_whisper import (
            LANGUAGES,
            _combine_tokens_into_words,
        )

        words, _, places = _combine_tokens_into_words(
            self.tokenizer, heard.ids, LANGUAGES.get(language, language)
        )
        offset, until = piece.start / SAMPLE_RATE, piece.speech[0][0]
        for word, place in zip(words, places, strict=True):
            start, end = (float(heard.times[at]) + offset for at in (place[0], place[-1] + 1))
            start, end = into_speech(start, end, piece.speech)
            start = max(start, until)
            until = max(start, end)
            text = "".join(letter if letter.isprintable() else " " for letter in word)  # all in one line
            if text.strip():
                yield Word(round(start, 2), round(until, 2), text)


def pieces_of(speech: Sequence[tuple[float, float]], samples: int) -> list[_Piece]:
    """Joins stretches of speech (s) to pieces of at most `PIECE` seconds, each with a margin around it."""
    groups: list[list[tuple[float, float]]] = []
    for span in speech:
        longest = PIECE - 2 * MARGIN
        if groups and span[1] - groups[-1][0][0] <= longest and span[0] - groups[-1][-1][1] <= GAP:
            groups[-1].append(span)
        else:
            groups.append([span])
    return [
        _Piece(
            max(0, round((group[0][0] - MARGIN) * SAMPLE_RATE)),
            min(samples, round((group[-1][1] + MARGIN) * SAMPLE_RATE)),
            group,
        )
        for group in groups
    ]


def language_code(name: str) -> str:
    """Whisper's code of a language: "de" for "de" or "German".

    Raises:
        ConfigError: if Whisper does not know it.
    """
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    code = TO_LANGUAGE_CODE.get(name.lower(), name.lower())
    if code not in TO_LANGUAGE_CODE.values():
        raise ConfigError(f"{name}: Whisper knows no such language: give a code such as en, or leave it out")
    return code
