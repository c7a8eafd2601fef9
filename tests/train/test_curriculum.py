"""Stages 1 and 2 can begin on an easier source: as many clips as the experiment says, then all the data."""

from __future__ import annotations

import pytest

from mllm.errors import ConfigError
from mllm.experiment import load_experiment
from mllm.records.source import open_source
from tests.tiny import tiny
from train.data import PairCollator, QuestionCollator


def test_the_first_clips_come_from_the_easy_source_and_the_rest_from_the_data():
    easy = open_source("world:train,frames=2,size=32,objects=1")
    whole = open_source("world:train,frames=2,size=32")
    collator = PairCollator(whole, tiny()[1], seed=0, text_tokens=64, easy=easy, easy_clips=20)
    first = [collator.pair(number) for number in range(20)]
    later = [collator.pair(number) for number in range(20, 60)]
    assert max(len(pair["labels"]["colours"]) for pair in first) == 1
    assert max(len(pair["labels"]["colours"]) for pair in later) == 3


def test_instructions_begin_with_the_easy_source_too():
    easy = open_source("world:train,frames=2,size=32,ask=named")
    whole = open_source("world:train,frames=2,size=32")
    collator = QuestionCollator(whole, tiny()[1], 0, 3, easy=easy, easy_clips=4)
    first, later = (collator([{"number": number}]) for number in (3, 4))
    tokenizer = collator.processor.tokenizer
    assert "it says" in tokenizer.decode(first["labels"][first["labels"] != -100])
    assert "it says" not in tokenizer.decode(later["labels"][later["labels"] != -100])


def test_without_a_curriculum_every_clip_comes_from_the_data():
    whole = open_source("world:train,frames=2,size=32")
    collator = PairCollator(whole, tiny()[1], seed=0, text_tokens=64)
    assert collator.pair(3)["captions"] == whole.pair(collator.order(3).scene)["captions"]


def test_a_curriculum_is_read_from_the_experiment(root):
    path = root / "configs" / "nano.yaml"
    assert load_experiment(path).contrastive.curriculum.source == "world:train,objects=1"
    with pytest.raises(ConfigError, match=r"unknown key 'contrastive.curriculum.step'"):
        load_experiment(path, ["contrastive.curriculum.step=3"])
