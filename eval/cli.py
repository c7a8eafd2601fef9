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


@app.command("world")
def world(
    model: Annotated[
        str | None,
        typer.Option(help="Checkpoint folder or hub id. Default: the one that ships, unless --url."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Ask this OpenAI-compatible server; with --model too, that checkpoint is searched."
        ),
    ] = None,
    served_model: Annotated[
        str | None, typer.Option(help="The model's name at --url. Default: its only one.")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="val or comp; repeatable. Default: both.")] = None,
    clips: Annotated[int | None, typer.Option(min=1, help="Scenes per split.")] = None,
    questions: Annotated[int | None, typer.Option(min=1, help="Most questions about a scene.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results. Default: runs/eval/NAME.")] = None,
    media: Annotated[
        str, typer.Option(help="mp4: clips as real files, compressed; arrays: made in memory, quicker.")
    ] = "mp4",
    clips_folder: Annotated[Path, typer.Option(help="Where mp4 clips are kept between runs.")] = Path(
        "runs/eval/clips"
    ),
    blind: Annotated[bool, typer.Option(help="Ask everything once more without the recordings.")] = True,
    search_clips: Annotated[
        int | None, typer.Option(min=0, help="Clips to search among; 0 leaves search out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other scenes.")] = 0,
    batch: Annotated[int | None, typer.Option(min=1, help="Questions at once, in this process.")] = None,
    concurrent: Annotated[int, typer.Option(min=1, help="Requests at once, at --url.")] = 16,
    file_urls: Annotated[
        bool, typer.Option(help="Send paths to --url, which must be allowed to read them.")
    ] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, in this process.")] = "float32",
    features: Annotated[
        Path | None, typer.Option(help="Where features of the towers are kept, for training and this alike.")
    ] = None,
) -> None:
    """Questions of the generated world by type, beside blind guesses; recall of search; one page of it all.

    Writes metrics.json, predictions.jsonl and report.png, and prints the tables. What is not said here comes
    from the section `eval` of the checkpoint's experiment.
    """
    from rich.console import Console
    from rich.progress import Progress

    from eval import report
    from eval import world as benchmark
    from eval.backends import Backend, HfBackend, OpenAIBackend
    from mllm.cache import FeatureCache, freeze_and_keep
    from mllm.embedder import Embedder
    from mllm.errors import ConfigError
    from mllm.records import open_source

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

    local = (
        HfBackend.from_pretrained(model, dtype, batch=batch or settings.batch, max_tokens=max_tokens)
        if model or not url
        else None
    )
    if local and features:
        freeze_and_keep(local.model, FeatureCache(features))
    backend: Backend = (
        local if local and not url else OpenAIBackend(url, served_model, concurrent, max_tokens, file_urls)
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
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task(
                f"{name}: {len(asked)} questions", total=len(asked) * (2 if blind else 1)
            )
            tell = lambda count, task=task: progress.advance(task, count)  # noqa: E731
            results[name] = benchmark.evaluate(asked, backend, embedder, pairs, prior, blind, tell)

    folder = out or Path("runs/eval") / (
        re.sub(r"[^\w.-]+", "-", backend.name.rstrip("/")).strip("-")[-60:] or "model"
    )
    header: dict[str, Any] = {
        "benchmark": "world",
        "model": backend.name,
        "backend": "openai" if url else "transformers",
        "dtype": None if url else dtype,
        "media": media,
        "clips": clips,
        "questions_per_clip": questions,
        "seed": seed,
        "max_tokens": max_tokens,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    metrics = benchmark.write_results(folder, header, results)
    report.draw_page(metrics, folder / "report.png")
    report.print_tables(metrics, console)
    console.print(f"{folder}/metrics.json, predictions.jsonl, report.png", highlight=False, soft_wrap=True)


def _settings(model: str | None, url: str | None) -> Any:
    """The section `eval` of the experiment that lies in the checkpoint folder, or the defaults."""
    from mllm.checkpoint import experiment_of
    from mllm.experiment import Eval

    return Eval() if model is None and url else experiment_of(model).eval


def _form(processor: Any) -> str:
    """The world drawn as the model's windows want it, so that nothing is resized or left out."""
    return (
        f",frames={processor.frames_per_window},window={processor.window_seconds},size={processor.image_size}"
    )
