"""`mllm eval NAME…`: evaluates a checkpoint or a server on benchmarks.

Each benchmark of the entry point group `mllm.benchmarks` is a subcommand. Its options are its constructor's
parameters and those of `run_benchmarks`, which all benchmarks share. Several names run one after another.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from eval.benchmark import Benchmark, Candidate, Subject, benchmark_names, load_benchmark
from mllm.errors import ConfigError, MllmError
from mllm.records.answers import Generation

if TYPE_CHECKING:
    from rich.console import Console

    from eval.run import SplitResult
    from eval.sections import Eval
    from mllm.answerer import Answerer

Model = Annotated[
    str | None,
    typer.Option(help="Checkpoint folder or hub id. Default: the one that ships, unless --url."),
]
Url = Annotated[
    str | None,
    typer.Option(help="Ask this OpenAI-compatible server; with --model too, that checkpoint is searched."),
]
ServedModel = Annotated[str | None, typer.Option(help="The model's name at --url. Default: its only one.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the results. Default: runs/eval/MODEL.")]
Blind = Annotated[bool, typer.Option(help="Ask everything once more without the recordings.")]
Batch = Annotated[int | None, typer.Option(min=1, help="Questions at once, in this process.")]
Concurrent = Annotated[int, typer.Option(min=1, help="Requests at once, at --url.")]
FileUrls = Annotated[bool, typer.Option(help="Send paths to --url, which must be allowed to read them.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer.")]
DType = Annotated[str, typer.Option(help="float32 or bfloat16, in this process.")]
Features = Annotated[
    Path | None, typer.Option(help="Where features of the towers are kept, for training and this alike.")
]
Transcripts = Annotated[
    bool, typer.Option("--transcripts", help="Put what is said before the questions, in this process.")
]
WRITES = "Writes metrics.json, predictions.jsonl and report.png, and prints the tables."


class Verbs(TyperGroup):
    """The installed benchmarks as subcommands; several names in a row make one command that runs them all."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name in benchmark_names():
            self.commands[name] = TyperCommand(name)

    def list_commands(self, ctx: Any) -> list[str]:
        """The names for `--help`, which alone imports all benchmarks, to show a summary of each."""
        for name, command in self.commands.items():
            command.help = _summary(name)
        return list(self.commands)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command for all leading benchmark names, and the remaining arguments."""
        names = list(takewhile(self.commands.__contains__, args))
        if not names:
            return super().resolve_command(ctx, args)
        command, rest = command_of(names), args[len(names) :]
        if (
            rest
            and not rest[0].startswith("-")
            and all(one.param_type_name == "option" for one in command.params)
        ):
            load_benchmark(rest[0])  # says that there is none
        return " ".join(names), command, rest


app = typer.Typer(cls=Verbs, no_args_is_help=True, subcommand_metavar="NAME... [OPTIONS]")


@app.callback()
def main() -> None:
    """Evaluate a checkpoint or a server on benchmarks; several names run one after another."""


def command_of(names: Sequence[str]) -> Any:
    """Builds the command that runs these benchmarks.

    Raises:
        MllmError: if one cannot be loaded, or their options contradict each other.
    """
    kinds = [load_benchmark(name) for name in dict.fromkeys(names)]
    shared = inspect.signature(run_benchmarks, eval_str=True).parameters
    own = [inspect.signature(kind, eval_str=True).parameters for kind in kinds]
    parameters: dict[str, inspect.Parameter] = {}
    for kind, options in zip(kinds, own, strict=True):
        for name, parameter in options.items():
            if name in shared:
                raise ConfigError(
                    f"the benchmark '{kind.name}' has an option that all have: rename its {name}"
                )
            known = parameters.setdefault(name, parameter)
            if (known.annotation, known.default) != (parameter.annotation, parameter.default):
                raise ConfigError(f"--{name} means two things to {' and '.join(names)}: run them one by one")
    parameters |= {name: parameter for name, parameter in shared.items() if name != "benchmarks"}

    def run(**values: Any) -> None:
        chosen = [
            kind(**{name: values[name] for name in options}) for kind, options in zip(kinds, own, strict=True)
        ]
        run_benchmarks(chosen, **{name: values[name] for name in shared if name != "benchmarks"})

    keyword = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.Signature([one.replace(kind=keyword) for one in parameters.values()])
    setattr(run, "__signature__", signature)  # noqa: B010  mypy knows no such attribute
    run.__annotations__ = {}
    help = (
        f"{inspect.getdoc(kinds[0])}\n\n{WRITES}" if len(kinds) == 1 else f"{' and '.join(names)}. {WRITES}"
    )
    verb = typer.Typer(add_completion=False)
    verb.command(name=" ".join(names), help=help)(run)
    return typer.main.get_command(verb)


def run_benchmarks(
    benchmarks: Sequence[Benchmark],
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
    transcripts: Transcripts = False,
) -> None:
    """Evaluates a model on benchmarks. Options left out take their values from its experiment."""
    from rich.console import Console

    if served_model is not None and url is None:
        raise ConfigError("--served-model names a model at --url: give that too, or a checkpoint as --model")
    if transcripts and url is not None:
        raise ConfigError("--url asks a server: leave out --transcripts, and start that with --transcripts")
    defaults = _defaults(model, url)
    local = None
    if model is not None or url is None:
        local = _local(model, dtype, batch or defaults.batch, features, transcripts)
    subject = Subject(defaults, remote=url is not None, windows=local.processor.spec if local else None)
    for benchmark in benchmarks:
        benchmark.prepare(subject)
    candidate = _candidate(local, url, served_model, concurrent, file_urls)
    name = candidate.backend.name
    console = Console()
    for benchmark in benchmarks:
        generation = benchmark.generation or Generation(max_tokens=defaults.max_new_tokens)
        if max_tokens:
            generation = replace(generation, max_tokens=max_tokens)
        results = {
            split: _evaluated(benchmark, split, candidate, generation, blind, console)
            for split in benchmark.splits
        }
        how: dict[str, Any] = {"backend": "openai" if url else "transformers"}
        how |= {"dtype": None if url else dtype} | ({"transcripts": True} if transcripts else {})
        header = {"benchmark": benchmark.title, "model": name, **how, **benchmark.settings}
        folder = out or Path("runs/eval") / _folder_name(name)
        if len(benchmarks) > 1:
            folder /= benchmark.name
        elif out is None:
            folder /= benchmark.folder
        _report(header | {"max_tokens": generation.max_tokens}, results, folder, console)


def _local(model: str | None, dtype: str, batch: int, features: Path | None, transcripts: bool) -> Answerer:
    """Loads the checkpoint into this process."""
    from mllm.answerer import Answerer
    from mllm.models.feature_cache import FeatureCache, freeze_and_keep

    said = "whisper-base" if transcripts else None
    local = Answerer.from_pretrained(model, dtype, batch=batch, isolated=True, transcripts=said)
    if features:
        freeze_and_keep(local.model, FeatureCache(features))
    return local


def _candidate(
    local: Answerer | None, url: str | None, served_model: str | None, concurrent: int, file_urls: bool
) -> Candidate:
    """The model under evaluation: a server if there is one; its embedder always runs in this process."""
    from eval.run import weights_digest
    from mllm.answerer_remote import RemoteAnswerer
    from mllm.search.embedder import Embedder

    embedder = None
    if local and local.model.config.space_config is not None:
        embedder = Embedder(local.model, local.processor, name=local.name)
    if url is not None:
        server = RemoteAnswerer(url, served_model, concurrent=concurrent, file_urls=file_urls)
        return Candidate(server, server.name, embedder, local)
    assert local is not None
    return Candidate(local, weights_digest(local.model), embedder, local)


def _evaluated(
    benchmark: Benchmark,
    split: str,
    candidate: Candidate,
    generation: Generation,
    blind: bool,
    console: Console,
) -> SplitResult:
    """Evaluates one split with a progress bar, or without a terminal with a line for each tenth."""
    from rich.progress import Progress

    from eval.run import collect, evaluate

    questions = collect(benchmark, split)
    total = len(questions) * (2 if blind else 1)
    tenth = max(1.0, total / 10)  # some benchmarks have targets and no questions
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"{split}: {len(questions)} questions", total=total)
        bar = progress.tasks[0]

        def advance(count: int) -> None:
            before = bar.completed
            progress.advance(task, count)
            if not console.is_terminal and bar.completed // tenth > before // tenth:
                console.print(f"{split}: {bar.completed:.0f} of {total} answers", highlight=False)

        return evaluate(benchmark, split, questions, candidate, generation, blind, advance)


def _report(header: dict[str, Any], results: dict[str, SplitResult], folder: Path, console: Console) -> None:
    """Writes the result files and prints the tables."""
    from eval import report
    from eval.run import write_results

    header |= {"created": datetime.now(UTC).isoformat(timespec="seconds")}
    metrics = write_results(folder, header, results)
    report.draw_page(metrics, folder / "report.png")
    report.print_tables(metrics, console)
    console.print(f"{folder}/metrics.json, predictions.jsonl, report.png", highlight=False, soft_wrap=True)


def _folder_name(model: str) -> str:
    """A folder name for a model."""
    return re.sub(r"[^\w.-]+", "-", model.rstrip("/")).strip("-")[-60:] or "model"


def _defaults(model: str | None, url: str | None) -> Eval:
    """The section `eval` of the experiment in the checkpoint folder, or its defaults."""
    from eval.sections import Eval
    from mllm.experiment import load_experiment
    from mllm.models.checkpoint import experiment_file

    return (
        Eval() if model is None and url is not None else load_experiment(experiment_file(model)).section(Eval)
    )


def _summary(name: str) -> str:
    """A one-line description of a benchmark for the list of subcommands."""
    try:
        return (inspect.getdoc(load_benchmark(name)) or "").partition("\n\n")[0]
    except MllmError as error:
        return f"unavailable: {error}"
