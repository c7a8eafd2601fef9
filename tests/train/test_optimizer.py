"""Muon for the matrices inside layers, AdamW for the rest, and both resumed as one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mllm.errors import ConfigError
from mllm.experiment import load_experiment
from train.lora import add_lora
from train.optimizer import MuonAdamW, hidden_matrices, parameter_groups
from train.run import MODULE_GROUPS, set_trainable
from train.sections import Lora
from train.stages.instruct import InstructStage


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 3))


def groups_of(model: nn.Module, **rates) -> list[dict]:
    decayed = {name for name, _ in model.named_parameters() if "bias" not in name}
    return parameter_groups(model, decayed=decayed, weight_decay=0.01, **rates)


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for number in range(steps):
        torch.manual_seed(number)
        tokens = torch.randint(5, (32,))
        loss = nn.functional.cross_entropy(model(tokens), tokens % 3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_each_part_does_what_torchs_own_does():
    ours, theirs = small(), small()
    optimizer = MuonAdamW(groups_of(ours, rate=1e-2, muon_rate=2e-2), lr=1e-2, betas=(0.9, 0.98))
    muon = torch.optim.Muon(
        [theirs[1].weight, theirs[3].weight], lr=2e-2, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    rest = [
        {"params": [theirs[0].weight], "weight_decay": 0.01},
        {"params": [theirs[1].bias, theirs[3].bias], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(rest, lr=1e-2, betas=(0.9, 0.98))

    class Both:
        def zero_grad(self):
            theirs.zero_grad()

        def step(self):
            muon.step()
            adamw.step()

    assert take_steps(ours, optimizer, 5) == take_steps(theirs, Both(), 5)


def test_a_scheduler_moves_both_rates():
    optimizer = MuonAdamW(groups_of(small(), rate=1e-2, muon_rate=4e-2), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    schedule.step()
    assert {group["lr"] for group in optimizer.parts[0].param_groups} == {2e-2}
    assert {group["lr"] for group in optimizer.parts[1].param_groups} == {5e-3}


def test_a_resumed_run_has_the_losses_of_one_that_never_stopped():
    model = small()
    optimizer = MuonAdamW(groups_of(model, rate=1e-2, muon_rate=2e-2), lr=1e-2)
    take_steps(model, optimizer, 3)
    resumed = copy.deepcopy(model)
    again = MuonAdamW(groups_of(resumed, rate=1.0, muon_rate=1.0), lr=1.0)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert take_steps(resumed, again, 4) == take_steps(model, optimizer, 4)


def test_muon_is_for_the_matrices_inside_layers(tiny):
    model, _ = tiny
    names = set(hidden_matrices(model))
    assert "model.video_tower.encoder.encoder.layer.0.attention.attention.qkv.weight" in names
    assert "model.language_model.layers.0.self_attn.q_proj.weight" in names
    parameters = dict(model.named_parameters())
    assert all(parameters[name].ndim == 2 for name in names)
    kept = {"lm_head", "embed", "queries", "norm", "conv", "bias", "scale"}
    assert not [name for name in names for part in kept if part in name.lower()]
    adapted = add_lora(model, Lora(rank=2))
    assert not any("lora_" in name for name in hidden_matrices(adapted))


def test_a_rate_of_a_part_scales_both(tiny):
    model, _ = tiny
    towers = MODULE_GROUPS["video_tower"] + MODULE_GROUPS["audio_tower"]
    part_rates = {towers: 1e-3, MODULE_GROUPS["decoder"]: 5e-4, MODULE_GROUPS["space"]: None}
    groups = groups_of(model, rate=2e-3, muon_rate=8e-3, part_rates=part_rates)
    rates = {name: group["lr"] for group in groups for name in names_in(model, group)}
    assert rates["model.video_tower.encoder.embeddings.cls_token"] == pytest.approx(1e-3)
    assert rates["model.audio_tower.encoder.layers.0.fc1.weight"] == pytest.approx(4e-3)
    assert rates["model.language_model.embed_tokens.weight"] == pytest.approx(5e-4)
    assert rates["model.language_model.layers.0.mlp.up_proj.weight"] == pytest.approx(2e-3)
    assert rates["model.space.text_head.weight"] == pytest.approx(8e-3)
    assert rates["model.audio_qformer.queries"] == pytest.approx(2e-3)
    assert rates["model.video_projector.linear_in.weight"] == pytest.approx(8e-3)


def test_muon_with_nothing_to_train_is_one_clear_line(tiny):
    model, _ = tiny
    set_trainable(model, ["embeddings"])
    with pytest.raises(ConfigError, match="muon_lr is set, but no matrix inside a layer trains"):
        groups_of(model, rate=1e-3, muon_rate=1e-3)


def names_in(model: nn.Module, group: dict) -> list[str]:
    wanted = {id(parameter) for parameter in group["params"]}
    return [name for name, parameter in model.named_parameters() if id(parameter) in wanted]


def test_lora_has_a_rate_of_its_own_and_is_adamws(tmp_path, write_experiment, tiny):
    experiment = load_experiment(
        write_experiment(tmp_path), ["instruct.muon_lr=4e-3", "instruct.lora.lr=1e-4"]
    )
    trainer = InstructStage().trainer(InstructStage().open(experiment), *tiny)
    for group in trainer.create_optimizer().param_groups:
        lora = [name for name in names_in(trainer.objective, group) if "lora_" in name]
        if lora:
            assert len(lora) == len(group["params"])
            assert group["initial_lr" if "initial_lr" in group else "lr"] == pytest.approx(1e-4)
            assert not group["muon"]
    assert {group["muon"] for group in trainer.optimizer.param_groups} == {True, False}
