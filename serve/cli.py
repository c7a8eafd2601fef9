"""`mllm serve` and `mllm chat`; `mllm index` and `mllm search` are imported on demand.

Both commands here accept unknown arguments: `serve` passes flags on to vLLM, `chat` preserves the order of
recordings of different kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mllm.errors import MllmError

FORWARDING = {"allow_extra_args": True, "ignore_unknown_options": True}

# Flags of vLLM that take several values, and those whose value may be a checkpoint folder.
LIST_FLAGS = (
    "--allowed-media-domains",
    "--api-key",
    "--cudagraph-capture-sizes",
    "--logits-processors",
    "--lora-modules",
    "--lora-target-modules",
    "--served-model-name",
)
FOLDER_FLAGS = ("--tokenizer", "--hf-config-path", "--generation-config")


def __getattr__(name: str) -> Any:
    if name == "index_app":
        from serve.upkeep import index_app

        return index_app
    if name == "search":
        from serve.search import search

        return search
    raise AttributeError(name)


ServeWords = Annotated[
    list[str] | None,
    typer.Argument(metavar="[CKPT] [any vLLM flag …]", help="Checkpoint folder first; then flags for vLLM."),
]
Model = Annotated[
    str | None, typer.Option(help="Checkpoint folder or hub id, as CKPT. Default: the one that ships.")
]
Host = Annotated[str | None, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")]
Port = Annotated[int | None, typer.Option(help="Port; 0 takes a free one.")]
MediaPaths = Annotated[
    list[Path] | None,
    typer.Option(help="Folder that file:// URLs may name; repeatable. None by default."),
]
MaxMegabytes = Annotated[float | None, typer.Option(min=0.001, help="Largest file accepted, in MB.")]
MaxSeconds = Annotated[float | None, typer.Option(min=0.1, help="Longest recording accepted, in seconds.")]
FetchSeconds = Annotated[
    float | None, typer.Option(min=0.1, help="Deadline for fetching one recording, in seconds.")
]
PrivateMedia = Annotated[
    bool,
    typer.Option("--allow-private-media", help="Fetch recordings from addresses inside the network, too."),
]
Transcripts = Annotated[
    bool,
    typer.Option("--transcripts", help="Put what is said in recordings, with times, before the question."),
]
Restarts = Annotated[
    int, typer.Option(min=0, help="How often in a row vLLM is started again after it ended by itself.")
]
Log = Annotated[Path | None, typer.Option(help="File for vLLM's output.")]


def serve(
    words: ServeWords = None,
    model: Model = None,
    host: Host = None,
    port: Port = None,
    allowed_media_path: MediaPaths = None,
    max_media_mb: MaxMegabytes = None,
    max_media_seconds: MaxSeconds = None,
    media_fetch_seconds: FetchSeconds = None,
    allow_private_media: PrivateMedia = False,
    transcripts: Transcripts = False,
    restarts: Restarts = 5,
    log: Log = None,
) -> None:
    """Serve a checkpoint with vLLM, OpenAI-compatible. Any flag not listed here goes to vLLM.

    Videos carry picture and sound: send them as video_url; also audio_url, input_audio, image_url. What is
    not said here comes from the section `serve` of the checkpoint's experiment.

    Recordings are fetched from the public internet alone, each within a deadline. --allowed-media-domains
    HOST … names the only hosts to fetch from, wherever they are.
    """
    from mllm.experiment import load_experiment
    from mllm.models.checkpoint import experiment_file
    from serve.engine_settings import MEGABYTE, is_given
    from serve.launcher import Server
    from serve.sections import Serve
    from serve.supervise import serve_forever

    checkpoint, words = parse_serve_words(words or [], model)
    settings = load_experiment(experiment_file(checkpoint)).section(Serve)
    for flag, value in (("--max-model-len", settings.max_model_len), ("--dtype", settings.dtype)):
        if value is not None and not is_given(flag, words):
            words += [flag, str(value)]
    server = Server(
        checkpoint,
        host=host or settings.host,
        port=settings.port if port is None else port,
        allowed_media=allowed_media_path or [],
        max_media_mb=max_media_mb or settings.max_bytes / MEGABYTE,
        max_media_seconds=max_media_seconds or settings.max_seconds,
        media_fetch_seconds=media_fetch_seconds,
        allow_private_media=allow_private_media,
        transcripts="whisper-base" if transcripts else None,
        flags=words,
        log=log,
    )
    raise typer.Exit(serve_forever(server, restarts))


serve.context_settings = FORWARDING  # type: ignore[attr-defined]


ChatWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CKPT] [--video|--audio|--image FILE …] [QUESTION]",
        help="Recordings as the model shall see them; without a question, a conversation starts.",
    ),
]
Isolated = Annotated[
    bool, typer.Option("--isolated", help="Decode in a process of its own, for recordings of strangers.")
]
Transcribe = Annotated[
    bool, typer.Option("--transcript", help="Put what is said, with times, before the question.")
]


def chat(
    words: ChatWords = None,
    model: Model = None,
    url: Annotated[str | None, typer.Option(help="Ask this OpenAI-compatible server instead.")] = None,
    served_model: Annotated[
        str | None, typer.Option(help="The model's name at --url. Default: its first.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest word.")] = 0.0,
    isolated: Isolated = False,
    transcript: Transcribe = False,
) -> None:
    """Ask about recordings: once, or in a conversation.

    mllm chat --video clip.mp4 --audio x.wav "Which bell is louder?"
    """
    from mllm.records.answers import Generation
    from serve.chat import ask_once, converse, make_backend, parse_words

    checkpoint, media, question = parse_words(words or [], model)
    generation = Generation(max_tokens=max_tokens, temperature=temperature)
    backend = make_backend(checkpoint, url, served_model, generation, isolated, transcript)
    if question is None:
        converse(backend, media, isolated)
    else:
        ask_once(backend, media, question, isolated)


chat.context_settings = FORWARDING  # type: ignore[attr-defined]


def parse_serve_words(words: Sequence[str], model: str | None) -> tuple[str | Path, list[str]]:
    """Parses `[CKPT] [vLLM flag …]` and --model into the checkpoint and vLLM's flags.

    Raises:
        MllmError: the checkpoint is named twice, or after flags, where vLLM would ignore it.
    """
    from mllm.models.checkpoint import find_shipped

    flags = list(words)
    named = flags.pop(0) if flags and not flags[0].startswith("-") else None
    flag, values = "", 0
    for word in flags:
        if word.startswith("-"):
            flag, values = word.split("=")[0].replace("_", "-"), int("=" in word)
        elif (values and flag not in LIST_FLAGS) or (flag not in FOLDER_FLAGS and _is_checkpoint(word)):
            raise MllmError(f"'{word}' stands behind flags: name the checkpoint first: `mllm serve {word} …`")
        else:
            values += 1
    if named is not None and model is not None:
        raise MllmError(f"two checkpoints, {named} and --model {model}: name one")
    chosen = model if named is None else named
    return (find_shipped() if chosen is None else chosen), flags


def _is_checkpoint(word: str) -> bool:
    return any((Path(word) / name).is_file() for name in ("config.json", "adapter_config.json"))
