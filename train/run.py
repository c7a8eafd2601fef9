"""The run of one stage: its folder, resume point, trained parameters and metrics.

    runs/<name>/<stage>/experiment.yaml   the resolved experiment
                        metrics.json      every logged row, rewritten whole at each log
                        loss.png          the curves of every loss component
                        checkpoint-<n>/   the state for a resume (trained weights, optimizer, random state)
                        final/            the stage's result, loadable with mllm.models.checkpoint.load

If a stage is killed, the same command resumes from its last complete checkpoint (`resume.py`) and logs the
same losses as an uninterrupted run, since batches depend on the step alone (`data.py`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora import LoraLayer
from transformers import TrainerState

from mllm.errors import ConfigError
from mllm.files import write_atomically
from mllm.models import checkpoint
from mllm.models.feature_cache import FeatureCache, keep_features, keep_texts
from mllm.models.sides import SIDES
from train.compiler import require_compiler
from train.resume import check_processes, last_checkpoint, processes, settings_there
from train.shapes import pad_rows

if TYPE_CHECKING:
    from mllm.experiment import Experiment
    from mllm.models.model import MllmForConditionalGeneration
    from train.sections import StageSection

# The groups in `train:` lists of experiments, as prefixes of parameter names.
MODULE_GROUPS = {
    **{f"{side}_tower": (f"model.{side}_tower.",) for side in SIDES},
    "mixers": tuple(f"model.{side}_tower.mixer." for side in SIDES),
    "qformers": tuple(f"model.{side}_qformer." for side in SIDES),
    "projectors": tuple(f"model.{side}_projector." for side in SIDES),
    "space": ("model.space.",),
    "heads": (*(f"model.space.{kind}_head." for kind in ("text", *SIDES)), "model.space.logit_scale"),
    "embeddings": ("model.language_model.embed_tokens.", "lm_head."),
    "decoder": ("model.language_model.", "lm_head."),
}

BETAS, WEIGHT_DECAY, MAX_GRAD_NORM, MIN_LR_RATE = (0.9, 0.98), 0.01, 1.0, 0.03  # of every stage

# Settings that, except for rounding, do not change the result: a resumed run may change them.
FREE_SETTINGS = {
    *("workers", "shards", "cache", "num_threads", "compile", "log_every", "save_every"),
    *("guard", "validate_every", "validate_rows"),
}


@dataclass
class Run:
    """A stage's folder and resume point.

    Attributes:
        stage: the stage's name.
        section: key of its settings in the experiment.
        earlier: names of the preceding stages, in order.
        resume: a checkpoint folder, or None for a fresh start.
        passed_over: a line for each newer checkpoint that is incomplete.
    """

    experiment: Experiment
    stage: str
    section: str
    earlier: tuple[str, ...]
    folder: Path
    resume: Path | None = None
    passed_over: list[str] = field(default_factory=list)

    @property
    def settings(self) -> StageSection:
        """The stage's section of the experiment."""
        return getattr(self.experiment, self.section)

    @property
    def final(self) -> Path:
        return self.folder / "final"

    @property
    def finished(self) -> bool:
        return self.final.is_dir()


def stage_folder(experiment: Experiment, stage: str) -> Path:
    return Path(experiment.output) / experiment.name / stage


def open_run(
    experiment: Experiment, stage: str, section: str, earlier: Sequence[str] = (), restart: bool = False
) -> Run:
    """Creates or reopens the run folder of a stage; the arguments are those of `Run`.

    Raises:
        ConfigError: if the folder was made with other settings or another number of processes, naming the
            differences, or if its settings are lost.
    """
    run = Run(experiment, stage, section, tuple(earlier), stage_folder(experiment, stage))
    resolved = experiment.model_dump(mode="json")
    if restart and run.folder.exists():
        shutil.rmtree(run.folder)
    written = settings_there(run.folder)
    if written is not None:
        changes = list(_differences(_that_matters(written, section), _that_matters(resolved, section)))
        if changes:
            raise ConfigError(
                f"{run.folder} was made with other settings ({'; '.join(changes[:5])}): give the run another "
                f"name= or start the stage afresh with `mllm train {stage} … --restart`"
            )
    if not run.finished:
        check_processes(run.folder)
        run.resume = last_checkpoint(run.folder, run.passed_over)
    run.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(run.folder / "experiment.yaml", experiment.dump_yaml())
    return run


def _that_matters(resolved: dict[str, Any], section: str) -> dict[str, Any]:
    """The settings on which the result of the stage with this section depends."""
    kept = {key: resolved.get(key) for key in ("seed", "start", "model", "data", section)}
    for key in ("data", section):
        kept[key] = {k: v for k, v in (kept[key] or {}).items() if k not in FREE_SETTINGS}
    return kept


def _differences(before: Any, now: Any, where: str = "") -> Iterable[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{where}.{key}".lstrip("."))
    elif before != now:
        yield f"{where}: {before} there, {now} here"


def set_trainable(model: MllmForConditionalGeneration, groups: Iterable[str]) -> None:
    """Freezes everything except the named module groups.

    Raises:
        ConfigError: for a name that MODULE_GROUPS does not have.
    """
    groups = list(groups)
    for group in groups:
        if group not in MODULE_GROUPS:
            raise ConfigError(
                f"unknown module group '{group}' in train: choose from {', '.join(MODULE_GROUPS)}"
            )
    prefixes = tuple(prefix for group in groups for prefix in MODULE_GROUPS[group])
    fixed = {
        f"model.{side}_tower.{name}" for side, tower in model.model.towers.items() for name in tower.fixed
    }
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(prefixes) and name not in fixed)


def trainer_arguments(run: Run) -> dict[str, Any]:
    """What TrainingArguments and SFTConfig take alike, from the stage's settings."""
    settings = run.settings
    workers = run.experiment.data.workers
    return {
        "output_dir": str(run.folder),
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.batch,
        "learning_rate": settings.lr,
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "weight_decay": WEIGHT_DECAY,
        "max_grad_norm": MAX_GRAD_NORM,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr_rate": MIN_LR_RATE},
        "warmup_steps": settings.warmup,
        "bf16": settings.bf16,
        "use_cpu": not torch.cuda.is_available(),  # asked for by name, or bf16 is refused
        "gradient_checkpointing": False,  # switched on by `prepare_model`, never re-entrant
        "seed": run.experiment.seed,
        "logging_steps": settings.log_every,
        "logging_nan_inf_filter": False,
        "save_steps": settings.save_every,
        "save_total_limit": 2,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": True,  # a batch may lack a modality
        "dataloader_num_workers": workers,
        "dataloader_persistent_workers": workers > 0,
        "dataloader_prefetch_factor": 4 if workers else None,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,
        "report_to": [],
    }


def prepare_model(model: MllmForConditionalGeneration, run: Run) -> None:
    """Threads, compilation and gradient checkpointing of a stage.

    Raises:
        ConfigError: if the decoder is to be compiled and there is nothing to compile it with.
    """
    if run.settings.num_threads:
        torch.set_num_threads(run.settings.num_threads)
    if not torch.cuda.is_available():
        # At these sizes the fused kernel's backward pass on a CPU takes twice as long as the plain one.
        towers = model.model.towers
        texts = [model.model.space.text_tower] if hasattr(model.model, "space") else []
        for part in [model.model.language_model, *(tower.encoder for tower in [*towers.values(), *texts])]:
            part.set_attn_implementation("eager")
        torch.backends.cuda.enable_flash_sdp(False)  # for the Q-Formers; the flag also applies on a CPU
        for tower in towers.values():
            pad_rows(tower, "encode")
        mixers = [tower.mixer for tower in towers.values() if tower.mixer is not None]
        for part in [*texts, *mixers, *map(model.model.qformer, towers)]:
            pad_rows(part)
    if run.experiment.data.cache is not None:
        cache = FeatureCache(run.experiment.data.cache.folder, run.experiment.data.cache.max_gb)
        for side, tower in model.model.towers.items():
            if not any(weight.requires_grad for _, weight in tower.encoding_weights()):
                keep_features(tower, cache)
            elif int(os.environ.get("RANK", "0")) == 0:
                print(f"{run.stage}: {side}_tower trains, so data.cache keeps nothing of it")
    space = getattr(model.model, "space", None)
    if space is not None and not any(weight.requires_grad for weight in space.text_tower.parameters()):
        keep_texts(space)
    if run.settings.bf16_base:
        hold_in_bfloat16(model)
    if run.settings.compile:
        require_compiler(run.section)
        # Only the decoder: compiled towers and Q-Formers were no faster (docs/log.md). Its layers are alike,
        # so one is compiled for all.
        decoder = model.model.language_model
        layers = [part for part in decoder.modules() if type(part).__name__ in decoder._no_split_modules]
        for part in layers or [decoder]:
            part.compile(dynamic=True)
    if run.settings.gradient_checkpointing:
        # The re-entrant variant silently drops gradients if the inputs are frozen.
        model.gradient_checkpointing_enable({"use_reentrant": False})


def hold_in_bfloat16(model: MllmForConditionalGeneration) -> None:
    """Rounds the frozen weights of the decoder; those that train, LoRA included, stay as they are."""
    for part in (model.model.language_model, model.lm_head):
        for weight in part.parameters():
            if not weight.requires_grad:
                weight.data = weight.data.to(torch.bfloat16)
        for module in part.modules():
            if isinstance(module, LoraLayer):
                module.cast_input_dtype_enabled = False  # to float32 and, by autocast, back


def metrics_of(run: Run, state: TrainerState, history: bool = False) -> dict[str, Any]:
    """The content of metrics.json: the stage, its machine and every log row.

    Args:
        history: add earlier stages with their last rows under `earlier`, including those of the checkpoint
            that the experiment started from.
    """
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    metrics: dict[str, Any] = {
        "stage": run.stage,
        "steps": state.max_steps,
        "batch": run.settings.batch * processes(),  # clips per step, over all processes
        "machine": machine,
        "rows": [row for row in state.log_history if "loss" in row],
    }
    if history:
        folders = [stage_folder(run.experiment, stage) for stage in run.earlier]
        if run.experiment.start is not None:
            folders.insert(0, Path(checkpoint.resolve(run.experiment.start)[0]))
        metrics["earlier"] = []
        for path in (folder / "metrics.json" for folder in folders):
            if path.is_file():
                last = json.loads(path.read_text(encoding="utf-8"))
                metrics["earlier"] += last.pop("earlier", [])
                metrics["earlier"].append(last | {"rows": last["rows"][-1:]})
    return metrics
