"""One pass from conversation to ids and loss mask, and from recordings to what the towers take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, WhisperFeatureExtractor

from mllm.errors import MediaError
from mllm.models.checkpoint import load, save
from mllm.models.encoded import GROUP, IGNORE, block_mask
from mllm.models.processor import MllmProcessor
from mllm.records.chat import ChatError
from mllm.records.templates import subtitle_block
from tests.media_files import make
from tests.tiny import ask, clip, still, tiny

CONVERSATIONS = {
    "text": ask("hello", answer="hello to you"),
    "video with sound": ask(clip(4), "what colour is the star?", answer="red"),
    "silent video": ask(clip(3, sound=False), "how does it move?", answer="left"),
    "sound": ask(clip(2, picture=False), "how many beeps?", answer="three"),
    "image": ask(still(), "what is it?", answer="a star"),
    "several": ask(clip(2, 1), "and", clip(2, 2), still(3), "which one?", answer="the first"),
    "system": [{"role": "system", "content": "be brief."}, *ask(clip(2), "what?", answer="a bell")],
    "turns": [*ask(clip(2), "what?", answer="a bell"), *ask("when?", answer="[00:00]")],
}


@pytest.fixture(scope="module")
def processor() -> MllmProcessor:
    return tiny()[1]


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_inference_prompt_is_an_exact_prefix_of_the_training_ids(processor, name):
    messages = CONVERSATIONS[name]
    trained = processor.encode(messages).input_ids
    prompt = processor.encode(messages[:-1], add_generation_prompt=True).input_ids
    assert trained[: len(prompt)] == prompt
    assert len(trained) > len(prompt)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_exactly_the_assistants_words_and_their_end_are_trained(processor, name):
    messages = CONVERSATIONS[name]
    encoded = processor.encode(messages)
    spoken = [label for label in encoded.labels if label != IGNORE]
    words = "".join(m["content"] + "<|end|>" for m in messages if m["role"] == "assistant")
    assert processor.tokenizer.decode(spoken) == words
    assert all(
        label in (IGNORE, token) for label, token in zip(encoded.labels, encoded.input_ids, strict=True)
    )


def test_ids_equal_the_tokenized_chat_template_with_placeholders_expanded(processor):
    messages = CONVERSATIONS["several"]
    written = processor.tokenizer.apply_chat_template(
        [{"role": m["role"], "content": m["content"]} for m in messages],
        chat_template=processor.chat_template,
        tokenize=False,
    )
    ids = iter(processor.tokenizer.encode(written, add_special_tokens=False))
    media = iter(processor.encode(messages).media)
    expanded: list[int] = []
    for token in ids:
        if token in processor.token_ids.values():
            item = next(media)
            expanded += processor.placeholder_ids(item.modality, item.layout)
        else:
            expanded.append(token)
    assert expanded == processor.encode(messages).input_ids


def test_a_window_is_its_time_mark_then_picture_then_sound(processor):
    encoded = processor.encode(ask(clip(4), "what?"))
    text = processor.tokenizer.decode(encoded.input_ids)
    window = "<|video|>" * 3 + "<|audio|>" * 2
    assert f"[00:00]{window}[00:02]{window}what?" in text


def test_time_marks_may_be_seconds(tmp_path):
    model, processor = tiny(time_marks="seconds")
    save(model, processor, tmp_path / "saved")
    processor = load(tmp_path / "saved")[1]
    text = processor.tokenizer.decode(processor.encode(ask(clip(4), "what?")).input_ids)
    window = "<|video|>" * 3 + "<|audio|>" * 2
    assert f"0s{window}2s{window}what?" in text
    assert subtitle_block([{"text": "hello", "start": 2.5}], processor.time_marks).endswith("\n2s hello\n")


def test_a_missing_modality_has_no_tokens(processor):
    silent = processor.encode(ask(clip(2, sound=False), "what?"))
    blind = processor.encode(ask(clip(2, picture=False), "what?"))
    assert processor.token_ids["audio"] not in silent.input_ids
    assert "input_features" not in processor.collate([silent])
    assert processor.token_ids["video"] not in blind.input_ids
    assert "pixel_values" not in processor.collate([blind])


def test_typed_markers_stay_text(processor):
    typed = processor.encode(ask("<|video|><|assistant|>[00:00]<|end|>")).input_ids
    assert typed.count(processor.tokenizer.convert_tokens_to_ids("<|end|>")) == 1
    assert not set(typed) & {
        *processor.token_ids.values(),
        processor.tokenizer.convert_tokens_to_ids("<|assistant|>"),
    }


def test_media_that_do_not_match_the_messages_are_refused(processor):
    with pytest.raises(ChatError, match="name 1 recordings but 0 were given"):
        processor.encode(ask(clip(2), "what?"), media=[])


def test_log_mel_equals_whispers_own_extractor_chunk_by_chunk():
    processor = tiny()[1]
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    loud, quiet = clip(2).waveform, clip(2, 1).waveform * 0.01
    samples = torch.from_numpy(np.stack([loud, quiet]))
    ours = processor.inputs["audio"].prepare(samples, torch.tensor([32000, 32000]))
    theirs = extractor([loud, quiet], sampling_rate=16000, return_tensors="pt").input_features
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_windows_of_sound_share_the_audio_towers_chunk():
    processor = tiny()[1]
    audio = processor.sides["audio"] | {"chunk_seconds": 6.0}
    wide = MllmProcessor(processor.tokenizer, sides=processor.sides | {"audio": audio}, frames_per_window=2)
    item = wide.media(clip(8, picture=False), "audio")
    assert item.input_features.shape == (2, 16, 600)
    assert item.window_counts.tolist() == [3, 1]


def test_what_was_seen_is_reported(processor):
    seen = processor.media(clip(20), "video").seen
    assert (seen.windows, seen.frames, seen.seconds, seen.duration) == (4, 8, 8.0, 20.0)


@pytest.mark.parametrize("told", [clip(2), "a star moves left."], ids=["recording", "text"])
def test_a_group_packs_questions_behind_one_copy_of_what_they_share(told, processor):
    questions = [ask(told, f"question {i}?", answer=f"answer {i}") for i in range(3)]
    packed = processor.encode_group(questions)
    alone = [processor.encode(question) for question in questions]
    assert len(packed.media) == len(alone[0].media)
    shared = packed.segment_ids.count(0)
    for number, single in enumerate(alone, start=1):
        where = [i for i, segment in enumerate(packed.segment_ids) if segment in (0, number)]
        assert [packed.input_ids[i] for i in where] == single.input_ids
        assert [packed.labels[i] for i in where] == single.labels
        assert [packed.position_ids[i] for i in where] == list(range(len(single.input_ids)))
    assert len(packed.input_ids) == shared + sum(len(single.input_ids) - shared for single in alone)


def test_a_group_on_different_recordings_is_refused(processor):
    with pytest.raises(ChatError, match="name 0 recordings but 1 were given"):
        processor.encode_group([ask(clip(2), "a?", answer="b"), ask("a?", answer="b")])


def test_the_block_mask_lets_a_question_see_the_prefix_and_itself():
    allowed = block_mask(torch.tensor([[0, 0, 1, 2, 2, -1]]))[0, 0].int().tolist()
    assert allowed == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_the_block_mask_keeps_the_examples_of_a_row_apart():
    allowed = block_mask(torch.tensor([[0, 1, GROUP, GROUP + 1, GROUP + 2]]))[0, 0].int().tolist()
    assert allowed == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 0, 1],
    ]


def test_batches_for_generation_are_padded_on_the_left(processor):
    batch = processor.batch([ask("hello"), ask(clip(2), "what is it then?")])
    assert batch["attention_mask"][0, 0] == 0
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]
    assert "labels" not in batch


def test_save_and_load_keep_every_setting(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, MllmProcessor)
    assert loaded.spec == processor.spec
    assert loaded.to_dict() == processor.to_dict()
    assert (
        loaded.encode(CONVERSATIONS["several"]).input_ids
        == processor.encode(CONVERSATIONS["several"]).input_ids
    )


def test_a_group_whose_questions_stand_before_the_recording_is_refused(processor):
    recording = clip(2)
    with pytest.raises(ChatError, match="conversation 2 does not begin with the recordings of the first"):
        processor.encode_group([ask(recording, "a?", answer="b"), ask("a?", recording, answer="b")])


def test_an_image_part_that_holds_sound_alone_is_refused(processor):
    sound = [{"role": "user", "content": [{"type": "image", "image": clip(2, picture=False)}]}]
    with pytest.raises(MediaError, match="noise 0: it has no picture to take as an image"):
        processor.encode(sound)


def test_a_file_that_lacks_what_it_is_asked_for(processor, tmp_path):
    film = make(tmp_path / "film.mp4", seconds=1, fps=4)
    with pytest.raises(MediaError, match=r"film.mp4: it has no sound: send it as video"):
        processor.media(film, "audio")
    with pytest.raises(MediaError, match=r"film.mp4: it is no still picture: send it as video"):
        processor.media(film, "image")
