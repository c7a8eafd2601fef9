"""The world as a benchmark: its groups, its training answers, its captions, its files."""

from __future__ import annotations

import pytest

from eval.benchmark import Subject
from eval.benchmarks import world
from eval.sections import Eval
from mllm.errors import MllmError


def test_every_type_of_the_world_has_a_group():
    from importlib import import_module

    types = import_module("data_prep.world.questions").TYPES  # a test may look into both wings
    assert set(types) == {name for names in world.GROUPS.values() for name in names}


def test_three_ways_to_say_a_thing_are_one_caption():
    same = {"a star, then a bell.", "first a star, then a bell.", "a star. then a bell."}
    assert {world.caption_key(caption) for caption in same} == {"a star, then a bell"}
    assert world.caption_key("a bell, then a star.") != world.caption_key("a star, then a bell.")


def test_prior_comes_from_training_text():
    prior = world.train_prior(200)
    assert prior("what can you do?") == "i answer questions about what you see and hear in a recording."
    assert prior("how many shapes are there?") in ("one", "two", "three")


def test_files_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / "in the way").write_text("a file")
    with pytest.raises(MllmError, match="clips of val could not be written") as error:
        world.write_files("val", 2, 4, 0, tmp_path / "in the way")
    assert "\n" not in str(error.value)


def test_what_is_not_said_comes_from_the_experiment(monkeypatch):
    monkeypatch.setattr(world, "train_prior", lambda: None)
    benchmark = world.World(clips=3, media="arrays")
    benchmark.prepare(Subject(Eval(splits=["comp"], clips=7, questions_per_clip=2, retrieval_clips=2)))
    assert benchmark.splits == ["comp"]
    assert benchmark.settings == {"media": "arrays", "clips": 3, "questions_per_clip": 2, "seed": 0}
    assert len({question.id.rpartition("-")[0] for question in benchmark.questions("comp")}) == 3
    assert [len(pairs.clips) for pairs in benchmark.retrieval("comp")] == [2, 2, 2]
    unsearched = world.World(search_clips=0)
    unsearched.prepare(Subject(Eval()))
    assert list(unsearched.retrieval("val")) == []


def test_pairs_to_find_are_grouped_by_what_their_captions_are_about():
    pairs = [
        {"clip": "0.mp4", "captions": {"video": "first a star, then a dot.", "audio": None, "both": None}},
        {"clip": "1.mp4", "captions": {"video": "a star. then a dot.", "audio": "a bell.", "both": "both."}},
    ]
    video, audio, both = world.paired(pairs)
    assert (video.modality, video.clips) == ("video", ["0.mp4", "1.mp4"])
    assert len(set(video.labels)) == 1  # the same thing: each is the other's hit
    assert (audio.clips, both.captions) == (["1.mp4"], [["both."]])
