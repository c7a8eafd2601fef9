"""A checkpoint in this process that answers questions about recordings: the only generate loop.

    answerer = Answerer.from_pretrained("nano")
    (answer,) = answerer.answer([messages])
    for piece in answerer.stream(messages): print(piece, end="")
    answerer.rank(messages, ["a bell", "three beeps"]).probabilities

The outputs of towers and Q-Formers do not depend on the question, so each recording is read and encoded once
for all questions and turns about it.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import torch

from mllm.errors import MediaError
from mllm.models.checkpoint import find_shipped, load
from mllm.models.encoded import IGNORE, Encoded, MediaFeatures, collate_media
from mllm.models.processor import MllmProcessor
from mllm.models.transcriber import Transcriber
from mllm.records import chat
from mllm.records.answers import Generation, Progress, Ranking, Unread, check_options
from mllm.records.conversation import Conversation, MediaPart
from mllm.records.templates import with_subtitles
from mllm.records.transcript import Transcript

if TYPE_CHECKING:
    from mllm.models.model import MediaQueries, MllmForConditionalGeneration

REMEMBERED_RECORDINGS = 64


@dataclass(frozen=True)
class _Part:
    """A media part of a message; parts with the same key are the same recording."""

    key: tuple
    modality: str = field(compare=False)
    source: Any = field(compare=False)
    options: dict[str, Any] = field(compare=False)

    @classmethod
    def of(cls, modality: str, source: Any, options: dict[str, Any]) -> _Part:
        key = (modality, _identity(source), *((name, _identity(options[name])) for name in sorted(options)))
        return cls(key, modality, source, options)


@dataclass(frozen=True)
class _Recording:
    """A recording encoded for the decoder; `features` without their tensors, which are no longer needed."""

    features: MediaFeatures
    queries: MediaQueries


@dataclass(frozen=True)
class _Prompt:
    """A conversation up to the answer."""

    messages: Conversation
    encoded: Encoded
    recordings: list[_Recording]


class Answerer:
    """A model and its processor, as a function from conversations to answers.

    Args:
        model: put into evaluation mode.
        processor: the model's own.
        name: name of the model in reports.
        generation: default settings of generation.
        batch: conversations that are answered at once, padded on the left.
        isolated: decode recordings in worker processes (see `mllm.media.recording.load_clip`).
        transcripts: writes down what is said in recordings, which is put before the questions about them: a
            `Transcriber`, or the Whisper model of one, such as "whisper-base".

    Attributes:
        report: one line on how much of its recordings the last `stream` saw.
    """

    def __init__(
        self,
        model: MllmForConditionalGeneration,
        processor: MllmProcessor,
        name: str = "",
        generation: Generation = Generation(),
        batch: int = 32,
        isolated: bool = False,
        transcripts: Transcriber | str | None = None,
    ):
        self.model = model.eval()
        self.processor = processor
        self.name = name or str(getattr(model.config, "_name_or_path", "") or "model")
        self.generation = generation
        self.batch = batch
        self.isolated = isolated
        if isinstance(transcripts, str):
            transcripts = Transcriber.from_pretrained(transcripts)
        self.transcriber = transcripts
        self.report = ""
        self._read_once = lru_cache(maxsize=REMEMBERED_RECORDINGS)(self._read)
        self._transcribed_once = lru_cache(maxsize=REMEMBERED_RECORDINGS)(self._transcribed)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path | None = None,
        dtype: torch.dtype | str = "float32",
        device: str | torch.device | None = None,
        **options: Any,
    ) -> Answerer:
        """The answerer of a checkpoint; `options` go to the class.

        Args:
            checkpoint: as in `mllm.load`; None takes the default one that ships.
            device: by default a GPU if there is one.

        Raises:
            MllmError: if there is no such checkpoint.
        """
        checkpoint = find_shipped() if checkpoint is None else checkpoint
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, processor = load(checkpoint, dtype=dtype, device=device)
        return cls(model, processor, name=str(checkpoint), **options)

    def check(self, modality: str, source: Any, **options: Any) -> str:
        """Reads a recording in advance, and returns one line about what the model sees of it.

        Raises:
            MediaError: if it cannot be read, or lacks what the modality needs.
        """
        seen = self._recording(modality, source, options).features.seen
        said = self._said(MediaPart({"type": modality, modality: source} | options))
        return (seen.line() if seen else modality) + (f"; {said.line()}" if said else "")

    @torch.inference_mode()
    def answer(
        self,
        conversations: Sequence[Sequence[chat.Message]],
        generation: Generation | None = None,
        progress: Progress = lambda count: None,
    ) -> list[str | Unread]:
        """One text per conversation, in order; an unreadable recording costs only the answers about it.

        Raises:
            ChatError: if a conversation is malformed or does not end with a user's message.
        """
        answers: list[str | Unread] = []
        for first in range(0, len(conversations), self.batch):
            prompts = [self._try_prompt(messages) for messages in conversations[first : first + self.batch]]
            readable = [prompt for prompt in prompts if isinstance(prompt, _Prompt)]
            texts = iter(self._generate(readable, generation or self.generation))
            answers += [next(texts) if isinstance(prompt, _Prompt) else prompt for prompt in prompts]
            progress(len(prompts))
        return answers

    def stream(self, messages: Sequence[chat.Message], generation: Generation | None = None) -> Iterator[str]:
        """The answer, piece by piece.

        Raises:
            ChatError: if the conversation is malformed or does not end with a user's message.
            MediaError: if a recording cannot be read.
        """
        from transformers import TextIteratorStreamer

        with torch.inference_mode():
            prompt = self._prompt(messages)
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        abandoned = Event()
        failures: list[BaseException] = []

        def stop(input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), abandoned.is_set(), device=input_ids.device)

        def generate() -> None:
            try:
                self._generate(
                    [prompt], generation or self.generation, streamer=streamer, stopping_criteria=[stop]
                )
            except BaseException as error:
                failures.append(error)
                streamer.end()

        thread = Thread(target=generate, daemon=True)
        thread.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:
            abandoned.set()  # if the caller stops early
            thread.join()
        if failures:
            raise failures[0]
        lines = [item.features.seen.line() for item in prompt.recordings if item.features.seen]
        self.report = "; ".join(
            lines + [said.line() for said in map(self._said, prompt.messages.media) if said]
        )

    @torch.inference_mode()
    def rank(self, messages: Sequence[chat.Message], options: Sequence[str]) -> Ranking:
        """How likely each option is as the answer; the conversation runs through the model only once.

        Raises:
            ChatError: if the conversation is malformed, or an option occurs twice.
            MediaError: if a recording cannot be read.
        """
        options = check_options(options)
        prompt = self._prompt(messages)
        read = self.model(**self._inputs([prompt]), use_cache=True, logits_to_keep=1)
        likelihoods: list[float] = []
        for first in range(0, len(options), self.batch):
            some = options[first : first + self.batch]
            likelihoods += self._likelihoods(prompt, some, read.logits, copy.deepcopy(read.past_key_values))
        return Ranking(options, tuple(likelihoods))

    def _likelihoods(
        self, prompt: _Prompt, options: Sequence[str], logits: torch.Tensor, cache: Any
    ) -> list[float]:
        """Log-likelihoods of a few options after a prompt.

        Args:
            logits: [1, 1, vocabulary], of the first token of an answer.
            cache: keys and values of the prompt; modified here.
        """
        start, media = len(prompt.encoded.input_ids), [item.features for item in prompt.recordings]
        tails: list[Encoded] = []
        for option in options:
            answered = prompt.messages.with_answer(option)
            whole = self.processor.encode(answered, media=media)
            tails.append(Encoded(whole.input_ids[start:], whole.labels[start:]))
        tensors = self._on_device(self.processor.collate(tails))
        ids, labels = tensors["input_ids"], tensors["labels"]
        mask = torch.cat([ids.new_ones(len(options), start), tensors["attention_mask"]], dim=1)
        cache.batch_repeat_interleave(len(options))
        behind = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True).logits
        logits = torch.cat([logits.expand(len(options), -1, -1), behind[:, :-1]], dim=1).float()
        counted = labels != IGNORE
        chosen = logits.log_softmax(-1).gather(-1, labels.where(counted, 0).unsqueeze(-1)).squeeze(-1)
        return chosen.where(counted, 0.0).sum(-1).tolist()

    # --- prompts --------------------------------------------------------------------------------------------

    def _prompt(self, messages: Sequence[chat.Message]) -> _Prompt:
        checked = chat.validate_messages(messages, to_answer=True)
        recordings = [self._recording(part.modality, part.source, part.options) for part in checked.media]
        media = [recording.features for recording in recordings]
        if self.transcriber is not None:
            checked = with_subtitles(checked, self._lines, self.processor.time_marks)
        encoded = self.processor.encode(checked, add_generation_prompt=True, media=media)
        return _Prompt(checked, replace(encoded, media=[]), recordings)

    def _try_prompt(self, messages: Sequence[chat.Message]) -> _Prompt | Unread:
        try:
            return self._prompt(messages)
        except MediaError as error:
            return Unread(str(error))

    def _generate(self, prompts: Sequence[_Prompt], generation: Generation, **options: Any) -> list[str]:
        """The answers of one batch; `options` go to `generate()`."""
        if not prompts:
            return []
        inputs = self._inputs(prompts)
        length = inputs["input_ids"].shape[1]
        limits = {"max_new_tokens": generation.max_tokens, "min_new_tokens": generation.min_tokens or None}
        sampling: dict[str, Any] = {"do_sample": False}
        if generation.temperature:
            sampling = {"do_sample": True, "temperature": generation.temperature, "top_p": generation.top_p}
        with torch.inference_mode(), _seeded(generation.seed):
            ids = self.model.generate(**inputs, **limits, **sampling, **options)
        return self.processor.tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)

    def _inputs(self, prompts: Sequence[_Prompt]) -> dict[str, Any]:
        """The model's inputs for a batch of prompts."""
        tensors = self.processor.collate([prompt.encoded for prompt in prompts], "left")
        del tensors["labels"]
        inputs = self._on_device(tensors)
        queries: list[dict[str, Any]] = [
            dict(recording.queries) for prompt in prompts for recording in prompt.recordings
        ]
        sides = {side for found in queries for side in found}
        if sides:
            inputs["media_queries"] = {
                side: torch.cat([found[side] for found in queries if side in found]) for side in sides
            }
        return inputs

    def _on_device(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {name: tensor.to(self.model.device) for name, tensor in tensors.items()}

    # --- recordings -----------------------------------------------------------------------------------------

    def _lines(self, part: MediaPart) -> list[dict[str, Any]]:
        said = self._said(part)
        return said.lines if said else []

    def _said(self, part: MediaPart) -> Transcript | None:
        """What is said in a recording; None without a transcriber, and for a picture."""
        if self.transcriber is None or part.modality == "image":
            return None
        return self._transcribed_once(_Part.of(part.modality, part.source, part.options))

    def _transcribed(self, part: _Part) -> Transcript:
        assert self.transcriber is not None
        return self.transcriber.transcribe(part.source, self.isolated, **part.options)

    def _recording(self, modality: str, source: Any, options: dict[str, Any]) -> _Recording:
        found = self._read_once(_Part.of(modality, source, options))
        if isinstance(found, Unread):
            raise MediaError(found.cause)
        return found

    def _read(self, part: _Part) -> _Recording | Unread:
        """Reads a recording and runs towers and Q-Formers over it; failures are cached, too."""
        try:
            features = self.processor.media(
                part.source, part.modality, isolated=self.isolated, **part.options
            )
        except MediaError as error:
            return Unread(str(error))
        with torch.inference_mode():
            queries = self.model.model.query_outputs(**self._on_device(collate_media([features])))
        return _Recording(replace(features, pixel_values=None, input_features=None), queries)


def _identity(value: Any) -> Any:
    """A key that identifies a source or an option: a file by path and state, an object by identity."""
    if isinstance(value, str | os.PathLike):
        path = os.fspath(value)
        try:
            state = os.stat(path)
        except (OSError, ValueError):  # a URL, or no such file
            return path
        return path, state.st_mtime_ns, state.st_size
    return value if isinstance(value, bytes | float | int) else id(value)


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """Seeds torch inside the block, and restores its random state afterwards."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
