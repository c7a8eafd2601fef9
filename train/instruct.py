"""Stage 2: instruction tuning with TRL, LoRA on the decoder, several questions behind one media prefix.

TRL computes the token loss from the decoder's hidden states itself (equal to `forward`'s, tested). The shared
space is kept by a contrastive loss on clips with captions: tuning the towers for questions alone bends it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from trl import SFTConfig, SFTTrainer

from mllm.errors import ConfigError
from mllm.models.lora import new_token_rows
from mllm.models.model import MllmForConditionalGeneration
from mllm.models.processor import take_media
from train.contrastive import longest_caption, space_losses, weighted
from train.data import PROCESSES, QuestionCollator, number_dataset
from train.run import Run, StageTrainer, prepare_model, set_trainable, trainer_arguments
from train.sections import Contrastive


def add_lora(model: MllmForConditionalGeneration, lora: Any | None) -> nn.Module:
    """LoRA (Hu et al. 2021) on the decoder, leaving trainable whatever `set_trainable` left so.

    Raises:
        ConfigError: if the head would get an adapter.
    """
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
    head = adapted.get_base_model().get_output_embeddings()
    if isinstance(head, TrainableTokensWrapper):
        head.bias = None  # TRL's loss asks for it, and PEFT's wrapper passes on the weight alone
    if isinstance(head, LoraLayer):
        raise ConfigError(
            f"instruct.lora.target {lora.target!r} names the head, and the training loss goes past an "
            "adapter there: leave out lm_head"
        )
    return adapted


class InstructTrainer(StageTrainer, SFTTrainer):
    """TRL's trainer; adds the retained contrastive loss where the experiment asks for one."""

    def __init__(self, run: Run, base: MllmForConditionalGeneration, **kwargs: Any):
        self.space_loss: Tensor | None = None
        super().__init__(run=run, **kwargs)
        self._keep_space(base)

    def _keep_space(self, base: MllmForConditionalGeneration) -> None:
        """Let the model's forward pass take `space` too: distributed wrappers then see what is used."""
        forward = base.forward

        def forward_with_space(*args: Any, space: dict[str, Tensor] | None = None, **inputs: Any) -> Any:
            if space is None:
                return forward(*args, **inputs)
            queries = base.model.query_outputs(**take_media(inputs))
            outputs = forward(*args, media_queries=queries, **inputs)
            losses = space_losses(base.model, queries, space)
            self.add_parts(losses)
            # The space that stage 1 made is kept by stage 1's own weights.
            video_audio_weight = self.run.experiment.section(Contrastive).video_audio_weight
            # In the outputs, too, where distributed wrappers look for what is used.
            self.space_loss = outputs.aux_loss = weighted(losses, video_audio_weight)
            return outputs

        base.forward = forward_with_space

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Not TRL's: `mllm export` writes ours."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.space_loss = None
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # TRL sums the attention mask to count tokens; ours is a block mask, whose sum says nothing.
        self._metrics["train"].pop("num_tokens", None)
        loss, outputs = result if return_outputs else (result, None)
        if self.space_loss is not None:
            self.add_parts({"answer_loss": loss})
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + self.run.settings.contrastive_weight * self.space_loss / steps
        return (loss, outputs) if return_outputs else loss


def train(run: Run, model: MllmForConditionalGeneration, processor: Any) -> Path:
    """Stage 2, resumed where it stopped; returns the folder of its result."""
    from mllm.records.source import open_source

    settings, data = run.settings, run.experiment.data
    set_trainable(model, settings.train)
    torch.manual_seed(run.experiment.seed)
    tuned = add_lora(model, settings.lora)
    prepare_model(model, run)
    trainer = InstructTrainer(
        run=run,
        base=model,
        model=tuned,
        args=SFTConfig(
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
            **trainer_arguments(run),
        ),
        processing_class=processor,
        train_dataset=number_dataset(settings.steps, settings.batch),
        data_collator=QuestionCollator(
            open_source(data.train),
            processor,
            run.experiment.seed,
            data.questions_per_clip,
            text_tokens=longest_caption(model) if settings.contrastive_weight else None,
            augmentation=data.augment,
            easy=open_source(settings.curriculum.source) if settings.curriculum else None,
            easy_clips=settings.curriculum.steps * settings.batch * PROCESSES if settings.curriculum else 0,
        ),
    )
    return trainer.run_stage(tuned, processor)
