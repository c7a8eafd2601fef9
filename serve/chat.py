"""Questions about recordings in the terminal, one or a conversation.

The answers come from a `Backend` (see `mllm.records.answers`): a checkpoint in this process or a server.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.errors import MediaError, MllmError
from mllm.media.recording import probe
from mllm.records import chat
from mllm.records.answers import Backend, Generation

if TYPE_CHECKING:
    from rich.console import Console

MODALITIES = ("video", "audio", "image")
HELP = "/video FILE  /audio FILE  /image FILE  add to the next question    /clear  start anew    /quit"

Media = list[tuple[str, str]]  # (modality, path or URL)


def make_backend(
    checkpoint: str | None,
    url: str | None,
    served_model: str | None,
    generation: Generation,
    isolated: bool = False,
    transcripts: bool = False,
) -> Backend:
    """A server's model if `url` is given, else a checkpoint in this process.

    Args:
        transcripts: put what is said in recordings before the questions.

    Raises:
        MllmError: if there is no such checkpoint or server, or the arguments exclude each other.
    """
    if url is None:
        if served_model is not None:
            raise MllmError(
                "--served-model names a model at --url: give that too, or a checkpoint as --model"
            )
        from mllm.answerer import Answerer

        said = "whisper-base" if transcripts else None
        return Answerer.from_pretrained(
            checkpoint, generation=generation, isolated=isolated, transcripts=said
        )
    if transcripts:
        raise MllmError("--url asks a server: leave out --transcript, and start that with --transcripts")
    if checkpoint is not None:
        raise MllmError(
            f"--url asks a server, which has its own model: leave out the checkpoint {checkpoint}, or name "
            "one of the server's models with --served-model"
        )
    from mllm.answerer_remote import RemoteAnswerer

    return RemoteAnswerer(url, served_model, generation)


def check(backend: Backend, modality: str, source: str, isolated: bool = False) -> str:
    """Checks a recording before it is needed for an answer; returns a one-line description.

    Args:
        isolated: probe it in a disposable process.

    Raises:
        MediaError: if it cannot be used, or lacks the named modality, such as a song given as a video.
    """
    _require_kind(modality, source, isolated)
    return backend.check(modality, source)


def _require_kind(modality: str, source: str, isolated: bool) -> None:
    if "://" in source[:20] or not Path(source).exists():
        return
    try:
        found = probe(source, isolated=isolated)
    except MediaError:
        return  # the backend reports what is wrong with it
    kind = "image" if found.is_image else "video" if found.has_video else "audio"
    lacks = {
        "image": "" if found.is_image else "it is no still picture",
        "video": "" if found.has_video else "it has no picture",
        "audio": "" if found.has_audio else "it has no sound",
    }[modality]
    if lacks:
        raise MediaError(f"{source}: {lacks}: give it as --{kind} (in a conversation: /{kind})")


# --- the terminal ---------------------------------------------------------------------------------


def parse_words(words: Sequence[str], model: str | None = None) -> tuple[str | None, Media, str | None]:
    """Parses `[CKPT] [--video FILE …] [QUESTION]` into checkpoint, recordings in order, and question.

    Args:
        model: the checkpoint given as an option.

    Raises:
        MllmError: an unknown option, an option without its file, a surplus argument, or a path that does not
            exist.
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
    """A user turn: recordings first, then the question, as in training."""
    parts: list[dict[str, Any]] = [{"type": modality, modality: source} for modality, source in media]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def ask_once(backend: Backend, media: Media, question: str, isolated: bool = False) -> str:
    """Prints one answer as it is generated, then what the model saw. Returns the answer."""
    for modality, source in media:
        check(backend, modality, source, isolated)
    return print_answer(backend, [user_message(media, question)])


def print_answer(backend: Backend, messages: Sequence[chat.Message]) -> str:
    """Prints an answer as it is generated, then what the model saw. Returns the answer."""
    from rich.console import Console

    pieces = []
    for piece in backend.stream(messages):
        pieces.append(piece)
        print(piece, end="", flush=True)
    print()
    if backend.report:
        Console(stderr=True, highlight=False).print(f"({backend.report})", style="dim")
    return "".join(pieces)


def converse(backend: Backend, media: Media | None = None, isolated: bool = False) -> None:
    """Reads questions until /quit or end of input; recordings are attached to the next question."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    console.print(HELP, style="dim", markup=False)
    messages: list[chat.Message] = []
    waiting: Media = []

    def add(modality: str, source: str) -> None:
        try:
            console.print(
                f"{source}: {check(backend, modality, source, isolated)}", style="dim", markup=False
            )
            waiting.append((modality, source))
        except MllmError as error:
            _print_error(console, error)

    for modality, source in media or []:
        add(modality, source)
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
            add(command[1:], rest.strip().strip("'\""))
        elif command.startswith("/"):
            console.print(HELP, style="dim", markup=False)
        else:
            turn = [*messages, user_message(waiting, line)]
            try:
                answer = print_answer(backend, turn)
            except MllmError as error:
                _print_error(console, error)
                continue
            except KeyboardInterrupt:
                print()
                continue
            messages, waiting = [*turn, {"role": "assistant", "content": answer}], []


def _print_error(console: Console, error: MllmError) -> None:
    console.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
