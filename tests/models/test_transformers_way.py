"""transformers' own calls: no recording is dropped in silence, and the auto classes know our checkpoints."""

from __future__ import annotations

import subprocess
import sys

import pytest
import soundfile
import torch

from mllm.answerer import Answerer
from mllm.errors import ChatError
from mllm.models.checkpoint import find_shipped, load
from mllm.records.answers import Generation
from tests.media_files import make
from tests.tiny import ask, clip, still, tiny

CONVERSATIONS = {
    "text": ask("hello"),
    "video with sound": ask(clip(4), "what colour is the star?"),
    "sound": ask(clip(2, 1, picture=False), "how many beeps?"),
    "several": ask(clip(2, 1), "and", clip(2, 2, sound=False), still(3), "which one?"),
    "turns": [*ask(clip(2), "what?", answer="a bell"), *ask(clip(2, 5), "and now?")],
}


@pytest.fixture(scope="module")
def nano():
    return tiny()


def texts_of(ids: torch.Tensor, inputs, processor) -> list[str]:
    return processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_templated_conversation_is_answered_as_the_answerer_does(nano, name):
    model, processor = nano
    inputs = processor.apply_chat_template(
        CONVERSATIONS[name], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    answers = Answerer(*nano, generation=Generation(max_tokens=6)).answer([CONVERSATIONS[name]])
    assert texts_of(ids, inputs, processor) == answers


def test_several_conversations_are_one_batch(nano):
    model, processor = nano
    conversations = list(CONVERSATIONS.values())
    inputs = processor.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    answers = Answerer(*nano, generation=Generation(max_tokens=6)).answer(conversations)
    assert texts_of(ids, inputs, processor) == answers


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_rendered_text_with_its_recordings_is_the_same_prompt(nano, name):
    processor = nano[1]
    messages = CONVERSATIONS[name]
    media = [part for message in messages for part in message["content"] if isinstance(part, dict)]
    named = {
        plural: [part[kind] for part in media if part["type"] == kind] or None
        for kind, plural in (("image", "images"), ("video", "videos"), ("audio", "audio"))
    }
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    called = processor(text=text, return_tensors="pt", **named)
    templated = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert called.keys() == templated.keys()
    for key in called:
        assert torch.equal(torch.as_tensor(called[key]), templated[key]), key


def test_sources_may_be_named_as_transformers_names_them(nano, tmp_path):
    processor = nano[1]
    path = str(make(tmp_path / "film.mp4", seconds=2, fps=4))
    ours, theirs = (
        [{"role": "user", "content": [{"type": "video", key: path}, {"type": "text", "text": "what?"}]}]
        for key in ("video", "path")
    )
    before = repr(theirs)
    encoded = [processor.apply_chat_template(one, tokenize=True, return_dict=True) for one in (ours, theirs)]
    assert torch.equal(encoded[0]["pixel_values"], encoded[1]["pixel_values"])
    assert repr(theirs) == before


@pytest.mark.parametrize(
    ("text", "media", "says"),
    [
        (
            "what?",
            {"videos": [clip(2)]},
            r"has 0 <\|video\|> but 1 of video were given: .*apply_chat_template",
        ),
        ("<|user|><|audio|>what?<|end|>", {}, r"has 1 <\|audio\|> but 0 of audio were given"),
        (
            "<|user|><|video|>what?<|end|>",
            {"videos": [clip(2)], "max_length": 5},
            "max_length=5 is not honoured",
        ),
        ("<|user|><|video|>what?<|end|>", {"videos": [torch.zeros(2, 3, 8, 8)]}, "must be a path, bytes"),
    ],
)
def test_what_would_leave_a_recording_out_is_refused(nano, text, media, says):
    with pytest.raises(ChatError, match=says):
        nano[1](text=text, **media)


def test_ids_alone_are_refused_where_there_are_recordings(nano):
    with pytest.raises(ChatError, match="say return_dict=True"):
        nano[1].apply_chat_template(CONVERSATIONS["sound"], tokenize=True)
    assert nano[1].apply_chat_template(CONVERSATIONS["text"], tokenize=True).shape[0] == 1


IMPORTS = {
    "mllm first": "import mllm; from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor",
    "transformers first": (
        "from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor; import mllm"
    ),
}
LOADS = """
import sys
assert "mllm.models.config" not in sys.modules, "registration imported our model"
folder = sys.argv[1]
model, processor = AutoModelForCausalLM.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
content = [{"type": "audio", "audio": sys.argv[2]}, {"type": "text", "text": "What?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
)
ids = model.generate(**inputs, max_new_tokens=8)[:, inputs["input_ids"].shape[1]:]
(answer,) = processor.batch_decode(ids, skip_special_tokens=True)
print(type(AutoConfig.from_pretrained(folder)).__name__, answer)
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", IMPORTS)
def test_auto_classes_load_a_checkpoint_after_import_mllm_alone(order, tmp_path):
    soundfile.write(tmp_path / "noise.wav", clip(2, picture=False).waveform, 16_000)
    words = [
        sys.executable,
        "-c",
        IMPORTS[order] + LOADS,
        str(find_shipped("nano")),
        str(tmp_path / "noise.wav"),
    ]
    said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    content = [{"type": "audio", "audio": str(tmp_path / "noise.wav")}, {"type": "text", "text": "What?"}]
    answerer = Answerer(*load("nano"), generation=Generation(max_tokens=8))
    (answer,) = answerer.answer([[{"role": "user", "content": content}]])
    assert said == f"MllmConfig {answer}"


@pytest.mark.parametrize("tokenize", [False, True])
@pytest.mark.parametrize(
    "conversation", ["hello", None, ["hello"], [3], [[ask("hi")]], [ask("hi"), "hi"]], ids=repr
)
def test_what_is_no_conversation_is_refused(nano, conversation, tokenize):
    with pytest.raises(ChatError):
        nano[1].apply_chat_template(conversation, tokenize=tokenize, return_dict=True)


def test_a_part_with_two_sources_is_refused(nano):
    part = {"type": "audio", "audio": "a.wav", "path": "b.wav"}
    with pytest.raises(ChatError, match="audio and path: give one"):
        nano[1].apply_chat_template([{"role": "user", "content": [part]}], tokenize=True, return_dict=True)


def test_lists_for_each_text_must_fit_it(nano):
    _, processor = nano
    text = processor.apply_chat_template(ask(clip(2, picture=False), "what?"))
    sounds = [clip(2, seed, picture=False) for seed in (1, 2)]
    with pytest.raises(ChatError, match="text 0 has 1 .* but 2 were given"):
        processor(text=[text, text], audio=[sounds, []])
    assert len(processor(text=[text, text], audio=[[sounds[0]], [sounds[1]]])["input_ids"]) == 2
