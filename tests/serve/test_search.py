"""`mllm search`: words, pictures, sounds and clips together, where to look, and how moments are shown."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mllm.errors import ConfigError, MediaError, MllmError
from serve import library
from tests.serve.test_library import JsonEmbedder, direction, place, run  # noqa: F401

SRT = "1\n00:00:01,000 --> 00:00:02,000\nLook, a shooting star!\n\n2\n00:01:02,000 --> 00:01:03,000\nStars.\n"


class Embedder(JsonEmbedder):
    """An example looks along the number in its file."""

    def embed_clips(self, sources, modality="both"):
        return np.stack([direction(float(source.read_text())) for source in sources])


@pytest.fixture
def clips(place, monkeypatch):  # noqa: F811
    monkeypatch.setattr(
        library, "load_embedder", lambda model, index, features=None: Embedder(model or "nano")
    )
    (place / "clips/star.srt").write_text(SRT)
    (place / "talks.csv").write_text("file,name,description\nclips/star.mp4,Sky,A film about the sky\n")
    run("index", "add", "clips", "--attributes", "talks.csv")
    (place / "along.png").write_text("0.5")
    return place


def found(*words: str) -> list[dict]:
    return json.loads(run("search", *words, "--json").output)


def test_the_table_names_channels_and_shows_words(clips):
    lines = run("search", "shooting stars").output.splitlines()
    assert lines[0].split() == ["file", "time", "found", "in", "score", "words"]
    first, second = (line.split() for line in lines[1:3])
    assert first[:2] == ["Sky", "00:01–00:02"]
    assert second == ["01:02–01:04", "video+audio,", "said", "0.995", "Stars."]
    assert lines[1].rstrip().endswith("Look, a shooting star!")
    assert "bell" not in run("search", "shooting stars", "--in", "said").output


def test_json_says_why(clips):
    first, *_ = found("shooting star", "--in", "said")
    assert (first["name"], first["start"], first["end"], first["score"]) == ("Sky", 1.0, 2.0, None)
    (match, *_) = first["matches"]
    assert (match["modality"], match["text"]) == ("said", "Look, a shooting star!")
    assert match["words"] == [
        {"text": "shooting", "start": None, "end": None},
        {"text": "star", "start": None, "end": None},
    ]
    written, *_ = found("film", "--in", "written")
    assert written["matches"][0]["text"] == "Sky\nA film about the sky"


def test_examples_alone_and_together(clips):
    assert found("--image", "along.png")[0]["name"].endswith("é.wav")
    assert found("--image", "along.png")[0]["score"] == pytest.approx(1.0)
    both = found("a star", "--image", "along.png", "--weights", "text=1, image=0.1", "--in", "seen,heard")
    assert both[0]["name"] == "Sky"
    with pytest.raises(MediaError, match="nowhere.png: no such file: check the path"):
        run("search", "--image", "nowhere.png")


def test_more_like_this(clips):
    rows = found("--like", "Sky")
    assert [row["name"] for row in rows] == [str(clips / "clips/bell [1] é.wav")]
    assert found("--like", "star.mp4@1:03")[0]["score"] == pytest.approx(direction(0.15) @ direction(0.5))
    assert found("--like", "clips/bell [1] é.wav", "a star", "--no-group", "-k", "1")[0]["start"] == 62
    with pytest.raises(ConfigError, match="no item 'Sy' in index .*: did you mean 'Sky'"):
        run("search", "--like", "Sy")
    with pytest.raises(ConfigError, match="no item '' in index .*: mllm index list shows what there is"):
        run("search", "--like", "")


def test_pages_thresholds_and_moments(clips):
    every = found("a star", "--no-group")
    assert [
        found("a star", "--no-group", "-k", "1", "--offset", str(i))[0] for i in range(len(every))
    ] == every
    assert {row["name"] for row in found("a star", "-k", "1")} == {"Sky"}
    assert {row["name"] for row in found("a star", "--offset", "1")} == {str(clips / "clips/bell [1] é.wav")}
    assert "nothing after these in index" in run("search", "a star", "--offset", "9").output
    sure = found("a star", "--threshold", "0.95", "--in", "seen,heard")
    assert [row["start"] for row in sure] == [62.0]


def test_what_is_not_meant(clips):
    assert found("star", "--not", "shooting", "--in", "said")[0]["start"] == 62.0


def test_what_cannot_be_asked_is_one_line(clips):
    for words, error in (
        ((), "nothing to search for"),
        (("a", "--in", "smelt"), "no channel 'smelt': choose from seen, heard, said, written"),
        (("--image", "along.png", "--in", "said"), "found by words: give a text"),
        (("a", "--weights", "text"), "--weights 'text' is no weight: write text=1,image=0.5"),
        (("a", "--weights", "smell=1"), "no weight smell=1.0: give text, image"),
        (("a", "--filter", "year"), "'year' is no comparison: write key=value"),
    ):
        with pytest.raises(MllmError, match=error):
            run("search", *words)
