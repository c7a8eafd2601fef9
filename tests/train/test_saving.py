"""A model that two processes hold in parts is written whole, by the first of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mllm.models.checkpoint import load

# FSDP over two CPU processes: accelerate would make DDP of it there, so torch's own `fully_shard`.
SHARDED = """
import sys
import torch
from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard

from mllm.experiment import load_experiment
from mllm.models.checkpoint import load, save
from train.run import open_run, set_trainable
from train.saving import save_state
from train.stages.instruct import InstructStage

folder, config, out = sys.argv[1:]
accelerator = Accelerator(cpu=True)
model, processor = load(folder)
stage = InstructStage()
set_trainable(model, ["qformers"])
torch.manual_seed(0)
objective = stage.objective(stage.open(load_experiment(config)), model)
with torch.no_grad():
    for name, weight in objective.named_parameters():
        if "lora_B" in name:
            weight.fill_(0.01)
before = {name: weight.detach().clone() for name, weight in objective.model.state_dict().items()}
for layer in objective.base.model.language_model.layers:
    fully_shard(layer)
# FSDP2 shards no scalar: the inverse temperature stays whole.
fully_shard(objective, ignored_params={objective.base.model.space.logit_scale})
weights = [weight for weight in objective.parameters() if weight.dim()]
held = sum(weight.to_local().numel() for weight in weights)
assert held < 0.6 * sum(weight.numel() for weight in weights), "nothing is sharded"
state = save_state(objective, objective, accelerator)
if accelerator.is_main_process:
    assert state.keys() == before.keys(), state.keys() ^ before.keys()
    assert all(torch.equal(state[name], before[name]) for name in before)
    save(objective.model, processor, out, state=state)
accelerator.wait_for_everyone()
accelerator.end_training()
"""


@pytest.mark.slow
def test_a_sharded_model_with_lora_is_saved_as_an_unsharded_one(tiny_folder, write_experiment, tmp_path):
    config = write_experiment(tmp_path, text={"steps": 0}, contrastive={"steps": 0})
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    done = subprocess.run(
        [*command, str(script), str(tiny_folder), str(config), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    model, _ = load(out)
    whole, _ = load(tiny_folder)
    plain, merged = whole.state_dict(), model.state_dict()
    tuned = {name for name in plain if not torch.equal(plain[name], merged[name])}
    assert tuned
    assert all("_proj.weight" in name and "language_model" in name for name in tuned)
    assert (Path(out) / "adapter" / "adapter_model.safetensors").is_file()
