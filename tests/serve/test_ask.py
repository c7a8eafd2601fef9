"""`mllm ask`: a question to a library of recordings."""

from __future__ import annotations

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from mllm.errors import MediaError, MllmError
from mllm.media.recording import load_clip
from mllm.records.openai_parts import to_openai
from mllm.search.items import Item
from mllm.search.moments import Hit, Moment
from serve import ask, chat
from tests.serve.test_library import JsonEmbedder, WindowVector, direction

app = typer.Typer()
app.command("ask")(ask.ask)


class Echo:
    """Answers with the question, and remembers what it was asked."""

    report = ""

    def __init__(self):
        self.asked = []

    def stream(self, messages):
        self.asked.append(messages)
        yield from ("It ", "is ", messages[0]["content"][-1]["text"])


@pytest.fixture
def library(media, tmp_path, monkeypatch):
    """An index of a film, a sound and a still; the film's second window looks like every question."""
    from mllm.search.index import Index

    class Embedder(JsonEmbedder):
        def windows(self, path, isolated=False):
            kind, *angles = {
                "long.mp4": ("both", 0.6, 0.1),
                "low.wav": ("audio", 0.3),
                "red.png": ("image", 0.9),
            }[path.name]
            for number, angle in enumerate(angles):
                yield WindowVector(number * 2.0, number * 2.0 + 2, kind, direction(angle))

    folder = tmp_path / "library"
    folder.mkdir()
    for name in ("long.mp4", "low.wav", "red.png"):
        (folder / name).symlink_to(media / name)
    monkeypatch.chdir(tmp_path)
    index = Index.open("index", Embedder())
    index.add([folder / name for name in ("long.mp4", "low.wav", "red.png")])
    monkeypatch.setattr(ask, "open_to_search", lambda model, index_folder: index)
    backend = Echo()
    monkeypatch.setattr(chat, "make_backend", lambda *arguments: backend.asked.append(arguments) or backend)
    return backend


def run(*words):
    return CliRunner().invoke(app, [*words, "--index", "index"], catch_exceptions=False)


def test_the_best_moments_are_asked_about_and_named(library):
    printed = run("what?", "--top", "2").stdout.splitlines()
    assert printed == ["It is what?", "[library/long.mp4 00:02–00:04]", "[library/low.wav 00:00–00:02]"]
    (checkpoint, url, *_), (message,) = library.asked
    assert (checkpoint, url) == ("nano", None)
    film, sound, text = message["content"]
    assert (film["type"], film["start"], film["end"]) == ("video", 2.0, 4.0)
    assert sound["type"] == "audio"
    assert text == {"type": "text", "text": "what?"}


def test_a_server_gets_the_moments_alone(library):
    printed = run("what?", "--url", "http://localhost:1", "--top", "4").stdout
    assert printed.splitlines()[-2:] == ["[library/red.png]", "[library/long.mp4 00:00–00:02]"]
    (checkpoint, url, *_), messages = library.asked
    assert (checkpoint, url) == (None, "http://localhost:1")
    (sent,) = to_openai(messages)  # which refuses start and end
    kinds = [part["type"] for part in sent["content"]]
    assert kinds == ["video_url", "audio_url", "image_url", "video_url", "text"]
    piece = load_clip(messages[0]["content"][0]["video"])
    assert piece.duration == pytest.approx(2.0, abs=0.15)


def test_a_piece_has_what_the_recording_has(media):
    both = load_clip(ask.cut(media / "long.mp4", 1.0, 3.0))
    whole = load_clip(media / "long.mp4", start=1.0, end=3.0)
    assert both.frames.shape[1:] == whole.frames.shape[1:]
    assert len(both.frames) == 16
    assert abs(both.frames[4].astype(float) - whole.frames[whole.on_screen(np.array([0.5]))[0]]).mean() < 8
    assert abs(len(both.waveform) - 32_000) < 2_100
    assert load_clip(ask.cut(media / "blue_silent.mp4", 0.0, 1.0)).waveform is None
    assert load_clip(ask.cut(media / "low.wav", 0.0, 1.0, picture=False)).frames is None


def test_what_cannot_be_asked_is_one_line(library, tmp_path):
    with pytest.raises(MllmError, match="nothing is asked"):
        run(" ")
    (tmp_path / "library/long.mp4").unlink()
    with pytest.raises(MediaError, match="long.mp4 is in the index but not there: mllm index add --prune"):
        run("what?")


def test_moments_are_shown_as_times():
    talk = Hit("a", Item("/x/talk.mp4"), "both", 61.0, 63.0, 0.9)
    still = Hit("b", Item("/x/a.png"), "image", 0, 0, 0.5)
    found = [Moment(talk.item, 61.0, 64.5, [talk], 1), Moment(still.item, 0, 0, [still], 1)]
    assert ask.sources(found) == ["[/x/talk.mp4 01:01–01:05]", "[/x/a.png]"]


def test_of_a_long_moment_the_part_around_its_best_match_is_looked_at():
    def part(start: float, end: float, best: float) -> tuple[float, float]:
        hit = Hit("a", Item("/x/talk.mp4"), "both", best, best + 2, 0.9)
        shown = ask._shortened(Moment(hit.item, start, end, [hit], 1))
        return shown.start, shown.end

    assert part(4, 20, 6) == (4, 20)
    assert part(4, 100, 6) == (4, 34)
    assert part(4, 100, 50) == (36, 66)
    assert part(4, 100, 98) == (70, 100)


def test_what_is_said_goes_with_the_moments(library, tmp_path):
    srt = "1\n00:00:02,500 --> 00:00:03,500\nHello there!\n\n2\n00:00:06,000 --> 00:00:07,000\nBye.\n"
    (tmp_path / "library/long.srt").write_text(srt)
    ask.open_to_search(None, None).add([tmp_path / "library"])
    printed = run("Who says hello?", "--top", "1").stdout.splitlines()
    assert printed[1:] == ["[library/long.mp4 00:02–00:04]"]
    film, said, text = library.asked[1][0]["content"]
    assert (film["start"], film["end"], text["text"]) == (2.5, 3.5, "Who says hello?")
    assert said["text"].endswith("[00:00] Hello there!\n")
    run("Bye?", "--top", "1", "--url", "http://localhost:1")
    assert "[00:00] Bye.\n" in library.asked[3][0]["content"][1]["text"]
