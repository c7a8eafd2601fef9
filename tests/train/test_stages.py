"""What each stage computes: gradients everywhere they should be, and losses equal to the plain ones."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import TrainingArguments
from trl import SFTConfig

from mllm.errors import ConfigError
from mllm.models.processor import IGNORE
from train import contrastive, instruct
from train.data import PairCollator, QuestionCollator, TextCollator, by_prefix, number_dataset
from train.run import MODULE_GROUPS, StageTrainer, open_run, prepare_model, set_trainable, trainer_arguments

ROWS = [{"number": number} for number in range(12)]


def without_gradient(model) -> list[str]:
    return [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]


def instruct_trainer(run, model, processor, world, contrastive_weight=0.1):
    run.settings.contrastive_weight = contrastive_weight
    set_trainable(model, run.settings.train)
    tuned = instruct.add_lora(model, run.settings.lora)
    prepare_model(model, run)
    text_tokens = 64 if contrastive_weight else None
    return tuned, instruct.InstructTrainer(
        run=run,
        base=model,
        model=tuned,
        args=SFTConfig(
            max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, **trainer_arguments(run)
        ),
        processing_class=processor,
        train_dataset=number_dataset(run.settings.steps, run.settings.batch),
        data_collator=QuestionCollator(world, processor, 0, 3, text_tokens),
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_text_stage_reaches_the_whole_decoder(checkpointing, experiment, tiny, world):
    model, processor = tiny
    run = open_run(experiment, "text")
    run.settings.gradient_checkpointing = checkpointing
    set_trainable(model, ["decoder"])
    prepare_model(model, run)
    trainer = StageTrainer(
        run=run,
        model=model,
        args=TrainingArguments(**trainer_arguments(run)),
        train_dataset=number_dataset(1, 4),
        data_collator=TextCollator(world, processor, 0),
    )
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.training_step(model, trainer.data_collator(ROWS))
    assert without_gradient(model) == []
    assert {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad} == {
        "language_model"
    }


@pytest.mark.parametrize("checkpointing", [False, True])
def test_contrastive_stage_reaches_everything(checkpointing, experiment, tiny, world):
    model, processor = tiny
    run = open_run(experiment, "contrastive")
    run.settings.gradient_checkpointing = checkpointing
    set_trainable(model, run.settings.train)
    prepare_model(model, run)
    model.train()
    losses = contrastive.ContrastiveObjective(model, run.settings)(
        **PairCollator(world, processor, 0, 64)(ROWS)
    )
    losses["loss"].backward()
    # The Whisper tower's positions are sinusoids; a place beyond a clip's third window has not been seen.
    missing = [name for name in without_gradient(model) if "type_embeddings" not in name]
    assert missing == []
    assert not model.model.audio_tower.encoder.embed_positions.weight.requires_grad
    parts = losses["video_text_loss"] + losses["audio_text_loss"] + losses["fused_text_loss"]
    total = parts / 3 + 0.3 * losses["video_audio_loss"] + losses["caption_loss"]
    torch.testing.assert_close(losses["loss"], total)


def test_contrastive_stage_keeps_what_the_decoder_learned_from_text(experiment, tiny, world):
    model, processor = tiny
    run = open_run(experiment, "contrastive")
    batch = PairCollator(world, processor, 0, 64, text_batch=2)(ROWS)
    texts = TextCollator(world, processor, 0)(ROWS[:2])
    losses = contrastive.ContrastiveObjective(model, run.settings)(**batch)
    torch.testing.assert_close(losses["text_loss"], model(**texts).loss)
    without = contrastive.ContrastiveObjective(model, run.settings)(
        **PairCollator(world, processor, 0, 64)(ROWS)
    )
    torch.testing.assert_close(losses["loss"], without["loss"] + losses["text_loss"])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_instruct_stage_reaches_lora_and_what_the_yaml_names(checkpointing, experiment, tiny, world):
    model, processor = tiny
    run = open_run(experiment, "instruct")
    run.settings.gradient_checkpointing = checkpointing
    tuned, trainer = instruct_trainer(run, model, processor, world)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:  # they begin at zero, and so would the gradients of A
            torch.nn.init.normal_(parameter, std=0.02)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    trainer.training_step(tuned, trainer.data_collator(ROWS))
    assert without_gradient(tuned) == []
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained if "language_model" in name)
    for group in run.settings.train:
        assert any(prefix in name for name in trained for prefix in MODULE_GROUPS[group]), group
    rates = {
        "tower" if group["lr"] == run.settings.tower_lr else "rest": sum(p.numel() for p in group["params"])
        for group in trainer.optimizer.param_groups
    }
    assert rates.keys() == {"tower", "rest"}


def test_trls_loss_is_the_models_own(experiment, tiny, world):
    model, processor = tiny
    run = open_run(experiment, "instruct")
    tuned, trainer = instruct_trainer(run, model, processor, world, contrastive_weight=0.0)
    batch = trainer.data_collator(ROWS)
    with torch.no_grad():
        own = model(**batch).loss
        trls = trainer.compute_loss(tuned, dict(batch))
    assert trls.item() == pytest.approx(own.item(), abs=1e-5)


def test_the_retained_loss_is_added_with_its_weight(experiment, tiny, world):
    model, processor = tiny
    run = open_run(experiment, "instruct")
    tuned, trainer = instruct_trainer(run, model, processor, world, contrastive_weight=0.5)
    batch = trainer.data_collator(ROWS)
    with torch.no_grad():
        both = trainer.compute_loss(tuned, dict(batch))
        space = trainer.space_loss
        batch.pop("space")
        alone = trainer.compute_loss(tuned, dict(batch))
    assert both.item() == pytest.approx(alone.item() + 0.5 * space.item(), abs=1e-5)
    assert trainer.space_loss is None


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_questions_behind_one_prefix_cost_what_they_cost_alone(attention, tiny, world):
    model, processor = tiny
    model.model.language_model.set_attn_implementation(attention)
    group = next(
        g for i in range(50) for g in by_prefix(r["messages"] for r in world.conversations(i)) if len(g) > 2
    )
    packed = processor.collate([processor.encode_group(group)])
    alone = [processor.collate([processor.encode(messages)]) for messages in group]
    with torch.no_grad():
        counts = [int((batch["labels"] != IGNORE).sum()) for batch in alone]
        losses = [model(**batch).loss.item() for batch in alone]
        expected = sum(n * loss for n, loss in zip(counts, losses, strict=True)) / sum(counts)
        assert model(**packed).loss.item() == pytest.approx(expected, abs=1e-5)


def test_unknown_groups_and_missing_space_are_named(tiny):
    model, _ = tiny
    with pytest.raises(ConfigError, match="unknown module group 'tower'.*video_tower"):
        set_trainable(model, ["tower"])
    model.config.space_config = None
    with pytest.raises(ConfigError, match=r"model\.text is null"):
        contrastive.longest_caption(model)


def test_frozen_towers_run_once_where_their_features_are_kept(tmp_path, write_experiment, tiny_folder):
    from mllm.experiment import load_experiment
    from mllm.models.checkpoint import load

    def losses(name: str, *overrides: str) -> tuple[list[float], int]:
        path = write_experiment(tmp_path)
        experiment = load_experiment(
            path, [f"name={name}", "instruct.train=[qformers,projectors]", *overrides]
        )
        model, processor = load(tiny_folder)
        runs: list[int] = []
        for tower in (model.model.video_tower, model.model.audio_tower):
            tower.register_forward_pre_hook(lambda _, inputs: runs.append(len(inputs[0])))
        run = open_run(experiment, "instruct")
        instruct.train(run, model, processor)
        rows = json.loads((run.folder / "metrics.json").read_text())["rows"]
        return [row["loss"] for row in rows], len(runs)

    plain, runs = losses("plain")
    cache = f"data.cache.folder={tmp_path / 'features'}"
    first, first_runs = losses("first", cache)
    second, second_runs = losses("second", cache)
    assert runs >= first_runs > second_runs == 0
    assert first == second
    assert first == pytest.approx(plain, rel=0.02)  # features are kept in bfloat16
