"""`mllm export`: a run or a checkpoint as a folder that vLLM serves with no further flag."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mllm.command.card import card_info, write_model_card
from mllm.errors import MllmError
from mllm.files import cache_folder, file_sha256, one_at_a_time
from mllm.models.checkpoint import ADAPTER, as_dtype, fetch, load, resolve, save
from mllm.models.checkpoint_check import check_folder, read_json, read_text
from mllm.models.lora import not_served

if TYPE_CHECKING:
    import torch

PROVENANCE = ("experiment.yaml", "metrics.json", "README.md")
ADAPTERS = ("merged", "beside", "left out")


def export(
    source: str | Path,
    out: str | Path,
    dtype: torch.dtype | str = "bfloat16",
    adapter: str = "merged",
    scores: str | Path | None = None,
    notes: Sequence[str | Path] = (),
    deltas: bool = False,
) -> Path:
    """A folder that vLLM serves with no further flag, from a run or a checkpoint.

    Args:
        source: run folder or checkpoint folder.
        dtype: of the weights.
        adapter: "merged" adds LoRA deltas into the weights; "beside" leaves them in `out/adapter`, to be
            served by name: `--enable-lora --lora-modules NAME=OUT/adapter`; "left out" drops them.
        scores: metrics.json of `mllm eval world` or `mllm eval real`, for the model card.
        notes: Markdown files that the model card ends with, such as limits and credits.
        deltas: write bases and deltas, with the adapter beside them, as a checkpoint is shipped.

    Raises:
        MllmError: if there is no checkpoint, no such scores or notes, `adapter` is none of these words, or
            there are no bases for deltas.
    """
    if adapter not in ADAPTERS:
        raise MllmError(f"adapter is '{adapter}': choose merged or beside")
    measured = _measured(Path(scores)) if scores is not None else None
    texts = [read_text(Path(note)) for note in notes]
    dtype = as_dtype(dtype)
    base, _ = resolve(source)
    # Merged in float32 and rounded once.
    model, processor = load(source, dtype="float32", merge=adapter == "merged" and not deltas)
    if deltas and not model.bases:
        raise MllmError(f"{source} was built from no base: export it without --deltas")
    if hasattr(model, "peft_config") and not deltas:
        if adapter == "beside":
            _check_beside(model)
        elif adapter == "left out":
            model = model.unload()
    found = {name: fetch(base) / name for name in PROVENANCE}
    if found["metrics.json"].exists():
        read_json(found["metrics.json"])
    extra = {name: read_text(path) for name, path in found.items() if path.is_file()}
    folder = save(model, processor, out, extra, dtype=dtype, whole=not deltas)
    if measured is not None or texts or "README.md" not in extra:
        write_model_card(folder, card_info(folder, measured) | {"notes": texts})
    return folder


def _measured(scores: Path) -> dict[str, Any]:
    """The scores for a model card.

    Raises:
        MllmError: if there are none, or they are of a benchmark that no card shows.
    """
    wanted = "give the metrics.json that `mllm eval world` or `mllm eval real` wrote"
    if not scores.is_file():
        raise MllmError(f"no scores at {scores}: {wanted}")
    measured = read_json(scores)
    if (of := measured.get("benchmark", "world")) not in ("world", "real"):
        raise MllmError(f"{scores} is of {of}: {wanted}")
    return measured


def exported(source: str | Path, dtype: str | None = None, adapter: str = "merged") -> Path:
    """A checkpoint of bases and deltas as a folder in the cache that vLLM serves, written on first use.

    Of several processes one writes it, and the others wait for it.

    Args:
        source, adapter: as for `export`.
        dtype: of the weights; None takes that of the deltas.

    Raises:
        MllmError: as for `export`, or if the cache cannot be written.
    """
    here = fetch(resolve(source)[0])
    dtype = dtype or str(read_json(here / "config.json").get("dtype"))
    name = f"{Path(source).resolve().name}-{_content(here, dtype, adapter)[:16]}"
    folder = cache_folder() / "exports" / name
    try:
        with one_at_a_time(
            folder.parent / f".{name}.lock", f"waiting for another process that writes {folder} …"
        ):
            if not _is_whole(folder):
                for abandoned in folder.parent.glob(f".{name}.*.tmp"):  # by a process that was killed
                    shutil.rmtree(abandoned, ignore_errors=True)
                print(f"{source} is bases and deltas: writing it whole, once, to {folder}", file=sys.stderr)
                export(source, folder, dtype, adapter)
    except OSError as error:
        raise MllmError(
            f"{folder} cannot be written ({error.strerror}): name another cache by MLLM_CACHE"
        ) from None
    return folder


def _content(folder: Path, dtype: str, adapter: str) -> str:
    """A hash of all that decides what an export of the folder holds."""
    digest = hashlib.sha256(f"{version('mllm')} {dtype} {adapter}".encode())
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder)} {file_sha256(path)}".encode())
    return digest.hexdigest()


def _is_whole(folder: Path) -> bool:
    try:
        check_folder(folder)
    except MllmError:
        return False
    return True


def _check_beside(model: Any) -> None:
    """Raises MllmError if vLLM would not serve this PeftModel's deltas beside its base."""
    from peft.tuners.lora import LoraLayer

    for config in model.peft_config.values():
        modules = [
            name for name, part in model.get_base_model().named_modules() if isinstance(part, LoraLayer)
        ]
        # Whatever is trained whole goes into the base.
        if problem := not_served(
            config.to_dict() | {"modules_to_save": None, "init_lora_weights": True}, modules
        ):
            raise MllmError(f"{problem}: export it with --adapter merged")


def export_command(
    run: Annotated[str, typer.Argument(help="A run folder, a checkpoint folder, or the name of one.")],
    out: Annotated[
        str | None, typer.Option(help="The folder to write. Default: one in the cache, where serve finds it.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights: bfloat16, float16 or float32.")] = "bfloat16",
    adapter: Annotated[str, typer.Option(help="LoRA deltas: merged in, or beside the base.")] = "merged",
    scores: Annotated[
        str | None, typer.Option(help="metrics.json of `mllm eval world` or `real`, for the card.")
    ] = None,
    notes: Annotated[
        list[str] | None, typer.Option(help="Markdown that the card ends with, such as credits; repeatable.")
    ] = None,
    deltas: Annotated[
        bool, typer.Option("--deltas", help="Bases and deltas, as a checkpoint is shipped.")
    ] = False,
) -> None:
    """Write a folder that vLLM serves, from a run or a checkpoint folder."""
    if out is not None:
        folder = export(run, out, dtype, adapter, scores, notes or (), deltas)
    elif scores is not None or notes or deltas:
        raise MllmError("--scores, --notes and --deltas are for a folder of your own: give --out")
    else:
        folder = exported(run, dtype, adapter)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"{folder}  {size:.1f} MB  {dtype}")
    if deltas:
        return
    print(f"serve it:  mllm serve {folder}")
    if (folder / ADAPTER).is_dir():
        print(f"with its adapter:  mllm serve {folder} --enable-lora --lora-modules tuned={folder / ADAPTER}")
