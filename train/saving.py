"""Gathers the weights of a model that may be sharded over several processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from mllm.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from train.objectives.base import Objective

PREFIX = "model."  # of `Objective.model`


def save_state(wrapped: nn.Module, objective: Objective, accelerator: Accelerator) -> dict[str, Tensor]:
    """Gathers the full state dict of `objective.model`; called in every process.

    Args:
        wrapped: the objective as wrapped by the trainer: unchanged, or in DDP, FSDP or DeepSpeed.

    Returns:
        the full state in the first process; in others it may be empty.

    Raises:
        ConfigError: if DeepSpeed is configured to keep the weights sharded.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        try:
            state = accelerator.get_state_dict(wrapped) or {}
        except ValueError:
            raise ConfigError(
                "DeepSpeed's stage3_gather_16bit_weights_on_model_save is false, so the result cannot be "
                "written whole: set it to true"
            ) from None
    elif accelerator.num_processes > 1:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(wrapped, options=options)
    else:
        state = objective.state_dict()
    return {name.removeprefix(PREFIX): weight for name, weight in state.items() if name.startswith(PREFIX)}
