"""One stage of one experiment: its folder, its resume point, its trainer and what it writes down.

    runs/<name>/<stage>/experiment.yaml   the resolved experiment
                        metrics.json      every logged row, rewritten whole at each log
                        loss.png          the curves of every loss component
                        checkpoint-<n>/   what a resume needs (weights that train, optimizer, random state)
                        final/            the stage's result, loadable with mllm.models.checkpoint.load

A stage that was killed goes on from its last whole checkpoint (`resume.py`) when the same command is given
again, and logs the same losses as if it had never stopped: batches depend on the step alone (`data.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback

from mllm.errors import ConfigError
from mllm.files import write_atomically
from mllm.models import checkpoint
from mllm.models.feature_cache import FeatureCache, keep_features
from mllm.models.sides import SIDES
from train.compiler import require_compiler
from train.curves import draw_losses
from train.optimizer import MuonAdamW, parameter_groups
from train.resume import check_processes, last_checkpoint, settings_there
from train.shapes import pad_rows

if TYPE_CHECKING:
    from mllm.experiment import Experiment
    from mllm.models.model import MllmForConditionalGeneration

STAGES = ("text", "contrastive", "instruct")

# What each word of an experiment's `train:` lists stands for, as prefixes of parameter names.
MODULE_GROUPS = {
    **{f"{side}_tower": (f"model.{side}_tower.",) for side in SIDES},
    "qformers": tuple(f"model.{side}_qformer." for side in SIDES),
    "projectors": tuple(f"model.{side}_projector." for side in SIDES),
    "space": ("model.space.",),
    "embeddings": ("model.language_model.embed_tokens.", "lm_head."),
    "decoder": ("model.language_model.", "lm_head."),
}

BETAS, WEIGHT_DECAY, MAX_GRAD_NORM, MIN_LR_RATE = (0.9, 0.98), 0.01, 1.0, 0.03  # of every stage

# Settings that change speed or output but, save for rounding, not the result: a resumed run may change them.
FREE_SETTINGS = {"workers", "shards", "cache", "num_threads", "compile", "log_every", "save_every"}

NOT_SHOWN = {"epoch", "step", "clips_per_second", "seconds", "num_tokens"}  # of a row, on the terminal


@dataclass
class Run:
    """A stage's folder and where to go on.

    Attributes:
        resume: a checkpoint folder, or None for a fresh start.
        passed_over: a line for each newer checkpoint that is not whole.
    """

    experiment: Experiment
    stage: str
    folder: Path
    resume: Path | None = None
    passed_over: list[str] = field(default_factory=list)

    @property
    def settings(self) -> Any:
        """The stage's own section of the experiment."""
        return getattr(self.experiment, self.stage)

    @property
    def final(self) -> Path:
        return self.folder / "final"

    @property
    def finished(self) -> bool:
        return self.final.is_dir()


def stage_folder(experiment: Experiment, stage: str) -> Path:
    return Path(experiment.output) / experiment.name / stage


def open_run(experiment: Experiment, stage: str, restart: bool = False) -> Run:
    """The run folder of a stage, made or found again.

    Raises:
        ConfigError: if the folder belongs to an experiment with other settings, or to another number of
            processes, or if what it belongs to is lost; names what differs.
    """
    run = Run(experiment, stage, stage_folder(experiment, stage))
    resolved = experiment.model_dump(mode="json")
    if restart and run.folder.exists():
        shutil.rmtree(run.folder)
    before = settings_there(run.folder)
    if before is not None:
        changes = list(_differences(_that_matters(before, stage), _that_matters(resolved, stage)))
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


def _that_matters(resolved: dict[str, Any], stage: str) -> dict[str, Any]:
    kept = {key: resolved.get(key) for key in ("seed", "start", "model", "data", stage)}
    for section in ("data", stage):
        kept[section] = {k: v for k, v in (kept[section] or {}).items() if k not in FREE_SETTINGS}
    return kept


def _differences(before: Any, now: Any, where: str = "") -> Iterable[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{where}.{key}".lstrip("."))
    elif before != now:
        yield f"{where}: {before} there, {now} here"


def set_trainable(model: MllmForConditionalGeneration, groups: Iterable[str]) -> None:
    """Freeze everything but the named module groups.

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
        "dataloader_num_workers": workers,
        "dataloader_persistent_workers": workers > 0,
        "dataloader_prefetch_factor": 4 if workers else None,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "disable_tqdm": True,
        "report_to": [],
    }


def prepare_model(model: Any, run: Run) -> None:
    """Threads, compilation and gradient checkpointing of a stage.

    Raises:
        ConfigError: if the decoder is to be compiled and there is nothing to compile it with.
    """
    if run.settings.num_threads:
        torch.set_num_threads(run.settings.num_threads)
    if not torch.cuda.is_available():
        # The fused kernel's backward pass on a CPU costs twice the plain one at these sizes.
        towers = list(model.model.towers.values())
        if hasattr(model.model, "space"):
            towers.append(model.model.space.text_tower)
        for part in [model.model.language_model, *(tower.encoder for tower in towers)]:
            part.set_attn_implementation("eager")
        torch.backends.cuda.enable_flash_sdp(False)  # of the Q-Formers; the flag counts on a CPU, too
        for part in [*towers, *map(model.model.qformer, model.model.towers)]:
            pad_rows(part)
    if run.experiment.data.cache is not None:
        cache = FeatureCache(run.experiment.data.cache.folder, run.experiment.data.cache.max_gb)
        for side, tower in model.model.towers.items():
            if not any(parameter.requires_grad for parameter in tower.parameters()):
                keep_features(tower, cache)
            elif int(os.environ.get("RANK", "0")) == 0:
                print(f"{run.stage}: {side}_tower trains, so data.cache keeps nothing of it")
    if run.settings.compile:
        require_compiler(run.stage)
        # Only the decoder: compiled towers and Q-Formers were no faster (docs/log.md).
        model.model.language_model.compile(dynamic=True)
    if run.settings.gradient_checkpointing:
        # The re-entrant kind drops gradients silently where the inputs are frozen.
        model.gradient_checkpointing_enable({"use_reentrant": False})


class StageTrainer(Trainer):
    """What the three stages add to a Trainer: loss parts in the log, rates by part, small checkpoints.

    Checkpoints hold the weights that train, and nothing else: the rest is the previous stage's result.
    """

    run: Run

    def __init__(self, run: Run, **kwargs: Any):
        self.run = run
        self.parts: dict[str, list[torch.Tensor]] = defaultdict(list)
        super().__init__(**kwargs)
        self.remove_callback(PrinterCallback)
        self.add_callback(RunCallback(run))

    def add_parts(self, parts: dict[str, torch.Tensor]) -> None:
        """Note components of this step's loss; their means appear in the next logged row."""
        for name, value in parts.items():
            self.parts[name].append(value.detach())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for name, values in self.parts.items():
            logs[name] = torch.stack(values).float().mean().item()
        self.parts.clear()
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            settings = self.run.settings
            adamw, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = parameter_groups(
                self.model,
                decayed=set(self.get_decay_parameter_names(self.model)),
                weight_decay=self.args.weight_decay,
                rate=self.args.learning_rate,
                muon_rate=settings.muon_lr,
                part_rates={  # no stage has both
                    tuple(f"model.{side}_tower." for side in SIDES): getattr(settings, "tower_lr", None),
                    MODULE_GROUPS["decoder"]: getattr(settings, "decoder_lr", None),
                },
            )
            self.optimizer = (MuonAdamW if settings.muon_lr else adamw)(groups, **options)
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if state_dict is None:
            state_dict = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        state_dict = {name: tensor.contiguous() for name, tensor in state_dict.items()}
        safetensors.torch.save_file(state_dict, folder / "model.safetensors", metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        state_dict = safetensors.torch.load_file(Path(resume_from_checkpoint) / "model.safetensors")
        wrong = (model or self.model).load_state_dict(state_dict, strict=False).unexpected_keys
        if wrong:
            raise ConfigError(f"{resume_from_checkpoint} does not fit this model ({wrong[0]}): use --restart")

    def run_stage(self, model: nn.Module, processor: Any) -> Path:
        """Train from the start or the resume point, then write `final/`; returns its path."""
        self.train(resume_from_checkpoint=str(self.run.resume) if self.run.resume else None)
        if self.is_world_process_zero():
            draw_losses(self.state.log_history, self.run.folder / "loss.png", self.run.stage)
            experiment = (self.run.folder / "experiment.yaml").read_text(encoding="utf-8")
            metrics = json.dumps(metrics_of(self.run, self.state, history=True), indent=1)
            extra = {"experiment.yaml": experiment, "metrics.json": metrics}
            checkpoint.save(model, processor, self.run.final, extra)
        return self.run.final


class RunCallback(TrainerCallback):
    """metrics.json and a progress bar with clips/s (plain lines where nobody watches a terminal)."""

    def __init__(self, run: Run):
        self.stage_run = run
        self.bar = None
        self.last = (time.monotonic(), 0)
        self.seconds = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.last = (time.monotonic(), state.global_step)
        self.seconds = state.log_history[-1].get("seconds", 0.0) if state.log_history else 0.0
        if state.is_world_process_zero and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.stage_run.stage)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % state.save_steps == 0:
            control.should_log = True  # so that a resumed run averages over the same steps
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
        return control

    def on_log(self, args, state, control, logs=None, **kwargs):
        now, (then, step) = time.monotonic(), self.last
        self.last = (now, state.global_step)
        self.seconds += now - then
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        clips = (state.global_step - step) * args.train_batch_size * args.world_size / max(now - then, 1e-9)
        state.log_history[-1] |= {"clips_per_second": round(clips, 1), "seconds": round(self.seconds, 1)}
        metrics = metrics_of(self.stage_run, state)
        write_atomically(self.stage_run.folder / "metrics.json", json.dumps(metrics, indent=1))
        parts = {name: value for name, value in state.log_history[-1].items() if name not in NOT_SHOWN}
        line = "  ".join(f"{name} {value:.4g}" for name, value in parts.items()) + f"  {clips:.0f} clips/s"
        if self.bar is not None:
            self.bar.set_postfix_str(line)
        else:
            print(f"{self.stage_run.stage} {state.global_step}/{state.max_steps}  {line}", flush=True)

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            draw_losses(state.log_history, self.stage_run.folder / "loss.png", self.stage_run.stage)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()


def metrics_of(run: Run, state: Any, history: bool = False) -> dict[str, Any]:
    """What metrics.json holds: the stage, its machine and every logged row.

    Args:
        history: add the earlier stages, those of a checkpoint that it started from as well, each with its
            last row, under `earlier`.
    """
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    metrics: dict[str, Any] = {
        "stage": run.stage,
        "steps": state.max_steps,
        "batch": run.settings.batch * int(os.environ.get("WORLD_SIZE", "1")),  # clips a step, all processes
        "machine": machine,
        "rows": [row for row in state.log_history if "loss" in row],
    }
    if history:
        before = [stage_folder(run.experiment, stage) for stage in STAGES[: STAGES.index(run.stage)]]
        if run.experiment.start is not None:
            before.insert(0, Path(checkpoint.resolve(run.experiment.start)[0]))
        metrics["earlier"] = []
        for path in (folder / "metrics.json" for folder in before):
            if path.is_file():
                last = json.loads(path.read_text(encoding="utf-8"))
                metrics["earlier"] += last.pop("earlier", [])
                metrics["earlier"].append(last | {"rows": last["rows"][-1:]})
    return metrics
