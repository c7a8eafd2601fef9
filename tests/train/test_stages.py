"""What each stage computes: gradients everywhere they should be, and losses equal to the plain ones.

The trainers are the stages' own, asked for and not run.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from mllm.errors import ConfigError
from mllm.models.encoded import IGNORE
from train.data import PairCollator, TextCollator, by_prefix
from train.objectives.contrastive import ContrastiveObjective
from train.objectives.space import longest_caption
from train.run import MODULE_GROUPS, set_trainable
from train.stages.contrastive import ContrastiveStage
from train.stages.instruct import InstructStage
from train.stages.text import TextStage

ROWS = [{"number": number} for number in range(12)]


def without_gradient(model) -> list[str]:
    return [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)
    ]


def asked_for(stage, experiment, tiny, **settings):
    """The stage's trainer, ready for a step, with some of its settings changed."""
    run = stage.open(experiment)
    for name, value in settings.items():
        setattr(run.settings, name, value)
    trainer = stage.trainer(run, *tiny)
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


@pytest.mark.parametrize("checkpointing", [False, True])
def test_text_stage_reaches_the_whole_decoder(checkpointing, experiment, tiny):
    model, _ = tiny
    trainer = asked_for(TextStage(), experiment, tiny, gradient_checkpointing=checkpointing)
    trainer.training_step(trainer.model, trainer.data_collator(ROWS))
    assert without_gradient(model) == []
    assert {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad} == {
        "language_model"
    }


@pytest.mark.parametrize("checkpointing", [False, True])
def test_contrastive_stage_reaches_everything(checkpointing, experiment, tiny):
    model, _ = tiny
    trainer = asked_for(ContrastiveStage(), experiment, tiny, gradient_checkpointing=checkpointing)
    model.train()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(ROWS))
    loss.backward()
    # The Whisper tower's positions are sinusoids; a place beyond a clip's third window has not been seen.
    missing = [name for name in without_gradient(model) if "type_embeddings" not in name]
    assert missing == []
    assert not model.model.audio_tower.encoder.embed_positions.weight.requires_grad
    losses = trainer.objective.take_notes()
    parts = losses["video_text_loss"] + losses["audio_text_loss"] + losses["fused_text_loss"]
    total = parts / 3 + 0.3 * losses["video_audio_loss"] + losses["caption_loss"]
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert trainer.objective.take_notes() == {}


def test_contrastive_stage_keeps_what_the_decoder_learned_from_text(experiment, tiny, world):
    model, processor = tiny
    objective = ContrastiveObjective(model, ContrastiveStage().open(experiment).settings)
    batch = PairCollator(world, processor, 0, 64, text_batch=2)(ROWS)
    texts = TextCollator(world, processor, 0)(ROWS[:2])
    loss = objective(**batch)["loss"]
    text_loss = objective.take_notes()["text_loss"]
    assert text_loss == pytest.approx(model(**texts).loss.item(), rel=1e-5)
    without = objective(**PairCollator(world, processor, 0, 64)(ROWS))["loss"]
    torch.testing.assert_close(loss, without + text_loss)


def test_words_of_captions_teach_the_adapters_without_the_decoder(experiment, tiny):
    model, _ = tiny
    groups = ["qformers", "projectors"]
    trainer = asked_for(
        ContrastiveStage(),
        experiment,
        tiny,
        word_weight=1.0,
        contrastive_weight=0.0,
        caption_weight=0.0,
        train=groups,
    )
    model.train()
    batch = trainer.data_collator(ROWS)
    assert "labels" not in batch
    words = trainer.objective(**batch)["loss"]
    words.backward()
    assert words.item() == pytest.approx(trainer.objective.take_notes()["word_loss"])
    assert without_gradient(model) == []
    trained = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"video_qformer", "audio_qformer", "video_projector", "audio_projector"}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_instruct_stage_reaches_lora_and_what_the_yaml_names(checkpointing, experiment, tiny):
    trainer = asked_for(InstructStage(), experiment, tiny, gradient_checkpointing=checkpointing)
    objective, settings = trainer.objective, trainer.run.settings
    for name, parameter in objective.named_parameters():
        if "lora_B" in name:  # they begin at zero, and so would the gradients of A
            torch.nn.init.normal_(parameter, std=0.02)
    trainer.training_step(objective, trainer.data_collator(ROWS))
    assert without_gradient(objective) == []
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    assert trained == trainer.trained
    assert all("lora_" in name for name in trained if "language_model" in name)
    for group in settings.train:
        assert any(prefix in name for name in trained for prefix in MODULE_GROUPS[group]), group
    rates = {
        "tower" if group["lr"] == settings.tower_lr else "rest": sum(p.numel() for p in group["params"])
        for group in trainer.optimizer.param_groups
    }
    assert rates.keys() == {"tower", "rest"}


def test_trls_loss_is_the_models_own(experiment, tiny):
    model, _ = tiny
    trainer = asked_for(InstructStage(), experiment, tiny, contrastive_weight=0.0)
    batch = trainer.data_collator(ROWS)
    assert "space" not in batch
    with torch.no_grad():
        own = model(**batch).loss
        trls = trainer.compute_loss(trainer.model, dict(batch))
    assert trls.item() == pytest.approx(own.item(), abs=1e-5)


def test_the_retained_losses_are_added_with_their_weights(experiment, tiny):
    model, _ = tiny
    trainer = asked_for(InstructStage(), experiment, tiny, contrastive_weight=0.5)
    trainer.objective.word_weight = 0.7
    batch = trainer.data_collator(ROWS)
    with torch.no_grad():
        both = trainer.compute_loss(trainer.model, dict(batch))
        losses = trainer.objective.take_notes()
        batch.pop("space")
        alone = model(**batch).loss
    texts = losses["video_text_loss"] + losses["audio_text_loss"] + losses["fused_text_loss"]
    space = texts / 3 + 0.3 * losses["video_audio_loss"] + 0.7 * losses["word_loss"]
    assert losses["answer_loss"] == pytest.approx(alone.item(), abs=1e-5)
    assert both.item() == pytest.approx(alone.item() + 0.5 * space, abs=1e-5)


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
    set_trainable(model, ["heads"])
    trained = {name.split(".")[2] for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {"text_head", "video_head", "audio_head", "logit_scale"}  # not the text tower
    model.config.space_config = None
    with pytest.raises(ConfigError, match=r"model\.text is null"):
        longest_caption(model.config)


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
            tower.encoder.register_forward_pre_hook(lambda _, inputs: runs.append(len(inputs[0])))
        run = InstructStage().open(experiment)
        InstructStage().trainer(run, model, processor).run_stage()
        rows = json.loads((run.folder / "metrics.json").read_text())["rows"]
        return [row["loss"] for row in rows], len(runs)

    plain, runs = losses("plain")
    cache = f"data.cache.folder={tmp_path / 'features'}"
    first, first_runs = losses("first", cache)
    second, second_runs = losses("second", cache)
    assert runs >= first_runs > second_runs == 0
    assert first == second
    assert first == pytest.approx(plain, rel=0.02)  # features are kept in bfloat16


def test_a_base_in_bfloat16_learns_the_same_and_is_saved_as_it_was(tmp_path, write_experiment, tiny_folder):
    from mllm.experiment import load_experiment
    from mllm.models.checkpoint import load

    def trained(name: str, *overrides: str) -> tuple[list[float], dict[str, torch.Tensor]]:
        experiment = load_experiment(write_experiment(tmp_path), [f"name={name}", *overrides])
        model, processor = load(tiny_folder)
        run = InstructStage().open(experiment)
        trainer = InstructStage().trainer(run, model, processor)
        trainer.run_stage()
        assert {p.dtype for p in trainer.objective.parameters() if p.requires_grad} == {torch.float32}
        rows = json.loads((run.folder / "metrics.json").read_text())["rows"]
        return [row["loss"] for row in rows], load_file(run.final / "model.safetensors")

    plain, _ = trained("plain", "instruct.bf16=true")
    rounded, weights = trained("rounded", "instruct.bf16=true", "instruct.bf16_base=true")
    assert rounded == pytest.approx(plain, rel=0.02)
    before = load_file(tiny_folder / "model.safetensors")
    frozen = [name for name in before if "language_model" in name]
    assert all(torch.equal(weights[name], before[name].bfloat16()) for name in frozen)
    with pytest.raises(ConfigError, match=r"bf16_base needs bf16: true"):
        load_experiment(write_experiment(tmp_path), ["instruct.bf16_base=true"])
