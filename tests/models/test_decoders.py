"""Decoders: each family's logits equal those of transformers' own ForCausalLM, before and after saving."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from mllm.errors import ConfigError, MllmError
from mllm.experiment import Model
from mllm.models import checkpoint
from mllm.models.decoders import DECODERS
from tests.tiny import SETTINGS, SMALL, TEXTS

# What every family is given where its config has such a field: small, and nothing at a value without effect.
FIELDS = SMALL | {
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "logit_scale": 0.25,
    "logits_scaling": 8.0,
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.0625,
    "final_logit_softcapping": 2.0,
    "attn_logit_softcapping": 5.0,
    "query_pre_attn_scalar": 32,
    "sliding_window": 4,
}


def settings(family: str, tied: bool) -> dict[str, Any]:
    known = CONFIG_MAPPING[family]().to_dict()
    fields = {name: value for name, value in FIELDS.items() if name in known}
    return SETTINGS | {"decoder": {"type": family, "tie_word_embeddings": tied} | fields}


def built(family: str, tied: bool) -> tuple[Any, Any, torch.Tensor]:
    """Our model with weights that make a difference, its processor, and some ids."""
    torch.manual_seed(0)
    model, processor = checkpoint.build_model(Model(**settings(family, tied)), list(TEXTS))
    for name, parameter in model.named_parameters():
        if "language_model" in name or "lm_head" in name:
            torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.3)
    return model.eval(), processor, torch.randint(3, 200, (2, 9))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", DECODERS)
def test_logits_are_those_of_the_familys_own_model(family, tied, tmp_path):
    model, processor, ids = built(family, tied)
    own = AutoModelForCausalLM.from_config(model.config.text_config, attn_implementation="eager").eval()
    own.get_decoder().load_state_dict(model.model.language_model.state_dict())
    own.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    expected = own(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-3)
    loaded, _ = checkpoint.load(checkpoint.save(model, processor, tmp_path / "model"))
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("family", ["granite", "cohere", "gemma2", "gemma3_text"])
def test_a_pretrained_decoder_brings_what_is_behind_its_head(family, tmp_path):
    model, processor, ids = built(family, True)
    own = AutoModelForCausalLM.from_config(model.config.text_config, attn_implementation="eager").eval()
    own.get_decoder().load_state_dict(model.model.language_model.state_dict())
    own.tie_weights()
    own.save_pretrained(tmp_path / "decoder")
    processor.tokenizer.save_pretrained(tmp_path / "decoder")
    ours, _ = checkpoint.build_model(Model(**SETTINGS | {"decoder": str(tmp_path / "decoder")}))
    torch.testing.assert_close(
        ours.eval()(input_ids=ids).logits, own(input_ids=ids).logits, atol=1e-4, rtol=1e-3
    )


@torch.no_grad()
@pytest.mark.parametrize("family", ["granite", "cohere", "gemma2"])
def test_every_loss_is_of_the_familys_logits(family):
    """forward's, stage 1's and, through the fused head, TRL's of stage 2."""
    from trl.trainer.utils import add_fused_lm_head

    from train.objectives.answers import answer_loss

    model, _, ids = built(family, True)
    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten())
    mask = torch.ones_like(ids)
    torch.testing.assert_close(model(input_ids=ids, labels=ids).loss, expected)
    torch.testing.assert_close(answer_loss(model, {}, ids, input_ids=ids, attention_mask=mask), expected)
    add_fused_lm_head(model, outputs=("log_probs",))
    fused = model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True)
    torch.testing.assert_close(
        -fused.log_probs.sum() / fused.label_mask.sum(), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("family", ["gemma3_text", "granite"])
def test_media_tokens_begin_as_long_as_words_are_when_they_enter(family):
    model, _, _ = built(family, True)
    with torch.no_grad():
        model.model.match_projectors()
        words = model.get_input_embeddings()(torch.arange(300))
    length = words.square().mean().sqrt()
    torch.testing.assert_close(model.model.video_projector.norm.weight.mean(), length, rtol=0.05, atol=0.0)


@pytest.mark.parametrize("family", ["falcon_h1", "minicpm3", "hyperclovax", "phi", "gpt2", "mamba"])
def test_a_family_that_nobody_has_compared_is_refused_by_name(family, tmp_path):
    with pytest.raises(ConfigError, match=f"the decoder is a '{family}', .*choose from .*llama"):
        checkpoint.build_model(Model(**settings(family, False)), list(TEXTS))
    CONFIG_MAPPING[family]().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"the decoder is a '{family}'"):
        checkpoint.build_model(Model(**SETTINGS | {"decoder": str(tmp_path)}))


def test_a_damaged_decoder_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"')
    with pytest.raises(
        MllmError, match=rf"model\.decoder: {tmp_path} cannot be read .*give a base, a folder"
    ) as caught:
        checkpoint.build_model(Model(**SETTINGS | {"decoder": str(tmp_path)}))
    assert "\n" not in str(caught.value)
