"""Stage 0, for decoders that start from nothing: a language model of told scenes and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from train.data import TextCollator, number_dataset
from train.run import Run, StageTrainer, prepare_model, set_trainable, trainer_arguments


def train(run: Run, model: Any, processor: Any) -> Path:
    """Stage 0, resumed where it stopped; returns the folder of its result."""
    from mllm.records.source import open_source

    settings = run.settings
    set_trainable(model, ["decoder"])
    prepare_model(model, run)
    trainer = StageTrainer(
        run=run,
        model=model,
        args=TrainingArguments(**trainer_arguments(run)),
        train_dataset=number_dataset(settings.steps, settings.batch),
        data_collator=TextCollator(open_source(run.experiment.data.train), processor, run.experiment.seed),
    )
    return trainer.run_stage(model, processor)
