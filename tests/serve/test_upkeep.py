"""`mllm index list`, `delete`, `compact`, `rebuild`, `duplicates` and `calibrate`."""

from __future__ import annotations

import json

import pytest

from mllm.errors import ConfigError, MllmError
from serve import library, upkeep
from tests.serve.test_library import JsonEmbedder, place, run  # noqa: F401


@pytest.fixture
def filled(place, monkeypatch):  # noqa: F811
    monkeypatch.setattr(
        upkeep, "load_embedder", lambda model, index, features=None: JsonEmbedder(model or "nano")
    )
    run("index", "add", "clips", "--attribute", "year=2020")
    return place


def test_list(filled):
    lines = [line.split() for line in run("index", "list").output.splitlines()]
    assert lines[0] == ["file", "length", "kind", "said", "attributes"]
    assert lines[1] == ["clips/bell", "[1]", "é.wav", "00:02", "audio", "year=2020"]
    assert lines[2] == ["clips/star.mp4", "01:04", "both", "year=2020"]
    (row,) = json.loads(run("index", "list", "--filter", "duration > 0:10", "--json").output)
    assert (row["kind"], row["duration"], row["said_by"]) == ("both", 63.5, None)


def test_delete(filled):
    with pytest.raises(MllmError, match="nothing to delete: name recordings, or give --filter"):
        run("index", "delete")
    with pytest.raises(ConfigError, match="no item 'sun.mp4'"):
        run("index", "delete", "sun.mp4")
    assert "1 recordings removed from .mllm/index" in run("index", "delete", "star.mp4").output
    assert "0 recordings removed" in run("index", "delete", "--filter", "year != 2020").output
    assert "1 recordings removed" in run("index", "delete", "clips").output
    assert "recordings  0, 0 s in all" in run("index", "stats").output


def test_compact(filled):
    assert "MB before, " in run("index", "compact").output


def test_rebuild(filled):
    (filled / "clips/star.mp4").rename(filled / "star.mp4")
    with pytest.raises(ConfigError, match="1 of 2 recordings cannot be read again.*or give --leave-out"):
        run("index", "rebuild", "--model", "other")
    (filled / "star.mp4").rename(filled / "clips/star.mp4")
    assert "2 recordings read again in .mllm/index" in run("index", "rebuild", "--model", "other").output
    assert "other" in run("index", "stats").output
    (filled / "clips/star.mp4").unlink()
    left = run("index", "rebuild", "--leave-out").output
    assert "failed" in left
    assert "1 recordings read again, 1 left out in .mllm/index" in left


def test_duplicates(filled):
    assert "no duplicates in .mllm/index: --listen also finds" in run("index", "duplicates").output
    rows = [
        [0, 2, "both", 1.001],
        [2, 3.5, "both", 0.15],
    ]  # the film without its pause, and a copy
    (filled / "clips/cut.mp4").write_text(json.dumps(rows))
    (filled / "clips/cut_again.mp4").write_text(json.dumps([[*row[:3], row[3] + 0.001] for row in rows]))
    run("index", "add", "clips")
    assert run("index", "duplicates").output.splitlines()[1].split() == [
        "clips/cut_again.mp4",
        "clips/cut.mp4",
        "100%",
        "1.000",
        "windows",
    ]
    (pair,) = json.loads(run("index", "duplicates", "--json").output)
    assert (pair["offset"], pair["first_name"]) == (0.0, str(filled / "clips/cut.mp4"))


def test_calibrate(filled, monkeypatch):
    """Two of three captions are of what is found first; what is fitted on one recording fails on another."""
    opened = library.open_to_search(None, library.DEFAULT_INDEX)
    monkeypatch.setattr(upkeep, "open_to_search", lambda model, index: opened)
    files = ["clips/star.mp4", "clips/star.mp4", "clips/bell [1] é.wav"]
    with open("pairs.jsonl", "w") as lines:
        for number in range(60):
            kind = "audio" if number % 3 == 2 else "video"
            part = {"type": kind, kind: files[number % 3]}
            row = {"messages": [{"role": "user", "content": [part]}], "captions": [f"a star, {number}"]}
            print(json.dumps(row), file=lines)
    told = run("index", "calibrate", "pairs.jsonl", "--picture", "reliability.png").output.splitlines()
    assert told[0].startswith("60 queries, 66.7% right at first; calibration error 0.9")
    assert told[1].startswith("confidence = 1 / (1 + exp(-(")
    assert "relevance" in told[1]
    assert told[2].split()[-2:] in (["of", "20"], ["of", "40"])  # the captions of one recording
    assert (filled / "reliability.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads(run("search", "a star", "--json").output)
    assert found[0]["confidence"] == pytest.approx(2 / 3, abs=0.01)
    assert f"{found[0]['confidence']:.0%}" in run("search", "a star").output
    part = {"type": "video", "video": "clips/bad.mp4"}
    row = {"messages": [{"role": "user", "content": [part]}], "captions": ["a"]}
    (filled / "none.jsonl").write_text(json.dumps(row))
    with pytest.raises(MllmError, match="none.jsonl: no record has captions of a recording in the index"):
        run("index", "calibrate", "none.jsonl")
