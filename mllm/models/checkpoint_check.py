"""Checks from its files alone that a checkpoint folder is complete: without a model, without torch.

Errors are one line that names the file and the remedy.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mllm.errors import MllmError

Shapes = dict[str, tuple[int, ...]]  # of weights, by name

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BASES, DELTAS = "bases.json", "deltas.safetensors"  # in place of WEIGHTS, see `deltas`
NEEDED = ("processor_config.json", "tokenizer_config.json", "tokenizer.json")
REMEDY = "copy the whole checkpoint again, or write it anew with `mllm export`"


def check_folder(folder: Path) -> Shapes:
    """Checks every file of a folder with all weights, and returns their shapes.

    Raises:
        MllmError: if a file is missing, truncated, damaged, or of another kind of model.
    """
    check_files(folder)
    return checkpoint_shapes(folder)


def check_files(folder: Path) -> None:
    """Raises MllmError if a file beside the weights is missing, damaged, or of another kind of model."""
    check_config(folder)
    check_processor(folder)
    read_json(folder / "generation_config.json")


def check_config(folder: Path) -> None:
    """Raises MllmError unless config.json describes an mllm model."""
    kind = read_json(folder / "config.json").get("model_type")
    if kind == "mllm":
        return
    what = f"is of a '{kind}' model" if kind else "names no model_type"
    raise MllmError(
        f"{folder / 'config.json'} {what}, not of an mllm checkpoint: give one, or name this folder as "
        "model.decoder in an experiment and train"
    )


def check_processor(folder: Path) -> None:
    """Raises MllmError if a file that `load_processor` reads is missing or damaged."""
    for name in NEEDED:
        read_json(folder / name)
    template = folder / "chat_template.jinja"
    if template.exists():
        _check_template(template)


def _check_template(path: Path) -> None:
    from jinja2 import Environment, TemplateSyntaxError

    text = read_text(path)
    try:
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except TemplateSyntaxError as error:
        if "unknown tag" not in str(error):  # transformers adds tags, such as {% generation %}
            raise MllmError(f"{path} is damaged (line {error.lineno}: {error.message}): {REMEDY}") from None
    if "messages" not in text:
        raise MllmError(f"{path} is damaged (no template of messages): {REMEDY}")


def checkpoint_shapes(folder: Path) -> Shapes:
    """The shapes of all weights in a folder, in one file or in shards.

    Raises:
        MllmError: if a file is missing, truncated or damaged, or lacks a weight that the index lists.
    """
    if not (folder / INDEX).exists():
        return weight_shapes(folder / WEIGHTS)
    shapes: Shapes = {}
    for shard, names in shards(folder).items():
        held = weight_shapes(folder / shard)
        if lost := sorted(names - held.keys()):
            raise MllmError(f"{folder / shard} lacks {lost[0]}, which {INDEX} says it holds: {REMEDY}")
        shapes |= held
    return shapes


def shards(folder: Path) -> dict[str, set[str]]:
    """The files over which weights are spread, in order, each with the names of the weights in it.

    Raises:
        MllmError: if the index is damaged.
    """
    shard_of = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(name, str) for name in shard_of.values()):
        raise MllmError(f"{folder / INDEX} has no weight_map of names to files: {REMEDY}")
    found: dict[str, set[str]] = {shard: set() for shard in sorted(set(shard_of.values()))}
    for name, shard in shard_of.items():
        found[shard].add(name)
    return found


def weight_shapes(path: Path) -> Shapes:
    """The shapes in the header of one safetensors file.

    Raises:
        MllmError: if it is missing, truncated, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            start = file.read(40)
        if start.startswith(b"version https://git-lfs"):
            raise MllmError(f"{path} is a pointer of Git LFS, not the weights: run `git lfs pull` there")
        with safe_open(path, framework="np") as weights:
            return {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    except OSError as error:
        raise _unreadable(path, error) from None
    except SafetensorError as error:
        size = path.stat().st_size
        raise MllmError(f"{path} is cut or damaged ({size:,} bytes; {error}): {REMEDY}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        MllmError: if the file is missing, cannot be read, or holds anything but an object.
    """
    text = read_text(path)
    try:
        values = json.loads(text)
    except ValueError as error:  # also for numbers too long to parse
        reason = "it is empty" if not text.strip() else f"not JSON: {error}"
        raise MllmError(f"{path} is damaged ({reason}): {REMEDY}") from None
    except RecursionError:
        raise MllmError(f"{path} is damaged (nested without end): {REMEDY}") from None
    if not isinstance(values, dict):
        raise MllmError(f"{path} is damaged (a {type(values).__name__}, not an object): {REMEDY}")
    return values


def read_text(path: Path) -> str:
    """The text of a file. Raises MllmError if it is missing, cannot be read, or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise _unreadable(path, error) from None
    except UnicodeDecodeError:
        raise MllmError(f"{path} is damaged (not UTF-8 text): {REMEDY}") from None


def _unreadable(path: Path, error: OSError) -> MllmError:
    if not path.exists() and not path.is_symlink():
        return MllmError(f"{path} is missing: {REMEDY}")
    return MllmError(f"{path} cannot be read ({error.strerror or error}): {REMEDY}")


@contextmanager
def in_one_line(what: str, remedy: str = REMEDY) -> Iterator[None]:
    """Turns whatever a library raises over damaged files into a one-line MllmError.

    MLLM_TRACEBACK=1 shows the origin.
    """
    try:
        yield
    except (MllmError, MemoryError):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f"{type(error).__name__}: {lines[0][:240]}" if lines else type(error).__name__
        raise MllmError(f"{what} cannot be read ({reason}): {remedy}") from error


# --- whether its parts fit together ---------------------------------------------------------------


def check_weights(folder: Path, held: Shapes, wanted: Shapes) -> None:
    """Checks that a folder's weights are exactly those of the model that its config.json describes.

    Args:
        held: shapes in the files.
        wanted: shapes of the model; a tied head may be in the files or not.

    Raises:
        MllmError: if they differ; the message names the first difference.
    """
    file = DELTAS if (folder / DELTAS).is_file() else WEIGHTS
    missing = sorted(wanted.keys() - held.keys())
    foreign = sorted(held.keys() - wanted.keys() - {"lm_head.weight"})
    for names, problem in ((missing, "missing"), (foreign, "of no part of the model")):
        if names:
            raise MllmError(
                f"{folder}: {len(names)} weights are {problem}, {names[0]} for one: {file} is damaged, of "
                f"another model than config.json, or another version of mllm wrote it; {REMEDY}"
            )
    for name, shape in wanted.items():
        if held[name] != shape:
            raise MllmError(
                f"{folder}: {name} is {list(held[name])} in {file}, and config.json asks for "
                f"{list(shape)}: one of the two is of another model; {REMEDY}"
            )


def check_fit(folder: Path, config: Any, processor: Any) -> None:
    """Raises MllmError if the processor's files do not belong to the model of config.json."""
    tokenizer = processor.tokenizer
    for name in ("bos_token", "eos_token", "pad_token"):
        # Some families have no BOS.
        wanted = name != "bos_token" or config.text_config.bos_token_id is not None
        if wanted and getattr(tokenizer, name) is None:
            raise MllmError(f"{folder / 'tokenizer_config.json'} is damaged (no {name}): {REMEDY}")
    theirs = type(processor).from_config(tokenizer, config)
    both = (processor, theirs)
    pairs = {
        name: tuple(getattr(each, name) for each in both) for name in ("spec", "time_marks", "space_prefix")
    }
    for side in sorted(processor.sides.keys() | theirs.sides.keys()):
        here, there = processor.sides.get(side) or {}, theirs.sides.get(side) or {}
        for name in sorted(here.keys() | there.keys()):
            pairs[f"{name} of the side {side}"] = (here.get(name), there.get(name))
    own = processor.space_tokenizer is not None
    pairs["space_tokenizer"] = (own, config.space_tokenizer)
    for name, token in processor.token_ids.items():
        pairs[f"the token of {name}"] = (token, getattr(config, f"{name}_token_id"))
    for name, (here, there) in pairs.items():
        if here != there:
            raise MllmError(
                f"{folder}: {name} is {here} by the processor's files and {there} by config.json: one of the "
                f"two is of another model; {REMEDY}"
            )
    vocabulary, rows = len(tokenizer), config.text_config.vocab_size
    if vocabulary > rows:
        raise MllmError(
            f"{folder}: tokenizer.json knows {vocabulary} tokens and the decoder {rows}: one of the two is "
            f"of another model; {REMEDY}"
        )
