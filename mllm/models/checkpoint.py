"""Loading model folders, and saving them whole or not at all.

A checkpoint folder holds

    config.json, model.safetensors, generation_config.json
    processor_config.json, tokenizer*.json, chat_template.jinja
    experiment.yaml, metrics.json, README.md     where it comes from
    adapter/                                     only if LoRA deltas are kept beside the base

`from_pretrained` and `vllm serve` take the folder as it is.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.errors import MllmError
from mllm.models.checkpoint_check import (
    check_fit,
    check_folder,
    check_processor,
    check_weights,
    in_one_line,
    read_json,
)
from mllm.models.lora import EMBEDDING, HEAD, check_adapter, merge_lora, plain_state, save_adapter

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    import torch

    from mllm.models.build import build_model, train_tokenizer
    from mllm.models.model import MllmForConditionalGeneration
    from mllm.models.processor import MllmProcessor

SHIPPED = Path(__file__).parents[1] / "checkpoints"  # a folder for each, which its name alone finds
NAMES = ("nano", "small")
DEFAULT = "nano"  # where no checkpoint is named
ADAPTER = "adapter"  # folder inside a checkpoint folder
STAGES = "mllm.stages"  # entry point group: the stages of training, with their order

__all__ = [
    "build_model",
    "experiment_file",
    "find_shipped",
    "load",
    "load_processor",
    "merge_lora",
    "resolve",
    "save",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name in ("build_model", "train_tokenizer"):  # they load torch, which finding a checkpoint must not
        from mllm.models import build

        return getattr(build, name)
    raise AttributeError(name)


# --- loading ------------------------------------------------------------------------------------------------


def find_shipped(name: str | None = None) -> Path:
    """The folder of a checkpoint that ships with the package; None: of the default.

    Raises:
        MllmError: if it is missing.
    """
    folder = SHIPPED / (name or DEFAULT)
    if not (folder / "config.json").is_file():
        raise MllmError(
            f"the checkpoint {folder.name} is missing ({folder}): name a checkpoint folder, or train one "
            f"with `mllm train all configs/{folder.name}.yaml`"
        )
    return folder


def load(
    folder: str | Path | None = None,
    dtype: torch.dtype | str = "float32",
    device: str | torch.device = "cpu",
    merge: bool = True,
) -> tuple[Any, MllmProcessor]:
    """Loads a model, in evaluation mode, and its processor.

    Args:
        folder: a checkpoint folder, a run folder, an adapter folder (which names its base), or a hub id; None
            loads the default one of those that ship with mllm.
        merge: whether LoRA deltas are merged into the weights; False returns the PeftModel.

    Raises:
        MllmError: if there is no checkpoint, or weights are missing from it.
    """
    from mllm.models.build import greedy_generation
    from mllm.models.config import MllmConfig
    from mllm.models.model import MllmForConditionalGeneration, weight_shapes

    base, adapter = resolve(folder)
    here = fetch(base)
    shapes = check_folder(here)
    if adapter is not None:
        check_adapter(adapter, shapes, base)
    processor = load_processor(here)
    with _no_bars(), in_one_line(base):
        config = MllmConfig.from_pretrained(here)
        check_weights(here, shapes, weight_shapes(config))
        check_fit(here, config, processor)
        # The folder's own file sets temperature 0 for servers, which generate() expresses by do_sample alone.
        model: Any = MllmForConditionalGeneration.from_pretrained(
            here,
            config=config,
            dtype=as_dtype(dtype),
            generation_config=greedy_generation(config),
        )
    if adapter is not None:
        from peft import PeftModel

        with in_one_line(str(adapter)):
            model = PeftModel.from_pretrained(model, adapter)
        if merge:
            model = merge_lora(model)
    _log.info("loaded %s%s as %s", base, f" with the adapter {adapter}" if adapter else "", model.dtype)
    return model.to(device).eval(), processor


def fetch(base: str) -> Path:
    """The local folder of a checkpoint, downloaded first if `base` is a hub id.

    Raises:
        MllmError: if the hub does not know the id, or cannot be reached.
    """
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download

    with in_one_line(base, "there is no folder of that name either: mend it, or go online"), _no_bars():
        return Path(snapshot_download(base))


@contextmanager
def _no_bars() -> Iterator[None]:
    """Hides the progress bars that transformers shows for every file, however small."""
    from transformers.utils import logging as bars

    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def as_dtype(name: torch.dtype | str) -> torch.dtype:
    import torch

    dtype = getattr(torch, name, None) if isinstance(name, str) else name
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise MllmError(f"dtype is '{name}': choose bfloat16, float16 or float32")
    return dtype


def load_processor(folder: str | Path | None = None) -> MllmProcessor:
    """Loads only the processor; `folder` as in `load`.

    Raises:
        MllmError: if there is no checkpoint, or one of its files is missing or damaged.
    """
    from mllm.models.processor import MllmProcessor

    here = fetch(resolve(folder)[0])
    check_processor(here)
    with in_one_line(str(here)):
        return MllmProcessor.from_pretrained(here)


def resolve(folder: str | Path | None) -> tuple[str, Path | None]:
    """Resolves what `load` takes to (base folder or hub id, adapter folder or None).

    Those that ship with mllm are known by name unless there is something of that name here; None is the
    default among them.

    Raises:
        MllmError: if a folder holds no checkpoint.
    """
    if folder is None or (str(folder) in NAMES and not Path(folder).exists()):
        folder = find_shipped(None if folder is None else str(folder))
    if not str(folder).strip():
        raise MllmError("the checkpoint's name is empty: give a checkpoint folder, a run folder or a hub id")
    path = Path(folder)
    if not path.exists():
        if len(path.parts) == 2 and not path.is_absolute() and not str(folder).startswith("."):
            return str(folder), None  # a hub id: owner/name
        raise MllmError(f"no checkpoint at {folder}: give a checkpoint folder, a run folder or a hub id")
    path = next(
        (inner for inner in (path / "final", *_results(path)) if (inner / "config.json").is_file()), path
    )
    if (path / "adapter_config.json").is_file():
        base = Path(read_json(path / "adapter_config.json").get("base_model_name_or_path") or "")
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


def _results(run: Path) -> list[Path]:
    """The results in a run folder, of the last stage first.

    Raises:
        MllmError: a stage that finished here cannot be imported, so that its place is not known.
    """
    placed = []
    for entry in entry_points(group=STAGES):
        if (final := run / entry.name / "final").is_dir():
            with in_one_line(f"the stage {entry.name}, which made {final},", "install its package again"):
                position = entry.load().position
            if position is not None:
                placed.append((position, final))
    return [final for _, final in sorted(placed, reverse=True)]


def experiment_file(folder: str | Path | None) -> Path | None:
    """The YAML of the experiment that made a checkpoint, for `load_experiment`; None if there is none."""
    beside = Path(resolve(folder)[0]) / "experiment.yaml"
    return beside if beside.is_file() else None


# --- saving -------------------------------------------------------------------------------------------------


def save(
    model: Any,
    processor: MllmProcessor,
    folder: str | Path,
    extra: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write a checkpoint folder, whole or not at all; one that is there already is replaced.

    Args:
        model: the model, or a PeftModel around it: its LoRA deltas go into `adapter/`, everything else that
            was trained into the base.
        extra: further files, name to text.
        dtype: of the weights as written; None keeps them.
        state: the state of `model`, where other processes hold parts of it; None: its own.

    Raises:
        MllmError: if the disk is full or the folder cannot be written; nothing is left behind.
    """
    folder = Path(folder)
    state = model.state_dict() if state is None else state
    base, weights = _base_of(model, state)
    if dtype is not None:
        weights = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in weights.items()
        }
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        with _no_bars():
            # Keeps our names of the weights: for some towers, the hub's old files use others.
            base.save_pretrained(temporary, state_dict=weights, save_original_format=False)
        _write_config(temporary / "config.json", weights, dtype)
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
    except OSError as error:
        raise MllmError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _base_of(
    model: Any, state: Mapping[str, torch.Tensor]
) -> tuple[MllmForConditionalGeneration, dict[str, torch.Tensor]]:
    """The plain model inside a PeftModel, and its weights under their plain names."""
    if not hasattr(model, "get_base_model"):
        return model, dict(state)
    return model.get_base_model(), plain_state(model, state)


def _write_config(path: Path, state: Mapping[str, torch.Tensor], dtype: torch.dtype | None) -> None:
    """Updates config.json to match the written weights."""
    import torch

    # Trainer disables the cache in the config for training.
    changes: dict[str, Any] = {"use_cache": True}
    if dtype is not None:
        changes["dtype"] = str(dtype).removeprefix("torch.")
    head, words = (state.get(f"{name}.weight") for name in (HEAD, EMBEDDING))
    if head is not None and words is not None and not torch.equal(head, words):
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
