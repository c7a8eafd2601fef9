"""`mllm export`: a run or a checkpoint as a folder that vLLM serves with no further flag."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mllm.command.card import card_info, write_model_card
from mllm.errors import MllmError
from mllm.models.checkpoint import ADAPTER, as_dtype, fetch, load, resolve, save
from mllm.models.checkpoint_check import read_json, read_text
from mllm.models.lora import not_served

if TYPE_CHECKING:
    import torch

PROVENANCE = ("experiment.yaml", "metrics.json", "README.md")


def export(
    source: str | Path,
    out: str | Path,
    dtype: torch.dtype | str = "bfloat16",
    adapter: str = "merged",
    scores: str | Path | None = None,
    notes: Sequence[str | Path] = (),
) -> Path:
    """A folder that vLLM serves with no further flag, from a run or a checkpoint.

    Args:
        source: run folder or checkpoint folder.
        dtype: of the weights.
        adapter: "merged" adds LoRA deltas into the weights; "beside" leaves them in `out/adapter`, to be
            served by name: `--enable-lora --lora-modules NAME=OUT/adapter`.
        scores: metrics.json of `mllm eval world` or `mllm eval real`, for the model card.
        notes: Markdown files that the model card ends with, such as limits and credits.

    Raises:
        MllmError: if there is no checkpoint, no such scores or notes, or `adapter` is neither word.
    """
    if adapter not in ("merged", "beside"):
        raise MllmError(f"adapter is '{adapter}': choose merged or beside")
    measured = _measured(Path(scores)) if scores is not None else None
    texts = [read_text(Path(note)) for note in notes]
    dtype = as_dtype(dtype)
    base, _ = resolve(source)
    # Merged in float32 and rounded once.
    model, processor = load(source, dtype="float32", merge=adapter == "merged")
    if adapter == "beside" and hasattr(model, "peft_config"):
        _check_beside(model)
    found = {name: fetch(base) / name for name in PROVENANCE}
    if found["metrics.json"].exists():
        read_json(found["metrics.json"])
    extra = {name: read_text(path) for name, path in found.items() if path.is_file()}
    folder = save(model, processor, out, extra, dtype=dtype)
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
    run: Annotated[str, typer.Argument(help="A run folder or a checkpoint folder.")],
    out: Annotated[str, typer.Option(help="The folder to write.")],
    dtype: Annotated[str, typer.Option(help="Of the weights: bfloat16, float16 or float32.")] = "bfloat16",
    adapter: Annotated[str, typer.Option(help="LoRA deltas: merged in, or beside the base.")] = "merged",
    scores: Annotated[
        str | None, typer.Option(help="metrics.json of `mllm eval world` or `real`, for the card.")
    ] = None,
    notes: Annotated[
        list[str] | None, typer.Option(help="Markdown that the card ends with, such as credits; repeatable.")
    ] = None,
) -> None:
    """Write a folder that vLLM serves, from a run or a checkpoint folder."""
    folder = export(run, out, dtype, adapter, scores, notes or ())
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"{folder}  {size:.1f} MB  {dtype}")
    print(f"serve it:  mllm serve {folder}")
    if (folder / ADAPTER).is_dir():
        print(f"with its adapter:  mllm serve {folder} --enable-lora --lora-modules tuned={folder / ADAPTER}")
