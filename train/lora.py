"""LoRA on the decoder (Hu et al. 2021, arXiv:2106.09685), by PEFT."""

from __future__ import annotations

from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from mllm.models.lora import merge_lora, new_token_rows
from mllm.models.model import MllmForConditionalGeneration
from train.sections import Lora


def plain_model(model: MllmForConditionalGeneration | PeftModel) -> MllmForConditionalGeneration:
    """The model inside a PeftModel, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def add_lora(
    model: MllmForConditionalGeneration | PeftModel, lora: Lora | None, stage: str = "instruct"
) -> MllmForConditionalGeneration | PeftModel:
    """Adds LoRA to the model, unless `lora` is None; trainable parameters stay trainable.

    An adapter that the model has already is trained further if it is of the same kind, so that the result
    differs from its base by that adapter alone. Otherwise it is merged first, and a line says so.
    """
    if isinstance(model, PeftModel):
        difference = _difference(model, lora)
        if lora is not None and difference is None:
            return _continued(model, lora)
        print(f"{stage}: the LoRA of the start is merged into the decoder, since {difference}")
        model = merge_lora(model)
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


def _difference(model: PeftModel, lora: Lora | None) -> str | None:
    """How the adapter of a model differs from what an experiment asks for; None if it does not."""
    if lora is None:
        return "instruct.lora is null"
    there = model.peft_config[model.active_adapter]
    fields = {"rank": "r", "alpha": "lora_alpha", "target": "target_modules"}
    for name, field in fields.items():
        value = getattr(lora, name)
        if (found := getattr(there, field)) != value:
            return f"instruct.lora.{name} is {value} here, {found} there"
    return None


def _continued(model: PeftModel, lora: Lora) -> PeftModel:
    """The same adapter, trainable, with the dropout that is asked for."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in module.lora_dropout:
                module.lora_dropout[name] = nn.Dropout(lora.dropout) if lora.dropout else nn.Identity()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.requires_grad_(True)
    return model
