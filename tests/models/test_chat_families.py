"""A pretrained decoder of each family in our model: ids and mask in its own form, its own ends, new rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from mllm.errors import ConfigError
from mllm.experiment import Model
from mllm.models import checkpoint
from mllm.models.checkpoint_check import checkpoint_shapes
from mllm.models.lora import check_served, merge_lora, new_token_rows
from mllm.models.processor import MllmProcessor
from mllm.records import chat
from tests.families import FAMILIES, SMOLLM2, decoder_folder, family_tokenizer
from tests.tiny import SETTINGS, ask, clip, tiny

ANSWERS = ("A bell.", "7 of them", "日本 🎬", " (yes)\n", '"quoted"', "")


def built(folder: Path):
    return checkpoint.build_model(Model(**SETTINGS | {"decoder": str(folder)}))


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request, tmp_path_factory) -> tuple[str, MllmProcessor]:
    return request.param, built(decoder_folder(request.param, tmp_path_factory.mktemp("decoder")))[1]


def talk(*answers: str) -> list[dict]:
    messages: list[dict] = []
    for answer in answers:
        messages += ask(clip(), "what is it?") if not messages else [{"role": "user", "content": "and now?"}]
        messages.append({"role": "assistant", "content": answer})
    return messages


def test_the_inference_prompt_is_an_exact_prefix_of_the_training_ids(family) -> None:
    _, processor = family
    for count in range(1, len(ANSWERS) + 1):
        messages = talk(*ANSWERS[:count])
        prompt = processor.encode(messages[:-1], add_generation_prompt=True).input_ids
        assert processor.encode(messages).input_ids[: len(prompt)] == prompt


def test_exactly_the_answers_and_their_ends_are_trained(family) -> None:
    _, processor = family
    encoded = processor.encode(talk(*ANSWERS))
    trained = [label for label in encoded.labels if label != -100]
    words = [answer.strip() if processor.form.strip else answer for answer in ANSWERS]
    written = "".join(processor.form.lead + word + processor.form.end for word in words)
    assert processor.tokenizer.decode(trained).replace(" ", "") == written.replace(" ", "")
    assert trained.count(processor.end_id) == len(ANSWERS)
    assert trained[-1] == processor.end_id == encoded.input_ids[-1]


def test_the_rendered_template_becomes_the_same_ids(family) -> None:
    """As vLLM does it: the template's text to ids, then each placeholder to its item's tokens."""
    _, processor = family
    messages = talk(*ANSWERS)[:-1]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = processor.tokenizer.encode(text, add_special_tokens=False)
    place = ids.index(processor.token_ids["video"])
    layout = processor.encode(messages, add_generation_prompt=True).media[0].layout
    ids[place : place + 1] = processor.placeholder_ids("video", layout)
    assert processor.encode(messages, add_generation_prompt=True).input_ids == ids


def test_a_decoder_keeps_its_special_tokens_and_gets_placeholders(family) -> None:
    name, processor = family
    before, tokenizer = family_tokenizer(name), processor.tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token) == (before.bos_token, before.eos_token)
    added = set(tokenizer.get_vocab()) - set(before.get_vocab())
    assert added == {*chat.PLACEHOLDERS.values(), *([] if before.pad_token else [chat.PAD_TOKEN])}


@pytest.mark.parametrize("name", ["smollm2", "qwen3", "gemma3", "llama3"])
def test_answers_end_as_the_familys_do_also_once_saved(name: str, tmp_path) -> None:
    model, processor = built(decoder_folder(name, tmp_path / "decoder"))
    ends = model.generation_config.eos_token_id
    assert ends[0] == processor.end_id
    assert set(ends) >= {processor.tokenizer.eos_token_id, 0}
    folder = checkpoint.save(model, processor, tmp_path / "model")
    loaded, its_processor = checkpoint.load(folder)
    assert loaded.generation_config.eos_token_id == ends
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == ends
    assert its_processor.form == processor.form
    messages = talk("A bell.", "Two.")
    assert its_processor.encode(messages).input_ids == processor.encode(messages).input_ids


def test_a_decoder_without_a_template_gets_our_form(tmp_path) -> None:
    _, processor = built(decoder_folder("llama3", tmp_path, template=None))
    assert processor.form.end == chat.END_TOKEN
    assert processor.form.opening == "<|begin_of_text|><|user|>"


def test_a_template_that_does_not_fit_is_one_line(tmp_path) -> None:
    template = SMOLLM2.replace("assistant\n' }}", "assistant\n<think>\n' }}")
    folder = decoder_folder("smollm2", tmp_path, template=template)
    with pytest.raises(ConfigError, match=rf"model\.decoder: {folder}: .* prefix-stable turns") as caught:
        built(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["llama3", "smollm2"])
def test_new_tokens_train_beside_lora_and_are_saved_in_the_base(name: str, tied: bool, tmp_path) -> None:
    """A base model: it learns our role markers, which nothing has ever trained."""
    model, processor = built(decoder_folder(name, tmp_path / "decoder", template=None, tied=tied))
    new = model.config.new_token_ids
    assert processor.tokenizer.convert_ids_to_tokens(new) == processor.tokenizer.convert_ids_to_tokens(
        range(len(processor.tokenizer) - len(new), len(processor.tokenizer))
    )
    assert {processor.end_id, processor.token_ids["video"]} <= set(new)
    before = model.get_input_embeddings().weight.detach().clone()
    model.requires_grad_(False)
    target = r".*language_model.*q_proj"
    lora = LoraConfig(r=2, target_modules=target, trainable_token_indices=new_token_rows(model))
    tuned = get_peft_model(model, lora)
    batch = processor.collate([processor.encode(talk("A bell.", "Two."))])
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1.0)
    tuned(**batch).loss.backward()
    optimizer.step()
    expected = tuned.eval()(**batch).logits
    folder = checkpoint.save(tuned, processor, tmp_path / "tuned", whole=True)
    loaded, _ = checkpoint.load(folder)
    torch.testing.assert_close(loaded(**batch).logits, expected)
    after = loaded.get_input_embeddings().weight
    assert loaded.config.tie_word_embeddings == tied
    assert torch.equal(after[: new[0]], before[: new[0]])
    assert not torch.equal(after[processor.end_id], before[processor.end_id])
    # The adapter beside the base is LoRA alone, which vLLM serves.
    check_served(folder / "adapter", checkpoint_shapes(folder), "tuned")
    merged = merge_lora(tuned)
    torch.testing.assert_close(merged(**batch).logits, expected)
    assert merged.config.tie_word_embeddings == tied


def test_matrices_that_train_as_a_whole_need_no_rows(tmp_path) -> None:
    model, _ = built(decoder_folder("smollm2", tmp_path))
    assert new_token_rows(model) is None
    model.requires_grad_(False)
    assert new_token_rows(model) == {"model.language_model.embed_tokens": model.config.new_token_ids}
    own, _ = tiny()
    assert new_token_rows(own.requires_grad_(False)) is None
