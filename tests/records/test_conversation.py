"""A checked conversation: typed, frozen, its own JSON, and checked no second time."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest

from mllm.errors import ChatError
from mllm.records import chat
from mllm.records.conversation import Conversation, MediaPart, TextPart
from mllm.records.record import answered, read_records, write_records

VIDEO = {"type": "video", "video": "a.mp4", "start": 1, "end": 2.5, "audio": "a.wav"}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [VIDEO, {"type": "text", "text": "What is heard?"}]},
    {"role": "assistant", "content": "A bell.", "loss": False},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": [{"type": "text", "text": "Noth"}, "ing."]},
]


def test_turns_and_parts_are_typed() -> None:
    conversation = chat.validate_messages(MESSAGES)
    assert [turn.role for turn in conversation] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn.trained for turn in conversation] == [False, False, False, False, True]
    video, text = conversation[1].parts
    assert isinstance(video, MediaPart)
    assert isinstance(text, TextPart)
    assert (video.modality, video.source) == ("video", "a.mp4")
    assert video.options == {"start": 1, "end": 2.5, "audio": "a.wav"}
    assert conversation.media == [video]
    assert conversation[-1].text == "Nothing."
    assert conversation.texts[:2] == ["Be brief.", "What is heard?"]
    endless = chat.validate_messages([{"role": "user", "content": [VIDEO | {"end": None}]}])
    assert endless.media[0].options == {"start": 1, "audio": "a.wav"}


def test_it_is_the_json_that_it_was_written_as() -> None:
    conversation = chat.validate_messages(MESSAGES)
    written = json.loads(json.dumps(conversation))
    assert written == conversation
    assert written[1] == MESSAGES[1]
    assert written[2] == {
        "role": "assistant",
        "content": [{"type": "text", "text": "A bell."}],
        "loss": False,
    }
    restored = Conversation.restored(written)
    assert restored == conversation
    assert [type(part) for part in restored[1].parts] == [MediaPart, TextPart]
    assert restored[2].trained is False


def test_it_is_frozen() -> None:
    conversation = chat.validate_messages(MESSAGES)
    turn, part = conversation[1], conversation[1].parts[0]
    for change in (
        lambda: conversation.append(turn),
        lambda: conversation.__setitem__(0, turn),
        lambda: conversation.pop(),
        lambda: turn.update(role="system"),
        lambda: turn.parts.append(part),
        lambda: part.__setitem__("video", "b.mp4"),
        lambda: part.pop("start"),
        lambda: part.setdefault("x", 1),
    ):
        with pytest.raises(TypeError, match="that has been checked is frozen: make a new one"):
            change()
    assert conversation == chat.validate_messages(MESSAGES)


def test_copies_and_pickles_stay_checked() -> None:
    conversation = chat.validate_messages(MESSAGES)
    for other in (copy.deepcopy(conversation), pickle.loads(pickle.dumps(conversation))):
        assert other == conversation
        assert isinstance(other, Conversation)
        assert chat.validate_messages(other) is other
        assert isinstance(other.media[0], MediaPart)


def test_other_recordings_and_answers_keep_it_checked() -> None:
    conversation = chat.validate_messages(MESSAGES)
    moved = conversation.with_media(lambda part: part.of("b.mp4"))
    assert moved.media == [{"type": "video", "video": "b.mp4"}]
    assert moved[2:] == conversation[2:]
    question = conversation.question
    assert question[-1].text == "And then?"
    assert question.question is question
    again = question.with_answer("Nothing.")
    for one in (moved, question, again):
        assert chat.validate_messages(one) is one
    assert again[-1].text == conversation[-1].text


def test_what_is_changed_by_hand_is_checked_again() -> None:
    conversation = chat.validate_messages(MESSAGES)
    for changed in (
        [*conversation, conversation[1] | {"role": "assistant"}],
        [conversation[0], conversation[1] | {"content": [{"type": "video"}]}],
    ):
        with pytest.raises(ChatError):
            chat.validate_messages(changed)


def test_a_checked_one_must_still_end_with_the_user_to_be_answered() -> None:
    conversation = chat.validate_messages(MESSAGES)
    assert chat.validate_messages(conversation.question, to_answer=True) == conversation[:-1]
    with pytest.raises(ChatError, match="message 4 is the last and its role is 'assistant'"):
        chat.validate_messages(conversation, to_answer=True)


def test_records_give_it_and_take_it(tmp_path: Path, checks: list[int]) -> None:
    record = {"messages": [{"role": "user", "content": "Hi?"}], "answer": "Hello."}
    write_records(tmp_path / "a.jsonl", [record] * 3)
    checks.clear()
    records = list(read_records(tmp_path / "a.jsonl"))
    conversations = [answered(record) for record in records]
    write_records(tmp_path / "b.jsonl", records)
    assert len(checks) == 3, "each once, when it was read"
    assert conversations[0][-1].text == "Hello."
    assert (tmp_path / "b.jsonl").read_text().count("Hi?") == 3
