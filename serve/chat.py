"""Ask about recordings, in this process (Hugging Face generate) or at any OpenAI-compatible server.

An engine takes messages (see `mllm.records.chat`) and streams the answer's text:

    for piece in LocalEngine.load("checkpoints/nano").stream(messages): print(piece, end="")

after which `engine.report` says, in one line, what of the recordings was seen or what the server counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Any, Protocol

from mllm.errors import MediaError, MllmError
from mllm.files import open_ordinary
from mllm.media.recording import probe
from mllm.records import chat
from mllm.records.openai_parts import to_openai

MODALITIES = ("video", "audio", "image")
HELP = "/video FILE  /audio FILE  /image FILE  add to the next question    /clear  start anew    /quit"

Media = list[tuple[str, str]]  # (modality, path or URL)


class Engine(Protocol):
    """Answers conversations; `report` is about the last answer."""

    report: str

    def check(self, modality: str, source: str) -> str:
        """Read a recording before a question needs it; says in one line what it holds.

        Raises:
            MediaError: if it cannot be used.
        """
        ...

    def stream(self, messages: Sequence[chat.Message]) -> Iterator[str]:
        """The answer, piece by piece."""
        ...


class LocalEngine:
    """A checkpoint in this process.

    Args:
        isolated: decode recordings in processes that may be lost (see `mllm.media.recording.load_clip`).
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        max_tokens: int = 128,
        temperature: float = 0.0,
        isolated: bool = False,
    ):
        self.model = model
        self.processor = processor
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.isolated = isolated
        self.report = ""
        self._media: dict[tuple, Any] = {}  # a recording is decoded once per conversation
        self._queries: tuple[list[Any], Any] = ([], None)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | None,
        max_tokens: int = 128,
        temperature: float = 0.0,
        isolated: bool = False,
    ) -> LocalEngine:
        """An engine for a checkpoint folder (None: the one that ships), on a GPU where there is one."""
        import torch

        from mllm.models.checkpoint import load

        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(*load(checkpoint, device=device), max_tokens, temperature, isolated)

    def check(self, modality: str, source: str) -> str:
        seen = self._features(modality, source, {}).seen
        return seen.line() if seen else modality

    def _features(self, modality: str, source: Any, options: dict[str, Any]) -> Any:
        key = (
            modality,
            source if isinstance(source, (str, Path, bytes)) else id(source),
            *sorted(options.items()),
        )
        if key not in self._media:
            require_kind(modality, source, self.isolated)
            self._media[key] = self.processor.media(source, modality, isolated=self.isolated, **options)
        return self._media[key]

    def stream(self, messages: Sequence[chat.Message]) -> Iterator[str]:
        from transformers import TextIteratorStreamer

        messages = chat.validate_messages(messages, to_answer=True)
        media = [self._features(*part) for part in chat.media_parts(messages)]
        encoded = self.processor.encode(messages, add_generation_prompt=True, media=media)
        inputs = self.processor.collate([encoded], "left")
        inputs.pop("labels")
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        self._reuse_queries(inputs, media)
        streamer = TextIteratorStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        sampling = (
            {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        )
        failures: list[BaseException] = []

        def generate() -> None:
            try:
                self.model.generate(**inputs, **sampling, max_new_tokens=self.max_tokens, streamer=streamer)
            except BaseException as error:
                failures.append(error)
                streamer.end()

        thread = Thread(target=generate, daemon=True)
        thread.start()
        yield from (piece for piece in streamer if piece)
        thread.join()
        if failures:
            raise failures[0]
        self.report = "; ".join(item.seen.line() for item in media if item.seen)

    def _reuse_queries(self, inputs: dict[str, Any], media: list[Any]) -> None:
        """What towers and Q-Formers make of the media does not depend on the question: keep it over turns."""
        import torch

        from mllm.models.processor import take_media

        tensors = take_media(inputs)
        if not tensors:
            return
        known, queries = self._queries
        if len(known) != len(media) or any(old is not new for old, new in zip(known, media, strict=True)):
            with torch.inference_mode():
                queries = self.model.model.query_outputs(**tensors)
            self._queries = (media, queries)
        inputs["media_queries"] = queries


class RemoteEngine:
    """A model behind an OpenAI-compatible API; recordings travel as data: URIs."""

    def __init__(self, url: str, model: str | None = None, max_tokens: int = 128, temperature: float = 0.0):
        import openai

        base = url.rstrip("/")
        self.client = openai.OpenAI(
            base_url=base if base.endswith("/v1") else f"{base}/v1", api_key=_api_key()
        )
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.report = ""
        try:
            self.model = model or next(iter(self.client.models.list())).id
        except openai.OpenAIError as error:
            raise MllmError(f"no OpenAI-compatible server at {url}: {_reason(error)}") from None

    def check(self, modality: str, source: str) -> str:
        if not source.startswith(("http://", "https://", "data:")):
            if not Path(source).exists():
                raise MediaError(f"no such file: {source}")
            open_ordinary(source).close()
            require_kind(modality, source)
        return modality

    def stream(self, messages: Sequence[chat.Message]) -> Iterator[str]:
        import openai

        for modality, source, _ in chat.media_parts(chat.validate_messages(messages)):
            require_kind(modality, source)
        try:
            chunks = self.client.chat.completions.create(
                model=self.model,
                messages=to_openai(messages),  # type: ignore[arg-type]
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                stream=True,
                stream_options={"include_usage": True},
            )
            for chunk in chunks:
                if chunk.usage:
                    self.report = (
                        f"{chunk.usage.prompt_tokens} tokens in, {chunk.usage.completion_tokens} out"
                    )
                if chunk.choices and chunk.choices[0].delta.content:
                    yield chunk.choices[0].delta.content
        except openai.OpenAIError as error:
            raise MllmError(f"the server at {self.client.base_url} says: {_reason(error)}") from None


def require_kind(modality: str, source: Any, isolated: bool = False) -> None:
    """Raises MediaError if a file is not what it is called: a film called an image, a song called a video.

    What cannot be read passes: whoever answers says what is wrong with it.
    """
    if not isinstance(source, str | Path) or "://" in str(source)[:20] or not Path(source).exists():
        return
    try:
        found = probe(source, isolated=isolated)
    except MediaError:
        return
    kind = "image" if found.is_image else "video" if found.has_video else "audio"
    lacks = {
        "image": "" if found.is_image else "it is no still picture",
        "video": "" if found.has_video else "it has no picture",
        "audio": "" if found.has_audio else "it has no sound",
    }[modality]
    if lacks:
        raise MediaError(f"{source}: {lacks}: give it as --{kind} (in a conversation: /{kind})")


def _api_key() -> str:
    import os

    return os.environ.get("OPENAI_API_KEY", "none")


def _reason(error: Exception) -> str:
    body = getattr(error, "body", None)
    if isinstance(body, dict) and body.get("message"):
        return str(body["message"])
    return str(error) or type(error).__name__


# --- the terminal ---------------------------------------------------------------------------------


def parse_words(words: Sequence[str], model: str | None = None) -> tuple[str | None, Media, str | None]:
    """`[CKPT] [--video FILE …] [QUESTION]` -> checkpoint, recordings in their order, question.

    Args:
        model: the checkpoint, if an option has named it.

    Raises:
        MllmError: an unknown option, an option without its file, a word too many, or one that is a path to
            nothing.
    """
    media: Media = []
    plain: list[str] = []
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option in [f"--{modality}" for modality in MODALITIES]:
            source = value if equals else next(rest, None)
            if not source:
                raise MllmError(f"{option} needs a file")
            media.append((option[2:], source))
        elif word.startswith("--") and len(word) > 2:
            raise MllmError(f"no option {option}: `mllm chat --help` lists them")
        elif word != "--":
            plain.append(word)
    checkpoint = plain.pop(0) if plain and (len(plain) > 1 or Path(plain[0]).is_dir()) else None
    if checkpoint is not None and model is not None:
        raise MllmError(f"two checkpoints, {checkpoint} and --model {model}: name one")
    checkpoint = model if checkpoint is None else checkpoint
    if len(plain) == 1 and len(plain[0].split()) == 1 and plain[0].startswith(("/", "./", "../", "~")):
        raise MllmError(f"no folder at {plain[0]}: give a checkpoint folder, or a question in words")
    if len(plain) > 1:
        raise MllmError(f"one question at a time: put it in quotes (got {' | '.join(plain)})")
    return checkpoint, media, plain[0] if plain else None


def user_message(media: Media, text: str) -> chat.Message:
    """Recordings first, then the question: the order in which the model was trained."""
    parts: list[dict[str, Any]] = [{"type": modality, modality: source} for modality, source in media]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def ask_once(engine: Engine, media: Media, question: str) -> str:
    """Print one answer as it comes, then what was seen. Returns the answer."""
    return _answer(engine, [user_message(media, question)])


def _answer(engine: Engine, messages: Sequence[chat.Message]) -> str:
    from rich.console import Console

    pieces = []
    for piece in engine.stream(messages):
        pieces.append(piece)
        print(piece, end="", flush=True)
    print()
    if engine.report:
        Console(stderr=True, highlight=False).print(f"({engine.report})", style="dim")
    return "".join(pieces)


def converse(engine: Engine, media: Media = ()) -> None:  # type: ignore[assignment]
    """Read questions until /quit or end of input; history is kept, recordings wait for the next question."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    console.print(HELP, style="dim", markup=False)
    messages: list[chat.Message] = []
    waiting: Media = []
    for modality, source in media:
        _add(engine, console, waiting, modality, source)
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        command, _, rest = line.partition(" ")
        if not line:
            continue
        if command in ("/quit", "/exit"):
            return
        if command == "/clear":
            messages, waiting = [], []
        elif command[1:] in MODALITIES and command[0] == "/":
            _add(engine, console, waiting, command[1:], rest.strip().strip("'\""))
        elif command.startswith("/"):
            console.print(HELP, style="dim", markup=False)
        else:
            turn = [*messages, user_message(waiting, line)]
            try:
                answer = _answer(engine, turn)
            except MllmError as error:
                console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
                continue
            except KeyboardInterrupt:
                print()
                continue
            messages, waiting = [*turn, {"role": "assistant", "content": answer}], []


def _add(engine: Engine, console: Any, waiting: Media, modality: str, source: str) -> None:
    try:
        console.print(f"{source}: {engine.check(modality, source)}", style="dim", markup=False)
        waiting.append((modality, source))
    except MllmError as error:
        console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
