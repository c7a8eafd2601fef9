"""`make demo`, as far as it goes without starting vLLM again."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mllm.answerer_remote import RemoteAnswerer
from mllm.media.recording import load_clip, probe
from serve import demo
from serve.demo import Answered, ask, conclude, main, own_question, questions, table_of
from serve.launcher import Server
from serve.warm_up import synthetic_clip


def record(clip: str, task: str, answer: str = "red", kind: str = "video") -> dict:
    content = [{"type": kind, kind: clip}, {"type": "text", "text": f"{task}?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "task": task, "answer": answer}


def test_questions_are_of_different_kinds_about_three_videos():
    records = [record(f"{clip}.mp4", task) for clip in "abcd" for task in ("colour", "count", "word")]
    records += [record("a.mp4", "caption_video"), record("e.png", "colour", kind="image")]
    records += [record("d.mp4", task) for task in ("colour", "beeps", "kind", "order", "motion")]
    chosen = list(questions(records))
    clips = [clip for clip, _, _ in chosen]
    assert clips[:5] == ["d.mp4"] * 5
    assert len(set(clips)) == 3
    assert len(chosen) == 5 + 3 + 3
    asked = [messages[0]["content"][1]["text"] for _, messages, _ in chosen]
    assert len(set(asked[:5])) == 5
    assert "caption_video?" not in asked
    assert all(len(messages) == 1 for _, messages, _ in chosen)


def test_own_recording_is_sent_as_what_it_is(media):
    for name, kind in (("red_low.mp4", "video"), ("low.wav", "audio"), ("red.png", "image")):
        _, messages, truth = own_question(str(media / name), None)
        assert messages[0]["content"][0]["type"] == kind
        assert truth is None


@pytest.mark.parametrize(("right", "status"), [(5, 0), (4, 0), (3, 1)])
def test_exit_status_counts_the_right_answers(right, status, tmp_path):
    asked = [Answered("a.mp4", "?", "Red." if i < right else "blue", "red", 0.1, 0.2) for i in range(5)]
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(table_of(asked))
    assert conclude(asked, console, Server("model"), tmp_path) == status
    text = console.export_text()
    assert f"{right} of 5 answers are right" in text
    assert "100 ms" in text
    assert "mllm chat --video" in text


def test_nothing_asked_fails(tmp_path):
    assert conclude([], Console(quiet=True), Server("model"), tmp_path) == 1


def test_wrong_arguments(capsys):
    assert main(["--media", "missing.mp4", "--model", "x"]) == 2
    assert "error: no such file: missing.mp4" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--question", "What?"])


def test_demo_stops_what_it_started(monkeypatch, tmp_path, capsys):
    stopped = []

    class Never(Server):
        def start(self, tick=None):
            raise KeyboardInterrupt

        def stop(self, keep_log=False):
            stopped.append("server")

    class Maker:
        returncode = None

        def poll(self):
            return None

        def kill(self):
            stopped.append("clips")

        def wait(self):
            pass

    monkeypatch.setattr(demo, "Server", Never)
    monkeypatch.setattr(demo, "make_clips", lambda out: Maker())
    assert main(["--model", str(tmp_path), "--out", str(tmp_path)]) == 130
    assert stopped == ["server", "clips"]


def test_synthetic_clips_have_picture_and_sound_and_differ():
    first, second = synthetic_clip(0), synthetic_clip(1)
    assert first != second
    info = probe(first)
    assert info.has_video
    assert info.has_audio
    assert info.duration == pytest.approx(4.0, abs=0.2)
    assert abs(load_clip(first, size=32).waveform).max() > 0.1


@pytest.mark.slow
def test_ask(server, media):
    content = [{"type": "image", "image": str(media / "red.png")}, {"type": "text", "text": "Which colour?"}]
    answerer = RemoteAnswerer(server.url)
    asked = ask(answerer, "red.png", [{"role": "user", "content": content}], "red")
    assert asked.question == "Which colour?"
    assert 0 < asked.first_token <= asked.whole
