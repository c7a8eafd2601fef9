"""LoRA on the decoder (Hu et al. 2021, arXiv:2106.09685), by PEFT."""

from __future__ import annotations

from peft import LoraConfig, PeftModel, get_peft_model

from mllm.models.lora import new_token_rows
from mllm.models.model import MllmForConditionalGeneration
from train.sections import Lora


def add_lora(
    model: MllmForConditionalGeneration, lora: Lora | None
) -> MllmForConditionalGeneration | PeftModel:
    """Adds LoRA to the model, unless `lora` is None; trainable parameters stay trainable."""
    if lora is None:
        return model
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target,
            trainable_token_indices=new_token_rows(model),
            task_type="CAUSAL_LM",
        ),
    )
    for parameter in trainable:
        parameter.requires_grad_(True)
    return adapted
