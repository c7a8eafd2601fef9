"""Finding and loading model folders; `checkpoint_save` writes them.

A checkpoint folder holds

    config.json, generation_config.json
    processor_config.json, tokenizer*.json, chat_template.jinja
    bases.json, deltas.safetensors               what differs from pretrained models (see `deltas`), or
    model.safetensors                            all weights
    adapter/                                     only if LoRA deltas are kept beside the weights
    experiment.yaml, metrics.json, README.md     where it comes from

vLLM and transformers take a folder with all weights as it is; `mllm export` writes one from any checkpoint.
"""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.errors import MllmError
from mllm.models.checkpoint_check import (
    check_files,
    check_fit,
    check_processor,
    check_weights,
    checkpoint_shapes,
    in_one_line,
    read_json,
)
from mllm.models.checkpoint_save import ADAPTER, save
from mllm.models.deltas import is_delta, join, read_bases
from mllm.models.lora import check_adapter, merge_lora
from mllm.models.quiet import no_bars

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    import torch

    from mllm.models.build import build_model, train_tokenizer
    from mllm.models.processor import MllmProcessor

SHIPPED = Path(__file__).parents[1] / "checkpoints"  # a folder for each, which its name alone finds
NAMES = ("nano", "small")
DEFAULT = "nano"  # where no checkpoint is named
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
    check_files(here)
    bases = read_bases(here) if is_delta(here) else {}
    held = {} if bases else checkpoint_shapes(here)
    processor = load_processor(here)
    with no_bars(), in_one_line(base):
        config = MllmConfig.from_pretrained(here)
        wanted = weight_shapes(config)
        joined = join(here, bases, config, wanted) if bases else None
        if joined is not None:
            held = {name: tuple(weight.shape) for name, weight in joined.items()}
        if adapter is not None:
            check_adapter(adapter, held, base)
        check_weights(here, held, wanted)
        check_fit(here, config, processor)
        # The folder's own file sets temperature 0 for servers, which generate() expresses by do_sample alone.
        model: Any = MllmForConditionalGeneration.from_pretrained(
            None if bases else here,
            config=config,
            dtype=as_dtype(dtype),
            generation_config=greedy_generation(config),
            state_dict=joined,
        )
    model.bases = bases
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

    with in_one_line(base, "there is no folder of that name either: mend it, or go online"), no_bars():
        return Path(snapshot_download(base))


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
