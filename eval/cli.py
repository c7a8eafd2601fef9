"""`mllm eval …`: score a checkpoint or a server."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Score a checkpoint or a server.")

SPLITS = ("val", "comp")


@app.callback()
def main() -> None:
    """Score a checkpoint or a server."""


Model = Annotated[
    str | None,
    typer.Option(help="Checkpoint folder or hub id. Default: the one that ships, unless --url."),
]
Url = Annotated[
    str | None,
    typer.Option(help="Ask this OpenAI-compatible server; with --model too, that checkpoint is searched."),
]
ServedModel = Annotated[str | None, typer.Option(help="The model's name at --url. Default: its only one.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the results. Default: runs/eval/NAME.")]
Blind = Annotated[bool, typer.Option(help="Ask everything once more without the recordings.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Questions at once, in this process.")]
Concurrent = Annotated[int, typer.Option(min=1, help="Requests at once, at --url.")]
FileUrls = Annotated[bool, typer.Option(help="Send paths to --url, which must be allowed to read them.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer.")]
DType = Annotated[str, typer.Option(help="float32 or bfloat16, in this process.")]
Features = Annotated[
    Path | None, typer.Option(help="Where features of the towers are kept, for training and this alike.")
]


@app.command("world")
def world(
    model: Model = None,
    url: Url = None,
    served_model: ServedModel = None,
    split: Annotated[list[str] | None, typer.Option(help="val or comp; repeatable. Default: both.")] = None,
    clips: Annotated[int | None, typer.Option(min=1, help="Scenes per split.")] = None,
    questions: Annotated[int | None, typer.Option(min=1, help="Most questions about a scene.")] = None,
    out: Out = None,
    media: Annotated[
        str, typer.Option(help="mp4: clips as real files, compressed; arrays: made in memory, quicker.")
    ] = "mp4",
    clips_folder: Annotated[Path, typer.Option(help="Where mp4 clips are kept between runs.")] = Path(
        "runs/eval/clips"
    ),
    blind: Blind = True,
    search_clips: Annotated[
        int | None, typer.Option(min=0, help="Clips to search among; 0 leaves search out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other scenes.")] = 0,
    batch: Batch = None,
    concurrent: Concurrent = 16,
    file_urls: FileUrls = False,
    max_tokens: MaxTokens = None,
    dtype: DType = "float32",
    features: Features = None,
) -> None:
    """Questions of the generated world by type, beside blind guesses; recall of search; one page of it all.

    Writes metrics.json, predictions.jsonl and report.png, and prints the tables. What is not said here comes
    from the section `eval` of the checkpoint's experiment.
    """
    from rich.console import Console

    from eval import world as benchmark
    from mllm.errors import ConfigError
    from mllm.records.source import open_source
    from mllm.search.embedder import Embedder

    settings = _settings(model, url)
    splits = split or settings.splits
    clips = clips or settings.clips
    questions = questions or settings.questions_per_clip
    search_clips = settings.retrieval_clips if search_clips is None else search_clips
    max_tokens = max_tokens or settings.max_new_tokens
    if wrong := [name for name in splits if name not in SPLITS]:
        raise ConfigError(f"--split is '{wrong[0]}': choose from {', '.join(SPLITS)}")
    if media not in ("mp4", "arrays"):
        raise ConfigError(f"--media is '{media}': choose mp4 or arrays")
    if url and media == "arrays":
        raise ConfigError("--media arrays never leave this process: with --url take --media mp4")

    backend, local = _backends(
        model, url, served_model, batch or settings.batch, concurrent, file_urls, max_tokens, dtype, features
    )
    embedder = None
    if local and search_clips and local.model.config.space_config is not None:
        embedder = Embedder(local.model, local.processor, name=local.name)
    prior = benchmark.train_prior()

    console = Console()
    results: dict[str, benchmark.SplitResult] = {}
    for name in splits:
        form = _form(local.processor) if local else ""
        if media == "mp4":
            console.print(f"[dim]{name}: clips as files in {clips_folder}[/]", highlight=False)
            source = benchmark.write_files(name, clips, questions, seed, clips_folder)
        else:
            source = open_source(f"world:{name},seed={seed},clips={clips},questions={questions}{form}")
        asked = benchmark.collect(source)
        pairs = (
            open_source(f"world:{name},seed={seed},clips={search_clips},media=av{form}") if embedder else None
        )
        results[name] = _evaluated(name, asked, backend, blind, console, embedder, pairs, prior)
    header = {"clips": clips, "questions_per_clip": questions, "seed": seed, "max_tokens": max_tokens}
    where = {"backend": "openai" if url else "transformers", "dtype": None if url else dtype, "media": media}
    _report(
        {"benchmark": "world", "model": backend.name, **where, **header},
        results,
        out or _folder(backend.name),
        console,
    )


@app.command("records")
def records(
    file: Annotated[Path, typer.Argument(help="A JSONL file of records.")],
    model: Model = None,
    url: Url = None,
    served_model: ServedModel = None,
    out: Out = None,
    blind: Blind = True,
    batch: Batch = None,
    concurrent: Concurrent = 16,
    file_urls: FileUrls = False,
    max_tokens: MaxTokens = None,
    dtype: DType = "float32",
    features: Features = None,
) -> None:
    """Questions of your own records by task, beside the majority answer and blind guesses.

    Questions whose recordings are missing or cannot be read are counted and left out.

    Writes metrics.json, predictions.jsonl and report.png, and prints the table.
    """
    from rich.console import Console

    from eval import world as benchmark
    from mllm.errors import ConfigError
    from mllm.records.source import open_source

    if file.is_dir():
        raise ConfigError(f"{file} is a folder: give the JSONL file that it was built from")
    settings = _settings(model, url)
    max_tokens = max_tokens or settings.max_new_tokens
    asked = benchmark.collect(open_source(str(file), media_must_exist=False))
    backend, _ = _backends(
        model, url, served_model, batch or settings.batch, concurrent, file_urls, max_tokens, dtype, features
    )
    console = Console()
    results = {file.stem: _evaluated(file.stem, asked, backend, blind, console)}
    where = {"backend": "openai" if url else "transformers", "dtype": None if url else dtype}
    header = {"benchmark": str(file), "model": backend.name, **where, "max_tokens": max_tokens}
    _report(header, results, out or _folder(backend.name) / file.stem, console)


def _backends(
    model: str | None,
    url: str | None,
    served_model: str | None,
    batch: int,
    concurrent: int,
    file_urls: bool,
    max_tokens: int,
    dtype: str,
    features: Path | None,
) -> tuple[Any, Any]:
    """Who answers, and the checkpoint in this process if there is one (beside a server it searches)."""
    from mllm.answerer import Answerer
    from mllm.answerer_remote import RemoteAnswerer
    from mllm.errors import ConfigError
    from mllm.models.feature_cache import FeatureCache, freeze_and_keep
    from mllm.records.answers import Generation

    if served_model is not None and url is None:
        raise ConfigError("--served-model names a model at --url: give that too, or a checkpoint as --model")
    generation = Generation(max_tokens=max_tokens)
    local = None
    if model is not None or url is None:
        local = Answerer.from_pretrained(model, dtype, generation=generation, batch=batch, isolated=True)
        if features:
            freeze_and_keep(local.model, FeatureCache(features))
    server = RemoteAnswerer(url, served_model, generation, concurrent, file_urls) if url else None
    return server or local, local


def _evaluated(
    name: str,
    asked: list[Any],
    backend: Any,
    blind: bool,
    console: Any,
    embedder: Any = None,
    pairs: Any = None,
    prior: Any = None,
) -> Any:
    """`world.evaluate` behind a progress bar."""
    from rich.progress import Progress

    from eval.world import evaluate

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"{name}: {len(asked)} questions", total=len(asked) * (2 if blind else 1))
        return evaluate(
            asked, backend, embedder, pairs, prior, blind, lambda count: progress.advance(task, count)
        )


def _folder(model: str) -> Path:
    """Where the results of a model go unless told."""
    return Path("runs/eval") / (re.sub(r"[^\w.-]+", "-", model.rstrip("/")).strip("-")[-60:] or "model")


def _report(header: dict[str, Any], results: dict[str, Any], folder: Path, console: Any) -> None:
    """Files and tables of an evaluation."""
    from eval import report
    from eval.world import write_results

    header |= {"created": datetime.now(UTC).isoformat(timespec="seconds")}
    metrics = write_results(folder, header, results)
    report.draw_page(metrics, folder / "report.png")
    report.print_tables(metrics, console)
    console.print(f"{folder}/metrics.json, predictions.jsonl, report.png", highlight=False, soft_wrap=True)


def _settings(model: str | None, url: str | None) -> Any:
    """The section `eval` of the experiment that lies in the checkpoint folder, or the defaults."""
    from eval.sections import Eval
    from mllm.models.checkpoint import experiment_of

    return Eval() if model is None and url is not None else experiment_of(model).section(Eval)


def _form(processor: Any) -> str:
    """The world drawn as the model's windows want it, so that nothing is resized or left out."""
    return (
        f",frames={processor.frames_per_window},window={processor.window_seconds},size={processor.image_size}"
    )
