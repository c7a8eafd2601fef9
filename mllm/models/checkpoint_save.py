"""Saving model folders, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.errors import MllmError
from mllm.models.checkpoint_check import BASES, DELTAS, read_json
from mllm.models.deltas import HEAD, PartBase, own_weights
from mllm.models.lora import EMBEDDING, plain_state, save_adapter
from mllm.models.quiet import no_bars

if TYPE_CHECKING:
    import torch

    from mllm.models.model import MllmForConditionalGeneration
    from mllm.models.processor import MllmProcessor

ADAPTER = "adapter"  # folder inside a checkpoint folder
State = Mapping[str, "torch.Tensor"]


def save(
    model: Any,
    processor: MllmProcessor,
    folder: str | Path,
    extra: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    state: State | None = None,
    whole: bool = False,
) -> Path:
    """Write a checkpoint folder, whole or not at all; one that is there already is replaced.

    Of a model that was built from bases, only what differs from them is written (see `deltas`).

    Args:
        model: the model, or a PeftModel around it: its LoRA deltas go into `adapter/`, everything else that
            was trained into the model's own weights.
        extra: further files, name to text.
        dtype: of the weights as written; None keeps them.
        state: the state of `model`, where other processes hold parts of it; None: its own.
        whole: write every weight, so that the folder needs no bases.

    Raises:
        MllmError: if the disk is full, the folder cannot be written, or a base is lost; nothing is left
            behind.
    """
    from safetensors import SafetensorError

    folder = Path(folder)
    state = model.state_dict() if state is None else state
    base, weights = _base_of(model, state)
    own, bases = ({}, {}) if whole or not base.bases else _own(base, weights)
    weights = _in_dtype(own if bases else weights, dtype)
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        if bases:
            _write_deltas(base, weights, bases, temporary)
        else:
            with no_bars():
                # Keeps our names of the weights: for some towers, the hub's old files use others.
                base.save_pretrained(temporary, state_dict=weights, save_original_format=False)
        _write_config(temporary / "config.json", base, weights, dtype)
        processor.save_pretrained(temporary)
        # vLLM takes its default temperature from here: 0 is greedy.
        _edit_json(temporary / "generation_config.json", {"temperature": 0.0})
        if base is not model:
            save_adapter(model, state, temporary / ADAPTER, dtype)
        for name, text in (extra or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
        for path in (temporary, *temporary.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)  # some are created for their owner only
        _replace_folder(temporary, folder)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MllmError(f"cannot write {folder}: {reason}: make room, or write elsewhere") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _base_of(model: Any, state: State) -> tuple[MllmForConditionalGeneration, dict[str, torch.Tensor]]:
    """The plain model inside a PeftModel, and its weights under their plain names."""
    if not hasattr(model, "get_base_model"):
        return model, dict(state)
    return model.get_base_model(), plain_state(model, state)


def _own(
    model: MllmForConditionalGeneration, state: State
) -> tuple[dict[str, torch.Tensor], dict[str, PartBase]]:
    """What is written of a model beside its bases, and the bases of which something is left."""
    tied = model.config.tie_word_embeddings and not _is_untied(state)
    state = {name: tensor for name, tensor in state.items() if not (tied and name == HEAD)}
    return own_weights(model.bases, model.config, state)


def _in_dtype(state: State, dtype: torch.dtype | None) -> dict[str, torch.Tensor]:
    if dtype is None:
        return dict(state)
    return {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()
    }


def _write_deltas(
    model: MllmForConditionalGeneration, own: State, bases: Mapping[str, PartBase], folder: Path
) -> None:
    from safetensors.torch import save_file

    save_file(dict(own), folder / DELTAS, metadata={"format": "pt"})
    text = json.dumps({part: asdict(base) for part, base in bases.items()}, indent=2)
    (folder / BASES).write_text(text + "\n", encoding="utf-8")
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def _is_untied(state: State) -> bool:
    """Whether the head and the embedding table differ."""
    import torch

    head, words = state.get(HEAD), state.get(f"{EMBEDDING}.weight")
    return head is not None and words is not None and not torch.equal(head, words)


def _write_config(
    path: Path, model: MllmForConditionalGeneration, state: State, dtype: torch.dtype | None
) -> None:
    """Updates config.json to match the written weights."""
    # Trainer disables the cache in the config for training.
    changes: dict[str, Any] = {
        "architectures": [type(model).__name__],
        "dtype": str(dtype or model.dtype).removeprefix("torch."),
        "use_cache": True,
    }
    if HEAD in state and _is_untied(state):
        text = read_json(path)["text_config"] | {"tie_word_embeddings": False}
        changes |= {"tie_word_embeddings": False, "text_config": text}
    _edit_json(path, changes)


def _edit_json(path: Path, changes: Mapping[str, Any]) -> None:
    values = json.loads(path.read_text(encoding="utf-8")) | dict(changes)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace_folder(new: Path, folder: Path) -> None:
    """Renames `new` to `folder`; an existing folder is moved away first and then deleted."""
    if folder.exists():
        old = new.with_suffix(".old")
        os.replace(folder, old)
        os.replace(new, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(new, folder)
