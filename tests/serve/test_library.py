"""`mllm index` and `mllm search`, with an embedder that reads "recordings" of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from mllm.errors import ConfigError, MediaError, MllmError
from mllm.records.transcript import Segment, Transcript
from serve import library
from serve.search import search

runner = CliRunner()
app = typer.Typer()
app.add_typer(library.index_app, name="index")
app.command("search")(search)


class WindowVector(NamedTuple):
    start: float
    end: float
    modality: str
    vector: np.ndarray


class JsonEmbedder:
    """A recording is a list of [start, end, modality, angle]; "a star" looks along angle 0."""

    dim = 2

    def __init__(self, name: str = "nano"):
        self.name = name

    def fingerprint(self) -> str:
        return self.name.ljust(64, "0")

    def windows(self, path, isolated=False):
        try:
            rows = json.loads(Path(path).read_text())
        except ValueError:
            raise MediaError(f"{path} cannot be read: [not] JSON") from None
        for start, end, modality, angle in rows:
            yield WindowVector(start, end, modality, direction(angle))

    def embed_text(self, texts):
        return np.stack([direction(0.0)] * len(texts))


def direction(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle)], np.float32)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with a library of two good recordings and a bad one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        library, "load_embedder", lambda model, index, features=None: JsonEmbedder(model or "nano")
    )
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "clips").mkdir()
    star = [[0, 2, "video", 1.0], [0, 2, "audio", 1.0], [0, 2, "both", 1.0]]
    star += [[62, 63.5, "video", 0.1], [62, 63.5, "audio", 0.2], [62, 63.5, "both", 0.15]]
    (tmp_path / "clips/star.mp4").write_text(json.dumps(star))
    (tmp_path / "clips/bell [1] é.wav").write_text(json.dumps([[0, 2, "audio", 0.5]]))
    (tmp_path / "clips/bad.mp4").write_text("?")
    return tmp_path


def run(*words: str):
    return runner.invoke(app, list(words), catch_exceptions=False)


def test_add_search_info(place):
    added = run("index", "add", "clips")
    assert added.exit_code == 0
    assert "failed" in added.output
    assert "bad.mp4 cannot be read: [not] JSON" in added.output
    assert "2 recordings added (7 rows), 0 unchanged, 1 failed in .mllm/index" in added.output

    found = run("search", "a star")
    assert found.exit_code == 0
    lines = [line.split() for line in found.output.splitlines()[1:]]
    assert lines[0] == ["clips/star.mp4", "01:02–01:04", "video+audio", "0.995"]
    assert lines[1] == ["00:00–00:02", "video+audio", "0.540"]
    assert lines[2] == ["clips/bell", "[1]", "é.wav", "00:00–00:02", "audio", "0.878"]

    only = run("search", "a star", "--modality", "audio", "-k", "1")
    assert [line.split()[0] for line in only.output.splitlines()[1:]] == ["clips/star.mp4", "00:00–00:02"]

    info = run("index", "info")
    assert "nano (nano00000000)" in info.output
    assert "2 video, 3 audio, 2 both; 2 numbers each" in info.output


def test_json(place):
    run("index", "add", "clips", "--index", "elsewhere")
    hits = json.loads(run("search", "a star", "--index", "elsewhere", "--json").output)
    assert hits[0]["source"] == hits[0]["name"] == str(place / "clips/star.mp4")
    assert (hits[0]["start"], hits[0]["modality"]) == (62.0, "both")
    assert json.loads(run("index", "info", "--index", "elsewhere", "--json").output)["recordings"] == 2


def test_attributes_and_filters(place):
    (place / "clips/talks.jsonl").write_text(
        '{"file": "star.mp4", "name": "Ann [1]", "speaker": "ann", "year": 2020}\n'
    )
    added = run("index", "add", "clips", "--attributes", "clips/talks.jsonl", "--attribute", "lent=false")
    assert "2 recordings added (7 rows)" in added.output
    assert "attributes  lent (boolean), speaker (string), year (number)" in run("index", "info").output
    found = run("search", "a star", "--filter", "speaker=ann", "--filter", "year>=2020")
    lines = [line.split("  ")[0] for line in found.output.splitlines()[1:]]
    assert [line.strip() for line in lines if line.strip()] == ["Ann [1]"]
    (hit,) = json.loads(run("search", "a star", "--filter", "speaker!=ann", "--json").output)
    assert (hit["name"], hit["attributes"]) == (str(place / "clips/bell [1] é.wav"), {"lent": False})
    nothing = run("search", "a star", "--filter", "year>2020")
    assert "nothing that the filter lets through in index .mllm/index" in nothing.output
    with pytest.raises(ConfigError, match="no item has the attribute 'yaer': did you mean 'year'?"):
        run("search", "a star", "--filter", "yaer=2020")

    again = run("index", "add", "clips")  # keeps what was said of them
    assert "0 recordings added (0 rows), 2 unchanged, 1 failed" in again.output
    lent = run("index", "add", "clips/star.mp4", "--attribute", "lent=true")
    assert "0 recordings added (0 rows), 0 unchanged, 1 updated" in lent.output
    (hit, *_) = json.loads(run("search", "a star", "--filter", "lent=true", "--json").output)
    assert (hit["name"], hit["attributes"]) == ("Ann [1]", {"lent": True})


def test_transcripts_subtitles_and_descriptions(place, monkeypatch):
    class Listener:
        def transcribe(self, path, isolated=False, **span):
            return Transcript("en", (Segment(0.5, 1.0, "a bell rings"),))

        def __init__(self, name):
            self.name = name

    monkeypatch.setattr(library, "_transcriber", Listener)
    (place / "clips/star.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nLook, a star!\n")
    (place / "talks.csv").write_text("file,name,description\nclips/star.mp4,Stars,A film about the sky\n")
    added = run("index", "add", "clips", "--attributes", "talks.csv", "--transcribe")
    assert "2 recordings added (7 rows)" in added.output
    told = json.loads(run("index", "info", "--json").output)
    assert told["texts"] == {"said": 2, "written": 1}
    assert told["said"] == {"transcript whisper-base": 1, "subtitles": 1}
    texts = "texts       2 said, 1 written; heard 1 by subtitles, 1 by transcript whisper-base"
    assert texts in run("index", "info").output


def test_rows_of_a_table_that_meet_no_recording_are_named(place):
    (place / "talks.csv").write_text("file,year\nclips/star.mp4,2020\nclips/nova.mp4,2021\n")
    added = run("index", "add", "clips", "--attributes", "talks.csv")
    assert f"passed over talks.csv: {place}/clips/nova.mp4 is not among what was added" in added.output


def test_second_add_has_nothing_to_do_but_fails_nothing(place):
    run("index", "add", "clips")
    again = run("index", "add", "clips")
    assert again.exit_code == 0
    assert "0 recordings added (0 rows), 2 unchanged, 1 failed" in again.output


def test_all_failed_is_status_1(place):
    assert run("index", "add", "clips/bad.mp4").exit_code == 1
    (place / "empty").mkdir()
    nothing = run("index", "add", "empty")
    assert nothing.exit_code == 0
    assert "no media file" in nothing.output


def test_prune_and_rebuild(place):
    run("index", "add", "clips")
    (place / "clips/star.mp4").unlink()
    assert "1 removed" in run("index", "add", "clips", "--prune").output
    with pytest.raises(ConfigError, match="nano.*other.*--rebuild"):
        run("index", "add", "clips", "--model", "other")
    with pytest.raises(ConfigError, match="--model nano"):
        run("search", "a star", "--model", "other")
    assert run("index", "add", "clips", "--model", "other", "--rebuild").exit_code == 0
    assert "other" in run("index", "info").output


def test_wrong_words(place):
    with pytest.raises(ConfigError, match="no index in .*index add DIR"):
        run("search", "a star")
    with pytest.raises(ConfigError, match="choose from"):
        run("search", "a star", "--modality", "smell")
    for blank in ("", "  \n"):
        with pytest.raises(MllmError, match="nothing to search for: say what is seen or heard"):
            run("search", blank)
    run("index", "add", "clips")
    assert "nothing with image" in run("search", "a star", "--modality", "image").output


def test_clock():
    assert [library.clock(s) for s in (0, 59.9, 60, 6000)] == ["00:00", "00:59", "01:00", "100:00"]
    assert library.clock(1.2, up=True) == "00:02"
    assert library.clock(2.0, up=True) == "00:02"


def test_default_index_is_the_library_s():
    from mllm.search.index import DEFAULT_FOLDER

    assert library.DEFAULT_INDEX == DEFAULT_FOLDER


def test_help_loads_no_model():
    heavy = "('torch', 'lancedb', 'transformers')"
    script = f"import sys, serve.library; sys.exit(any(module in sys.modules for module in {heavy}))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_model_of_an_index_is_taken_for_granted(monkeypatch, tmp_path):
    import mllm.search.embedder
    import mllm.search.index

    asked = []
    monkeypatch.setattr(
        mllm.search.embedder.Embedder,
        "from_pretrained",
        classmethod(lambda cls, model, features=None: asked.append(model)),
    )
    (tmp_path / "model").mkdir()
    for name in (str(tmp_path / "model"), str(tmp_path / "gone"), "owner/hub-id"):
        index = tmp_path / f"index-{len(asked)}"
        mllm.search.index.Index.open(index, JsonEmbedder(name))
        library.load_embedder(None, index)
    library.load_embedder("other", index)
    library.load_embedder(None, tmp_path / "no index")
    assert asked == [str(tmp_path / "model"), None, "owner/hub-id", "other", None]
