"""The command `mllm`: finds its verbs through the entry-point group `mllm.commands`.

An entry's value is a `typer.Typer` (a group of verbs; with exactly one command of the entry's own name, that
verb itself) or a plain function with typer annotations (one verb; an attribute `context_settings` on it is
handed to typer). Only the chosen verb's module is imported, so `mllm --help` is quick, and a verb that cannot
be imported says so without disturbing the others.

Errors that the user can mend (`MllmError`) end the process with one line and the status that they carry.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, NoReturn

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

import mllm
from mllm import log
from mllm.errors import MllmError
from mllm.files import in_the_way

COMMANDS = "mllm.commands"  # entry point group
# This command as a process. -P: nothing is imported from the working folder, such as a user's own train.py.
COMMAND = (sys.executable, "-P", "-m", "mllm.command.cli")

# One line for each verb of this distribution, so that the help need not import them; in the order of use.
HELP = {
    "data": "Make, check and show data: the generated world, records.",
    "train": "Train: language model, contrastive adapters, instruction tuning.",
    "export": "Write a run as a checkpoint folder that vLLM serves.",
    "serve": "Serve a checkpoint with vLLM, OpenAI-compatible.",
    "chat": "Ask about a recording: once, or in a conversation.",
    "index": "Fill the retrieval index with recordings.",
    "search": "Find recordings and moments by a description.",
    "ask": "Answer from the recordings in the index.",
    "eval": "Score a checkpoint or a server.",
    "transcribe": "Write down what is said in recordings, or make subtitles.",
    "align": "Find how late sound, a recording or subtitles are.",
    "bases": "Fetch and check the pretrained models that checkpoints stand on.",
    "bench": "Measure speed: serving, media reading.",
}


class Verb(TyperCommand):
    """Stands for a verb in the help, and imports the real one when it is called."""

    def __init__(self, entry: EntryPoint) -> None:
        package = entry.dist.name if entry.dist else "another package"
        super().__init__(name=entry.name, help=HELP.get(entry.name, f"A verb of {package}."))
        self.entry = entry

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the real command: from here on typer works with that."""
        return _load(self.entry).make_context(info_name, args, parent=parent, **extra)


class Verbs(TyperGroup):
    """All installed verbs, none of them imported."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        found = {entry.name: entry for entry in entry_points(group=COMMANDS)}
        for name in sorted(
            found, key=lambda name: (list(HELP).index(name) if name in HELP else len(HELP), name)
        ):
            self.commands[name] = Verb(found[name])


app = typer.Typer(cls=Verbs, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mllm {mllm.__version__}")
        raise typer.Exit


@app.callback(epilog="`mllm VERB --help` says more. Errors with their origin: MLLM_TRACEBACK=1.")
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Video and sound in one language model: train it, serve it, search with it."""


def before_torch() -> None:
    """Sets variables that torch reads once, on import; the user's own values win.

    Threads that spin while they wait for one another make two-thread work ten times slower, and more, as soon
    as the machine has anything else to do (`scripts/wait_policy.py` measures it).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs `mllm` and exits: 0 if all went well, else with the error's `exit_status`."""
    before_torch()
    # Child processes, those of vLLM and torch included, do not import from the working folder either.
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    try:
        log.set_up()
        typer.main.get_group(app).main(args=arguments, prog_name="mllm")
    except MllmError as error:
        if os.environ.get("MLLM_TRACEBACK"):
            raise
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        sys.exit(error.exit_status)
    sys.exit(0)


def _load(entry: EntryPoint) -> Any:
    """The typer command behind an entry point.

    Raises:
        MllmError: its module cannot be imported; the message holds the reason.
    """
    try:
        value = entry.load()
    except MllmError:
        raise
    except Exception as error:
        if os.environ.get("MLLM_TRACEBACK"):
            raise
        remedy = in_the_way(entry.module) or "run `make setup`, or see the whole error with MLLM_TRACEBACK=1"
        raise MllmError(
            f"`mllm {entry.name}` is unavailable: {type(error).__name__}: {error}; {remedy}"
        ) from error
    if isinstance(value, typer.Typer):
        return _group_or_verb(value, entry.name)
    return _verb(value, entry.name, getattr(value, "context_settings", None))


def _group_or_verb(group: typer.Typer, name: str) -> Any:
    commands = group.registered_commands
    if len(commands) == 1 and not group.registered_groups and not group.registered_callback:
        command = commands[0]
        assert command.callback is not None
        if (command.name or command.callback.__name__) == name:
            return _verb(command.callback, name, command.context_settings)
    loaded = typer.main.get_group(group)
    loaded.no_args_is_help = loaded.no_args_is_help or not loaded.invoke_without_command
    return loaded


def _verb(function: Callable[..., Any], name: str, context_settings: dict[Any, Any] | None) -> Any:
    single = typer.Typer(add_completion=False)
    single.command(name=name, context_settings=context_settings)(function)
    return typer.main.get_command(single)


if __name__ == "__main__":
    if not sys.flags.safe_path:  # `python -m` puts the working folder first
        sys.path.append(sys.path.pop(0))
    main()
