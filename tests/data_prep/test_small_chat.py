"""Chat by self-distillation, with a stand-in for the base."""

from __future__ import annotations

import random

import pytest

from data_prep.small import chat
from data_prep.small.sets import Recording
from data_prep.small.write import _heard


class Parrot:
    """Answers with the prompt's own words; every seventh answer never ends."""

    made = 0

    def __init__(self, base: str) -> None:
        Parrot.made += 1
        self.said = 0

    def made_up(self, number: int) -> list[str]:
        return [f"What is the number {self.said + i}?" for i in range(number)]

    def answer(self, conversations: list[chat.Turns]) -> list[str | None]:
        told = []
        for turns in conversations:
            self.said += 1
            text = f"{self.said}: {turns[-1]['content']}"
            told.append(None if self.said % 7 == 0 or chat.repeats(text) else text)
        return told


@pytest.fixture(autouse=True)
def parrot(monkeypatch):
    monkeypatch.setattr(chat, "Speaker", Parrot)
    monkeypatch.setattr(chat, "BATCH", 16)
    Parrot.made = 0


def test_conversations_of_one_to_three_turns_some_with_a_system_prompt(tmp_path):
    rows = chat.write_chat(tmp_path, "base", 60, 0)
    assert len(rows) == 60
    assert len({row["id"] for row in rows}) == 60
    assert all(row["messages"][-1]["role"] == "assistant" for row in rows)
    turns = [sum(turn["role"] == "user" for turn in row["messages"]) for row in rows]
    assert {1, 2} <= set(turns) <= {1, 2, 3}
    systems = sum(row["messages"][0]["role"] == "system" for row in rows)
    assert 0 < systems < 30


def test_a_call_that_was_stopped_goes_on(tmp_path):
    whole = chat.write_chat(tmp_path, "base", 60, 0)
    assert chat.write_chat(tmp_path, "base", 60, 0) == whole
    assert Parrot.made == 1  # the second call had nothing to ask
    (tmp_path / "chat" / "0-0001.json").unlink()
    assert len(chat.write_chat(tmp_path, "base", 60, 0)) == 60
    assert Parrot.made == 2


def test_texts_that_go_round_in_circles_are_told():
    assert chat.repeats("the cat sat on the mat " * 3)
    assert chat.repeats("- a thing\n- a thing\n- a thing")
    assert not chat.repeats("Paris is the capital of France, and Rome is the capital of Italy.")


def test_each_is_asked_behind_a_recording_too_and_answered_as_without():
    rows = [
        {
            "id": str(i),
            "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"Ho {i}"}],
        }
        for i in range(50)
    ]
    recording = Recording("a", "esc10", {"type": "audio", "audio": "/a.wav"}, {})
    heard = list(_heard(rows, [recording], 0))
    assert len(heard) == 50
    for row in heard:
        assert row["messages"][0]["content"] == [recording.part, {"type": "text", "text": "Hi"}]
        assert row["messages"][1:] == rows[int(row["id"].partition("/")[0])]["messages"][1:]


def test_prompts_of_ours_are_many():
    prompts = {chat._prompt(random.Random(number)) for number in range(600)}
    assert len(prompts) > 250
