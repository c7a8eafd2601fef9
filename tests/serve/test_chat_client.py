"""`mllm chat`: its words, local and remote answers, the conversation in the terminal."""

from __future__ import annotations

import base64
import json
import re
import shutil

import pytest

from mllm.answerer import Answerer
from mllm.answerer_remote import RemoteAnswerer
from mllm.command import cli
from mllm.errors import MediaError, MllmError
from mllm.records.answers import Generation
from mllm.records.openai_parts import to_openai
from serve.chat import ask_once, check, converse, parse_words, user_message
from tests.media_files import make


def test_recordings_keep_their_order(tmp_path):
    words = ["--video", "a.mp4", "--audio=b.wav", "--video", "c.mp4", "Which?"]
    assert parse_words(words) == (
        None,
        [("video", "a.mp4"), ("audio", "b.wav"), ("video", "c.mp4")],
        "Which?",
    )
    assert parse_words([str(tmp_path), "--image", "d.png"]) == (str(tmp_path), [("image", "d.png")], None)
    assert parse_words(["model", "Why?"]) == ("model", [], "Why?")
    assert parse_words([]) == (None, [], None)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--vidoe", "a.mp4"], "no option --vidoe"),
        (["--video"], "--video needs a file"),
        (["model", "what", "is", "it"], "quotes"),
    ],
)
def test_wrong_words(words, says):
    with pytest.raises(MllmError, match=says):
        parse_words(words)


def test_model_is_the_checkpoint(tmp_path):
    assert parse_words(["Why?"], "mine") == ("mine", [], "Why?")
    with pytest.raises(MllmError, match=f"two checkpoints, {tmp_path} and --model mine"):
        parse_words([str(tmp_path), "Why?"], "mine")
    for path in ("/no/such/folder", "./gone", "~/gone"):
        with pytest.raises(MllmError, match=f"no folder at {path}"):
            parse_words([path])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "/no/such/folder", "Why?"], "no checkpoint at /no/such/folder"),
        (["--model", "", "Why?"], "the checkpoint's name is empty"),
        (["--model", "here/gone", "Why?"], "here/gone cannot be read"),
        (["--served-model", "x", "Why?"], "--served-model names a model at --url"),
        (
            ["--url", "http://127.0.0.1:9", "--model", "x", "Why?"],
            "name one of the server's models with --served",
        ),
    ],
)
def test_no_checkpoint_is_passed_over_for_the_one_that_ships(capsys, words, says):
    with pytest.raises(SystemExit) as ended:
        cli.main(["chat", *words])
    assert ended.value.code == 2
    assert says in capsys.readouterr().err


def test_openai_parts(media):
    message = user_message(
        [("video", str(media / "short.mp4")), ("image", "http://example.org/x.png")], "Which?"
    )
    (sent,) = to_openai([message])
    video, image, text = sent["content"]
    head, _, data = video["video_url"]["url"].partition(",")
    assert head == "data:video/mp4;base64"
    assert base64.b64decode(data) == (media / "short.mp4").read_bytes()
    assert image == {"type": "image_url", "image_url": {"url": "http://example.org/x.png"}}
    assert text == {"type": "text", "text": "Which?"}
    assert to_openai([user_message([], "Hello")]) == [{"role": "user", "content": "Hello"}]
    json.dumps(sent)


EIGHT = Generation(max_tokens=8)


@pytest.fixture(scope="module")
def answerer(reference):
    return Answerer(*reference, generation=EIGHT)


@pytest.fixture
def named(media, tmp_path):
    """Recordings that lack something: a film without sound, a sound, a still."""
    shutil.copy(media / "low.wav", tmp_path / "sound.wav")
    shutil.copy(media / "red.png", tmp_path / "still.png")
    make(tmp_path / "film.mp4", seconds=1, fps=4)
    return tmp_path


MISNAMED = [
    ("audio", "film.mp4", "it has no sound: give it as --video"),
    ("audio", "still.png", "it has no sound: give it as --image"),
    ("video", "sound.wav", "it has no picture: give it as --audio"),
    ("image", "sound.wav", "it is no still picture: give it as --audio"),
    ("image", "film.mp4", "it is no still picture: give it as --video"),
]


@pytest.mark.parametrize(("modality", "name", "says"), MISNAMED)
def test_a_recording_that_is_not_what_it_is_called(
    answerer, named, monkeypatch, capsys, modality, name, says
):
    path = str(named / name)
    remote = object.__new__(RemoteAnswerer)  # no server is asked
    for backend in (answerer, remote):
        with pytest.raises(MediaError, match=f"{name}: {says}"):
            ask_once(backend, [(modality, path)], "What?")
        with pytest.raises(MediaError, match=says):
            check(backend, modality, path)
    assert capsys.readouterr().out == ""
    typed = iter([f"/{modality} {path}", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    converse(answerer)
    assert says in capsys.readouterr().err


def test_a_recording_that_is_what_it_is_called(answerer, named):
    for modality, name in (("audio", "sound.wav"), ("video", "film.mp4"), ("image", "still.png")):
        check(answerer, modality, str(named / name))
    assert check(answerer, "video", str(named / "still.png"))  # a still stands in a window of its own


class Echo:
    """Notes what it is asked."""

    report = "1 window"

    def __init__(self):
        self.asked = []

    def check(self, modality, source):
        if source == "missing":
            raise MediaError("no such file: missing")
        return "3 windows"

    def stream(self, messages, generation=None):
        self.asked.append(messages)
        if "fail" in messages[-1]["content"][-1]["text"]:
            raise MediaError("cannot read it")
        yield from ("an", "swer")


def test_conversation(monkeypatch, capsys):
    typed = iter(
        [
            "/video a.mp4",
            "/audio 'b c.wav'",
            "/image missing",
            "What?",
            "",
            "/help",
            "fail",
            "And?",
            "/clear",
            "New?",
            "/quit",
        ]
    )
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    echo = Echo()
    converse(echo, [("image", "first.png")])
    shapes = [
        [
            (m["role"], [p["type"] for p in m["content"]] if m["role"] == "user" else m["content"])
            for m in turn
        ]
        for turn in echo.asked
    ]
    first = ("user", ["image", "video", "audio", "text"])
    assert shapes == [
        [first],
        [first, ("assistant", "answer"), ("user", ["text"])],  # failed: not kept
        [first, ("assistant", "answer"), ("user", ["text"])],
        [("user", ["text"])],
    ]
    out, errors = capsys.readouterr()
    assert out.splitlines() == ["answer", "answer", "answer"]
    assert "error: no such file: missing" in errors
    assert "error: cannot read it" in errors
    assert "(1 window)" in errors


def test_conversation_ends_with_the_input(monkeypatch):
    def end(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    converse(Echo())


@pytest.mark.slow
def test_a_server_says_what_the_checkpoint_says(server, answerer, media, capsys):
    remote = RemoteAnswerer(server.url, generation=EIGHT)
    assert remote.model == "nano"
    question = (
        [("video", str(media / "red_low.mp4")), ("audio", str(media / "high.flac"))],
        "Which is louder?",
    )
    # vLLM holds back half of a letter of several bytes.
    assert ask_once(remote, *question) == ask_once(answerer, *question).rstrip("\N{REPLACEMENT CHARACTER}")
    assert re.fullmatch(r"\d+ tokens in, [1-8] out", remote.report)
    assert "2 windows" in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_with_adapters_refuses_to_rank_rather_than_to_end(server):
    remote = RemoteAnswerer(server.url)
    with pytest.raises(MllmError, match="holds adapters .* ask a server without adapters"):
        remote.rank([user_message([], "What is seen?")], ["red", "blue"])
    assert remote.answer([[user_message([], "hello")]])


@pytest.mark.slow
def test_what_the_server_refuses_is_passed_on(server, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"nothing")
    with pytest.raises(MllmError, match="says: cannot use video"):
        ask_once(RemoteAnswerer(server.url), [("video", str(bad))], "What?")


@pytest.mark.slow
def test_command_line(checkpoint, media, capfd):
    from mllm.command.cli import main

    with pytest.raises(SystemExit) as done:
        main(
            ["chat", str(checkpoint), "--image", str(media / "red.png"), "--max-tokens", "4", "Which colour?"]
        )
    assert done.value.code == 0
    with pytest.raises(SystemExit) as done:
        main(["chat", str(checkpoint), "--image", "missing.png", "Which colour?"])
    assert done.value.code == 2
    assert capfd.readouterr().err.strip().splitlines()[-1].startswith("error: ")
