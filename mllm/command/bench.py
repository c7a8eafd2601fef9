"""`mllm bench …`: measurements, each one command, a table and, on request, a JSON file.

A wing adds its own through the entry-point group `mllm.benches` (name -> function), since this floor may not
import it: `mllm bench serve` is one. Modules load when their command runs.
"""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Measure speed, beside a plain alternative on the same machine.")

BENCHES = "mllm.benches"  # entry point group
JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this file.")]

_OURS = {
    "media": "mllm.command.bench_media:bench_media",
    "qformer": "mllm.command.bench_qformer:bench_qformer",
    "align": "mllm.command.bench_align:bench_align",
}
_SUMMARIES = {
    "media": "Frames a second of mllm.media.recording, beside a plain decord loop at the same size.",
    "qformer": "Our Q-Former beside the transformers one: parameters, time, how far apart queries start.",
    "align": "Offsets of pairs whose offset is known, and the time of one beside librosa's DTW.",
    "data": "Building shards, reading them, epochs with kept features, each beside a plain alternative.",
    "augment": "Our augmentations beside those of libraries that are installed.",
    "serve": "Tokens a second and latency: vLLM beside Hugging Face generate, on the same weights.",
}


def report(table: Any, numbers: Any, json_file: Path | None, note: str = "") -> None:
    """Print a rich table and a note; write the numbers to a file, whole or not at all."""
    from rich.console import Console

    console = Console()
    console.print(table)
    if note:
        console.print(f"[dim]{note}[/]")
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        aside = json_file.with_name(json_file.name + ".part")
        aside.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
        aside.replace(json_file)


def _add(entry: EntryPoint) -> None:
    """A command that imports its module when it runs; that function's signature gives its options."""
    summary = _SUMMARIES.get(entry.name, f"Measured by {entry.dist.name if entry.dist else entry.value}.")
    takes_all = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

    @app.command(entry.name, help=summary, context_settings=takes_all)
    def run(context: typer.Context) -> None:
        inner = typer.Typer(add_completion=False)
        inner.command(entry.name, help=summary)(entry.load())
        status = inner(args=context.args, prog_name=context.command_path, standalone_mode=False)
        if isinstance(status, int) and status:
            raise typer.Exit(status)


for _entry in [
    *(EntryPoint(name, value, BENCHES) for name, value in _OURS.items()),
    *entry_points(group=BENCHES),
]:
    _add(_entry)
