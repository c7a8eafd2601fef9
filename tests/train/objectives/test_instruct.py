"""Instruction tuning: chat that is learned from the decoder without LoRA."""

from __future__ import annotations

import pytest
import torch

from mllm.models.encoded import IGNORE
from tests.tiny import ask, clip, tiny
from train.lora import add_lora
from train.objectives.instruct import InstructObjective
from train.sections import Instruct, Lora


@pytest.fixture
def tuned():
    """(PeftModel whose LoRA is more than nothing, batch of a chat and a question about a clip)"""
    model, processor = tiny()
    chat = [{"role": "user", "content": "hello?"}, {"role": "assistant", "content": "three beeps."}]
    rows = [processor.encode(chat), processor.encode(ask(clip(2), "what colour?", answer="red"))]
    adapted = add_lora(model, Lora(rank=4, alpha=8))
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    return adapted, processor.collate(rows)


def test_chat_is_learned_from_the_decoder_without_lora(tuned):
    model, batch = tuned
    plain = InstructObjective(model, 0.0)(**batch)
    taught = InstructObjective(model, 0.0, distill_chat=True)(**batch, use_cache=False)
    torch.testing.assert_close(
        taught.log_probs[1], plain.log_probs[1]
    )  # the answer about a clip is as it was

    ids, labels = batch["input_ids"][:1], batch["labels"][0, 1:]
    mask = batch["attention_mask"][:1]
    own = model(input_ids=ids, attention_mask=mask).logits[0, :-1].log_softmax(-1)
    with model.disable_adapter():
        base = model(input_ids=ids, attention_mask=mask).logits[0, :-1].softmax(-1)
    trained = labels != IGNORE
    torch.testing.assert_close(taught.log_probs[0][trained], (base * own).sum(-1)[trained])
    assert not torch.allclose(taught.log_probs[0], plain.log_probs[0])


def test_a_batch_without_chat_has_nothing_to_distill(tuned):
    model, batch = tuned
    alone = {
        name: tensor[1:] if name in ("input_ids", "labels", "attention_mask") else tensor
        for name, tensor in batch.items()
    }
    one, other = (
        InstructObjective(model, 0.0, distill_chat=distill)(**alone).log_probs for distill in (True, False)
    )
    torch.testing.assert_close(one, other)


def test_without_lora_there_is_nothing_to_learn_from():
    with pytest.raises(ValueError, match="lora is null: drop one"):
        Instruct(lora=None, chat={"source": "chat.jsonl", "distill": True})
