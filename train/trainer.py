"""The trainer of all stages: transformers' Trainer over an objective, with small checkpoints."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from torch import Tensor, nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from mllm.errors import ConfigError
from mllm.files import write_atomically
from mllm.models import checkpoint
from mllm.models.processor import MllmProcessor
from mllm.models.sides import SIDES
from train.curves import draw_losses
from train.data import Collator, number_dataset
from train.objectives.base import Objective
from train.objectives.media import SHARE
from train.optimizer import MuonAdamW, parameter_groups
from train.run import MODULE_GROUPS, Run, metrics_of, trainer_arguments
from train.saving import save_state

if TYPE_CHECKING:
    from tqdm import tqdm

# Dropped from log rows: a meaningless sum over our block mask, and a sum of losses logged separately.
NOT_KEPT = ("num_tokens", "aux_loss")
NOT_SHOWN = {"epoch", "step", "clips_per_second", "seconds"}  # on the terminal
LOGS_BELOW = 3  # in a row, before the guard stops a run


class StageTrainer(Trainer):
    """A Trainer that logs loss components, sets learning rates by part, and saves small checkpoints.

    Checkpoints contain the trained weights only: the others are in the result of the previous stage.

    Args:
        options: override those for transformers' Trainer.
    """

    optimizer: torch.optim.Optimizer | None

    def __init__(
        self, run: Run, objective: Objective, processor: MllmProcessor, collator: Collator, **options: Any
    ):
        self.run = run
        self.objective = objective
        self.trained = {name for name, weight in objective.named_parameters() if weight.requires_grad}
        settings = run.settings
        super().__init__(
            **{"model": objective, "args": TrainingArguments(**trainer_arguments(run))} | options,
            processing_class=processor,
            train_dataset=number_dataset(settings.steps, settings.batch),
            data_collator=collator,
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(RunCallback(run))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.objective.take_notes() | self.validated())
        super().log(logs, start_time)
        guard_media(self.run, self.state.log_history)

    def validated(self) -> dict[str, float]:
        """Scores to be logged at this step; {} at most steps, and for most stages at all."""
        return {}

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
                part_rates={  # the first that fits
                    ("lora_",): getattr(getattr(settings, "lora", None), "lr", None),
                    MODULE_GROUPS["mixers"]: None,
                    tuple(f"model.{side}_tower." for side in SIDES): getattr(settings, "tower_lr", None),
                    MODULE_GROUPS["decoder"]: getattr(settings, "decoder_lr", None),
                },
            )
            self.optimizer = (MuonAdamW if settings.muon_lr else adamw)(groups, **options)
        return self.optimizer

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        if state_dict is None:
            state_dict = dict(self.objective.named_parameters())
        trained = {
            name: weight.detach().contiguous() for name, weight in state_dict.items() if name in self.trained
        }
        safetensors.torch.save_file(trained, folder / "model.safetensors", metadata={"format": "pt"})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        state_dict = safetensors.torch.load_file(Path(resume_from_checkpoint) / "model.safetensors")
        wrong = (model or self.model).load_state_dict(state_dict, strict=False).unexpected_keys
        if wrong:
            raise ConfigError(f"{resume_from_checkpoint} does not fit this model ({wrong[0]}): use --restart")

    def run_stage(self) -> str:
        """Trains from the start or a checkpoint and writes the result; returns a line to print."""
        self.train(resume_from_checkpoint=str(self.run.resume) if self.run.resume else None)
        if self.is_world_process_zero():
            draw_losses(self.state.log_history, self.run.folder / "loss.png", self.run.stage)
        return self.finish()

    def finish(self) -> str:
        """Writes the result; called in every process. Returns a line to print."""
        return str(self.save_final())

    def save_final(self) -> Path:
        """Writes `final/`; called in every process, since each may hold a part of the weights."""
        state = save_state(self.model_wrapped, self.objective, self.accelerator)
        if self.is_world_process_zero():
            experiment = (self.run.folder / "experiment.yaml").read_text(encoding="utf-8")
            metrics = json.dumps(metrics_of(self.run, self.state, history=True), indent=1)
            extra = {"experiment.yaml": experiment, "metrics.json": metrics}
            checkpoint.save(self.objective.model, self.processing_class, self.run.final, extra, state=state)
        self.accelerator.wait_for_everyone()
        return self.run.final


def guard_media(run: Run, rows: Sequence[Mapping[str, float]]) -> None:
    """Stops a run in which media no longer reach the decoder.

    Args:
        rows: logged so far.

    Raises:
        ConfigError: if the share of a modality was below `guard` in the last logs after the warm-up.
    """
    settings = run.settings
    rows = [row for row in rows if row["step"] > settings.warmup and "loss" in row]
    for name in {name for row in rows[-1:] for name in row if name.startswith(SHARE)}:
        shares = [row[name] for row in rows if name in row][-LOGS_BELOW:]
        if len(shares) == LOGS_BELOW and max(shares) < settings.guard:
            told = ", ".join(f"{share:.4f}" for share in shares)
            raise ConfigError(
                f"{run.stage}: step {rows[-1]['step']:g}: to the decoder, the {name.removeprefix(SHARE)} of "
                f"all recordings is the same (of its tokens' energy {told} differ between them, less than "
                f"{run.section}.guard {settings.guard:g}), so nothing is learned from it: give lower rates, "
                f"start from a better stage 1, or go on regardless with {run.section}.guard=0"
            )


class RunCallback(TrainerCallback):
    """Writes metrics.json and shows a progress bar with clips/s (plain lines without a terminal)."""

    def __init__(self, run: Run):
        self.stage_run = run
        self.bar: tqdm | None = None
        self.last = (time.monotonic(), 0)  # time and step of the last log row
        self.seconds = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.last = (time.monotonic(), state.global_step)
        self.seconds = state.log_history[-1].get("seconds", 0.0) if state.log_history else 0.0
        if state.is_world_process_zero and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.stage_run.stage)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        validated = getattr(self.stage_run.settings, "validate_every", 0)
        if state.global_step % state.save_steps == 0 or (validated and state.global_step % validated == 0):
            control.should_log = True  # so that a resumed run averages over the same steps
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        now, (then, step) = time.monotonic(), self.last
        self.last = (now, state.global_step)
        self.seconds += now - then
        if not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        clips = (state.global_step - step) * args.train_batch_size * args.world_size / max(now - then, 1e-9)
        row = state.log_history[-1]
        for name in NOT_KEPT:
            row.pop(name, None)
        row |= {"clips_per_second": round(clips, 1), "seconds": round(self.seconds, 1)}
        metrics = metrics_of(self.stage_run, state)
        write_atomically(self.stage_run.folder / "metrics.json", json.dumps(metrics, indent=1))
        parts = {name: value for name, value in row.items() if name not in NOT_SHOWN}
        line = "  ".join(f"{name} {value:.4g}" for name, value in parts.items()) + f"  {clips:.0f} clips/s"
        if self.bar is not None:
            self.bar.set_postfix_str(line)
        else:
            print(f"{self.stage_run.stage} {state.global_step}/{state.max_steps}  {line}", flush=True)

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            draw_losses(state.log_history, self.stage_run.folder / "loss.png", self.stage_run.stage)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.bar is not None:
            self.bar.close()
