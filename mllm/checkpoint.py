"""Model folders: loaded, saved whole or not at all, and exported for vLLM.

A checkpoint folder holds

    config.json, model.safetensors, generation_config.json
    processor_config.json, tokenizer*.json, chat_template.jinja
    experiment.yaml, metrics.json, README.md     where it comes from
    adapter/                                     only where LoRA deltas stand beside the base

`from_pretrained` and `vllm serve` take the folder as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mllm.card import card_info, write_model_card
from mllm.errors import MllmError
from mllm.experiment import Experiment, load_experiment

if TYPE_CHECKING:
    import torch

    from mllm.build import build_model, train_tokenizer
    from mllm.model import MllmForConditionalGeneration
    from mllm.processor import MllmProcessor

DEFAULT_CHECKPOINT = Path(__file__).parent / "checkpoints" / "nano"
ADAPTER = "adapter"  # folder inside a checkpoint folder
STAGES = ("instruct", "contrastive", "text")  # of a run folder, best result first
PROVENANCE = ("experiment.yaml", "metrics.json", "README.md")

__all__ = [
    "build_model",
    "card_info",
    "experiment_of",
    "export",
    "find_default_checkpoint",
    "load",
    "load_processor",
    "merge_lora",
    "resolve",
    "save",
    "train_tokenizer",
    "write_model_card",
]


def __getattr__(name: str) -> Any:
    if name in ("build_model", "train_tokenizer"):  # they load torch, which finding a checkpoint need not
        from mllm import build

        return getattr(build, name)
    raise AttributeError(name)


# --- loading ------------------------------------------------------------------------------------------------


def find_default_checkpoint() -> Path:
    """The nano checkpoint that ships with the package.

    Raises:
        MllmError: where it is missing.
    """
    if not (DEFAULT_CHECKPOINT / "config.json").is_file():
        raise MllmError(
            f"the nano checkpoint is missing ({DEFAULT_CHECKPOINT}): name a checkpoint folder, or train one "
            "with `mllm train all configs/nano.yaml`"
        )
    return DEFAULT_CHECKPOINT


def load(
    folder: str | Path | None = None,
    dtype: torch.dtype | str = "float32",
    device: str | torch.device = "cpu",
    merge: bool = True,
) -> tuple[Any, MllmProcessor]:
    """A model, in evaluation mode, and its processor.

    Args:
        folder: a checkpoint folder, a run folder, an adapter folder (its base is found through it), or a hub
            id; None takes the checkpoint that ships with mllm.
        merge: LoRA deltas are added into the weights; False returns the PeftModel.

    Raises:
        MllmError: if there is no checkpoint, or one without some of its weights.
    """
    from mllm.build import greedy_generation
    from mllm.model import MllmForConditionalGeneration

    base, adapter = resolve(folder)
    processor = load_processor(base)
    # The folder's own file asks servers for temperature 0; generate() wants that said by do_sample alone.
    with _no_bars():
        model, loaded = MllmForConditionalGeneration.from_pretrained(
            base,
            dtype=_dtype(dtype),
            generation_config=greedy_generation(processor.tokenizer),
            output_loading_info=True,
        )
    if missing := sorted(loaded["missing_keys"]):
        raise MllmError(
            f"{base}: {len(missing)} weights are missing, {missing[0]} for one: another version "
            "of mllm wrote it, so train or export it again"
        )
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
        if merge:
            model = merge_lora(model)
    return model.to(device).eval(), processor


@contextmanager
def _no_bars() -> Iterator[None]:
    """transformers draws a progress bar for every file, however small."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _dtype(name: torch.dtype | str) -> torch.dtype:
    import torch

    dtype = getattr(torch, name, None) if isinstance(name, str) else name
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise MllmError(f"dtype is '{name}': choose bfloat16, float16 or float32")
    return dtype


def load_processor(folder: str | Path | None = None) -> MllmProcessor:
    """The processor of what `load` takes."""
    from mllm.processor import MllmProcessor

    return MllmProcessor.from_pretrained(resolve(folder)[0])


def resolve(folder: str | Path | None) -> tuple[str, Path | None]:
    """(base folder or hub id, adapter folder or None) of what `load` takes; None, "nano": the one that ships.

    Raises:
        MllmError: if a folder holds no checkpoint.
    """
    if folder is None or (str(folder) == "nano" and not Path("nano").exists()):
        return str(find_default_checkpoint()), None
    path = Path(folder)
    if not path.exists():
        if len(path.parts) == 2 and not path.is_absolute() and not str(folder).startswith("."):
            return str(folder), None  # a hub id: owner/name
        raise MllmError(f"no checkpoint at {folder}: give a checkpoint folder, a run folder or a hub id")
    for inner in ("final", *(f"{stage}/final" for stage in STAGES)):
        if (path / inner / "config.json").is_file():
            path = path / inner
            break
    if (path / "adapter_config.json").is_file():
        base = Path(json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"] or "")
        for candidate in (path / base, path.parent, base):
            if (candidate / "config.json").is_file():
                return str(candidate), path
        raise MllmError(
            f"the adapter {path} names the base '{base}', which is not there: put it back or mend the name"
        )
    if not (path / "config.json").is_file():
        raise MllmError(
            f"{path} holds no checkpoint (no config.json): was the training stopped before it finished?"
        )
    return str(path), path / ADAPTER if (path / ADAPTER / "adapter_config.json").is_file() else None


def experiment_of(folder: str | Path | None) -> Experiment:
    """The experiment that made a checkpoint, from the YAML beside it; the defaults where there is none."""
    beside = Path(resolve(folder)[0]) / "experiment.yaml"
    return load_experiment(beside) if beside.is_file() else Experiment()


def merge_lora(model: Any) -> MllmForConditionalGeneration:
    """LoRA deltas added into the weights they stand beside; a model without any comes back as it is."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


# --- saving -------------------------------------------------------------------------------------------------


def save(
    model: Any,
    processor: MllmProcessor,
    folder: str | Path,
    extra: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a checkpoint folder, whole or not at all; one that is there already is replaced.

    Args:
        model: the model, or a PeftModel around it: its LoRA deltas go into `adapter/`, everything else that
            was trained into the base.
        extra: further files, name to text.
        dtype: of the weights as written; None keeps them.

    Raises:
        MllmError: if the disk is full or the folder cannot be written; nothing is left behind.
    """
    folder = Path(folder)
    base, state = _base_of(model)
    if dtype is not None:
        state = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()
        }
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        with _no_bars():
            base.save_pretrained(temporary, state_dict=state)
        # Trainer switches the cache off in the config for its own sake.
        kind = {"dtype": str(dtype).removeprefix("torch.")} if dtype is not None else {}
        _edit_json(temporary / "config.json", {"use_cache": True} | kind)
        processor.save_pretrained(temporary)
        # vLLM takes its default temperature from here: 0 is greedy.
        _edit_json(temporary / "generation_config.json", {"temperature": 0.0})
        if base is not model:
            _save_adapter(model, temporary / ADAPTER, dtype)
        for name, text in (extra or {}).items():
            (temporary / name).write_text(text, encoding="utf-8")
        for path in (temporary, *temporary.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)  # some were made for their owner alone
        _replace_folder(temporary, folder)
    except OSError as error:
        raise MllmError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _base_of(model: Any) -> tuple[MllmForConditionalGeneration, dict[str, torch.Tensor]]:
    """The plain model inside a PeftModel, and its weights under their plain names."""
    if not hasattr(model, "get_base_model"):
        return model, model.state_dict()
    base = model.get_base_model()
    state = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in base.state_dict().items()
        if ".lora_" not in name
    }
    return base, state


def _save_adapter(model: Any, folder: Path, dtype: torch.dtype | None) -> None:
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir()
    # LoRA alone: whatever else was trained is in the base already, and vLLM refuses modules_to_save.
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    state = {name: tensor.detach().to(dtype or tensor.dtype).contiguous() for name, tensor in state.items()}
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = replace(model.peft_config["default"], inference_mode=True, base_model_name_or_path="..")
    config.save_pretrained(folder)


def _edit_json(path: Path, changes: Mapping[str, Any]) -> None:
    values = json.loads(path.read_text(encoding="utf-8")) | dict(changes)
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`; a folder of that name is moved away first and then deleted."""
    if folder.exists():
        old = new.with_suffix(".old")
        os.replace(folder, old)
        os.replace(new, folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(new, folder)


# --- export -------------------------------------------------------------------------------------------------


def export(
    source: str | Path,
    out: str | Path,
    dtype: torch.dtype | str = "bfloat16",
    adapter: str = "merged",
    scores: str | Path | None = None,
) -> Path:
    """A folder that vLLM serves with no further flag, from a run or a checkpoint.

    Args:
        source: run folder or checkpoint folder.
        dtype: of the weights.
        adapter: "merged" adds LoRA deltas into the weights; "beside" leaves them in `out/adapter`, to be
            served by name: `--enable-lora --lora-modules NAME=OUT/adapter`.
        scores: metrics.json of `mllm eval world`, for the model card.

    Raises:
        MllmError: if there is no checkpoint or no such scores, or `adapter` is neither word.
    """
    if adapter not in ("merged", "beside"):
        raise MllmError(f"adapter is '{adapter}': choose merged or beside")
    if scores is not None and not Path(scores).is_file():
        raise MllmError(f"no scores at {scores}: give the metrics.json that `mllm eval world` wrote")
    measured = json.loads(Path(scores).read_text(encoding="utf-8")) if scores is not None else None
    if measured is not None and measured.get("benchmark", "world") != "world":
        raise MllmError(f"{scores} is of {measured['benchmark']}: give the one that `mllm eval world` wrote")
    dtype = _dtype(dtype)
    base, _ = resolve(source)
    # Merged in float32 and rounded once.
    model, processor = load(source, dtype="float32", merge=adapter == "merged")
    found = {name: Path(base) / name for name in PROVENANCE}
    extra = {name: path.read_text(encoding="utf-8") for name, path in found.items() if path.is_file()}
    folder = save(model, processor, out, extra, dtype=dtype)
    if measured is not None or "README.md" not in extra:
        write_model_card(folder, card_info(folder, measured))
    return folder


def export_command(
    run: Annotated[str, typer.Argument(help="A run folder or a checkpoint folder.")],
    out: Annotated[str, typer.Option(help="The folder to write.")],
    dtype: Annotated[str, typer.Option(help="Of the weights: bfloat16, float16 or float32.")] = "bfloat16",
    adapter: Annotated[str, typer.Option(help="LoRA deltas: merged in, or beside the base.")] = "merged",
    scores: Annotated[
        str | None, typer.Option(help="metrics.json of `mllm eval world`, for the card.")
    ] = None,
) -> None:
    """Write a folder that vLLM serves, from a run or a checkpoint folder."""
    folder = export(run, out, dtype, adapter, scores)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    print(f"{folder}  {size:.1f} MB  {dtype}")
    print(f"serve it:  mllm serve {folder}")
    if (folder / ADAPTER).is_dir():
        print(f"with its adapter:  mllm serve {folder} --enable-lora --lora-modules tuned={folder / ADAPTER}")
