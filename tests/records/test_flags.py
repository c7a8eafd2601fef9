"""What says "don't learn this" in the files of other trainers, on turns and on rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm.errors import ChatError, RecordError
from mllm.records import chat
from mllm.records.chat_form import render
from mllm.records.flags import unlearned
from mllm.records.record import validate_record

SPARING = [
    {"loss": False},  # ms-swift, XTuner, ChatGLM
    {"loss": 0},
    {"loss": "false"},
    {"loss_scale": 0.0},  # ms-swift
    {"weight": 0},  # OpenAI, Mistral, axolotl
    {"weight": "0"},
    {"train": False},  # axolotl
    {"training": False},
    {"train_on_turn": False},
    {"learn": "No"},
    {"output_with_loss": False},  # XTuner
    {"kto_tag": False},  # LLaMA-Factory
    {"kto_tag": 0},
    {"label": False},  # KTO of TRL and ms-swift
    {"mask": True},
    {"masked": 1},  # torchtune
    {"do_not_train": True},
    {"rejected": True},
    {"ignore": "true"},
    {"loss_mask": [0, 0, 0]},
    {"Weight": "0.0"},
    {"Label": "FALSE"},
    {"train_detail": [{"begin_offset": 0, "end_offset": 7, "train": False}]},
]


@pytest.mark.parametrize("flag", SPARING, ids=str)
def test_what_is_not_to_be_learned_is_read_but_not_trained(flag: dict, tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "No."} | flag,
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Yes."},
    ]
    assert [piece.text for piece in render(turns) if piece.trained] == ["Yes.", chat.END_TOKEN]
    with pytest.raises(RecordError, match="^row 1: .* says that it is not to be learned: drop the row"):
        validate_record({"messages": turns} | flag, "row 1")
    with pytest.raises(RecordError, match="^row 1: nothing to learn: the answers are not to be learned"):
        validate_record({"messages": turns[:2]}, "row 1")


@pytest.mark.parametrize(
    "content",
    [
        {"loss": True},
        {"loss": None},
        {"weight": 0.5},
        {"label": 0},  # a class
        {"label": "0"},
        {"rejected": "a worse answer"},
        {"chosen": "a better answer"},
        {"mask": "masks/1.png"},
        {"loss_mask": [1, 1]},
        {"labels": {"loss": 0}},
    ],
    ids=str,
)
def test_what_says_nothing_of_learning_changes_nothing(content: dict) -> None:
    assert unlearned(content) is None
    turns = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "No."} | content]
    assert any(piece.trained for piece in render(turns))
    validate_record({"messages": turns} | content, "row 1")


def test_a_part_of_an_answer_cannot_be_left_out() -> None:
    parts = [{"begin_offset": 0, "end_offset": 2, "train": False}, {"begin_offset": 3, "train": True}]
    with pytest.raises(ChatError, match="'train_detail' leaves out a part of it: an answer is learned whole"):
        unlearned({"train_detail": parts})
