"""The open sets as recordings with facts."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest

from data_prep.small.phrasing import Ask, put, with_article
from data_prep.small.questions import Questions, captions_of
from data_prep.small.sets import Recording, held_back, known_sets, read_sets
from mllm.errors import MllmError
from tests.data_prep.small_sets import write_sets


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_sets(tmp_path_factory.mktemp("sets"))


def of(recordings: list[Recording], name: str) -> list[Recording]:
    return [recording for recording in recordings if recording.set == name]


def test_rows_about_one_recording_become_its_facts(folder):
    recordings = read_sets(folder, "train")
    assert {recording.set for recording in recordings} == {entry["name"] for entry in known_sets().values()}
    face = of(recordings, "grid")[0]
    assert (face.facts["text"], face.facts["colour"]) == ("bin blue at a two now", "blue")
    voice = of(recordings, "speechocean762")[0]
    assert (voice.facts["text"], voice.facts["age"]) == ("go 0", "a child")
    assert face.heard().part == {"type": "audio", "audio": str(face.path)}
    assert not of(read_sets(folder, "test"), "sintel")  # which has no test of its own


def test_captions_say_what_is_known_and_nothing_else(folder):
    recordings = read_sets(folder, "train")
    face = captions_of(of(recordings, "grid")[0])
    assert 'A person says to the camera: "Bin blue at a two now."' in face["both"]
    assert 'Someone says: "Bin blue at a two now."' in face["audio"]
    assert captions_of(of(recordings, "grid")[0].heard())["video"] == []
    assert 'Someone says in German: "Guten Tag."' in captions_of(of(recordings, "kerstin_de")[0])["audio"]
    assert 'A child says: "Go 0."' in captions_of(of(recordings, "speechocean762")[0])["audio"]
    words = Recording("w", "words", {"type": "audio", "audio": "w.flac"}, {"language": "Arabic"})
    assert captions_of(words) == {}


def test_a_digit_that_is_not_named_like_one_is_an_error(folder, tmp_path):
    (tmp_path / "fsdd/recordings").mkdir(parents=True)
    (tmp_path / "fsdd/recordings/seven.wav").write_bytes(b"")
    others = [entry["name"] for key, entry in known_sets().items() if key != "fsdd"]
    with pytest.raises(MllmError, match=r"seven.wav: not named like 7_jackson_32.wav"):
        read_sets(tmp_path, "train", others)


def test_phrasings_of_the_sets_keep_the_order_of_their_options_and_ours_do_not():
    ask = Ask("emotion", "sad", ["angry", "happy", "sad"])
    orders = Counter()
    for number in range(200):
        text, options = put(ask, "train", random.Random(number))
        assert options
        orders["own" if "Which emotion does the speaker show?" in text else "ours", tuple(options)] += 1
    assert {order for kind, order in orders if kind == "own"} == {("angry", "happy", "sad")}
    assert len({order for kind, order in orders if kind == "ours"}) == 6
    assert (with_article("accordion"), with_article("scissors")) == ("an accordion", "scissors")
    assert with_article("euphonium") == "a euphonium"


def test_what_is_asked_depends_on_the_seed_and_the_recording_alone(folder):
    recording = of(read_sets(folder, "train"), "esc10")[0]
    vocabulary = {"event": ["dog bark", "rain", "person sneeze"]}
    first = Questions("train", 0, vocabulary).rows(recording)
    assert Questions("train", 0, vocabulary).rows(recording) == first
    assert Questions("train", 1, vocabulary).rows(recording) != first
    assert len(first) <= 6


@pytest.mark.slow
@pytest.mark.skipif("MLLM_REAL_DATA" not in os.environ, reason="MLLM_REAL_DATA names no folder of real sets")
def test_the_real_sets_give_what_they_say():
    real = Path(os.environ["MLLM_REAL_DATA"])
    if not (real / "real_esc10").is_dir():
        pytest.skip("no real_* sets there")
    without = [entry["name"] for key, entry in known_sets().items() if not (real / key).is_dir()]
    train, test = read_sets(real, "train", without), read_sets(real, "test", without)
    assert not {recording.path for recording in train} & {recording.path for recording in test}
    assert (len(of(train, "fsdd")), len(of(test, "fsdd"))) == (2400, 300)
    assert len(of(train, "coco_mini")) == 33
    assert len(of(test, "emodb")) == 110
    kept, back = held_back(train)
    assert 50 < len(back) < 200
    assert not {r.family for r in kept if r.family} & {r.family for r in back if r.family}
