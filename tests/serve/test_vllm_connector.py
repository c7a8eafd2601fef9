"""The connector in this process: URLs good and bad, for `LLM.chat` (blocking) and for a server (async)."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soundfile

pytest.importorskip("vllm", reason="vLLM is not installed")

from data_prep.world.voice import say
from mllm.media.addresses import REFUSED
from mllm.media.fetch import FetchBusy, Fetcher, FetchLimits
from mllm.vllm import api as vllm_api
from mllm.vllm import connector as vllm_connector
from mllm.vllm import recordings
from mllm.vllm.connector import MediaFailed, MediaRejected, MllmMediaConnector

pytestmark = pytest.mark.slow
SECRET = base64.b64encode(b"content that nobody may be told again" * 3).decode()


def blocking(connector: MllmMediaConnector, kind: str, url: Any) -> Any:
    return getattr(connector, f"fetch_{kind}")(url)


def in_a_server(connector: MllmMediaConnector, kind: str, url: Any) -> Any:
    async def request() -> Any:
        vllm_api.current.set(vllm_api.Exchange(client="192.0.2.7"))
        return await getattr(connector, f"fetch_{kind}_async")(url)

    return asyncio.run(request())


@pytest.fixture(params=[blocking, in_a_server], ids=["blocking", "async"])
def fetch(request) -> Callable:
    return request.param


@pytest.fixture
def connector(reference, media, monkeypatch) -> MllmMediaConnector:
    monkeypatch.setattr(recordings, "_processor", reference[1])
    return MllmMediaConnector(allowed_local_media_path=str(media))


@pytest.fixture
def private(monkeypatch) -> None:
    """The test's web server is on this machine."""
    monkeypatch.setenv("MLLM_ALLOW_PRIVATE_MEDIA", "1")


def why(fetch: Callable, connector: MllmMediaConnector, kind: str, url: Any) -> str:
    with pytest.raises(MediaRejected) as caught:
        fetch(connector, kind, url)
    line = str(caught.value)
    assert line.startswith(f"cannot use {kind}")
    assert "\n" not in line
    assert SECRET[:8] not in line
    json.dumps(line, ensure_ascii=False).encode()  # as the answer is sent
    return line


def test_web_data_and_file_give_the_same_recording(fetch, connector, media, web, private):
    code = base64.b64encode((media / "red.png").read_bytes()).decode()
    folded = "\n".join(code[start : start + 76] for start in range(0, len(code), 76))
    urls = [
        f"file://{media}/red.png",
        f"{web}/red.png",
        f"  {web}/red.png\n",
        f"data:image/png;base64,{code}",
        f"\n data:image/png;base64,{folded}",
        f"DATA:;base64,{code.translate(str.maketrans('+/', '-_')).rstrip('=')}",
    ]
    assert len({fetch(connector, "image", url).digest for url in urls}) == 1


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "its url is empty"),
        (" \n", "its url is empty"),
        (None, "its url is no text"),
        (7, "its url is no text"),
        (f"data:video/mp4;base64,{SECRET}@", "data: URI: not valid base64"),
        (f"  data:video/mp4;base64,{SECRET}@", "data: URI: not valid base64"),
        (f"data:video/mp4;base64,{SECRET}\ud800", "data: URI: not valid base64"),
        (f"data:text/plain,{SECRET}\ud800", "data: URI: it is no text in UTF-8"),
        (f"data:{SECRET}", "data: URI: no comma in it"),
        (f"data:video/mp4;base64,{SECRET}", "it is text, not a recording"),
        ("data:video/mp4;base64,", "it is empty"),
        (SECRET, "its URL is neither http(s):// nor data: nor file://"),
        (f"video/mp4;base64,{SECRET}", "neither"),
        ("not a url", "video not a url: its URL is neither"),
        ("ftp://example.org/x.mp4", "neither"),
        ("http://example.org/\ud800.mp4", "half a character"),
        ("http://example.org/a\nb.mp4", "a line break"),
        ("file:///tmp/\ud800", "half a character"),
        ("file:///tmp/%00x", "its URL names no file"),
        ("file:///etc/hostname", "allowed"),
        ("http://", "no address on the web"),
        ("http://[::1/x", "no address on the web"),
    ],
)
def test_what_is_said_about_bad_urls(fetch, connector, url, says):
    assert says in why(fetch, connector, "video", url)


def test_addresses_inside_the_network_are_refused_by_default(fetch, connector, web):
    """An open port, a closed one, a missing file, a name that does not exist: all the same words."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        shut = f"http://127.0.0.1:{closed.getsockname()[1]}"
        for url in (
            f"{web}/red.png",
            f"{web}/missing.png",
            f"{shut}/x.png",
            "http://[::1]/x",
            "http://0x7f.1/x",
        ):
            assert why(fetch, connector, "image", url) == f"cannot use image {url}: {REFUSED}"


def test_hosts_that_the_operator_names(fetch, connector, media, web):
    named = MllmMediaConnector(allowed_local_media_path=str(media), allowed_media_domains=["127.0.0.1"])
    assert fetch(named, "image", f"{web}/red.png").digest
    assert "none of those" in why(fetch, named, "image", web.replace("127.0.0.1", "localhost") + "/red.png")


def test_status_size_and_refused_connections_are_told_where_allowed(
    fetch, connector, web, private, monkeypatch
):
    assert "status 404" in why(fetch, connector, "image", f"{web}/missing.png")
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")
    assert "connection refused" in why(fetch, connector, "image", "http://127.0.0.1:1/x.png")
    monkeypatch.setenv("MLLM_MAX_MEDIA_BYTES", "100")
    assert "larger than 0.0001 MB" in why(fetch, connector, "image", f"{web}/red.png")


def test_a_silent_host_is_left_at_the_deadline(fetch, connector, private, monkeypatch):
    monkeypatch.setenv("MLLM_MEDIA_FETCH_SECONDS", "0.5")
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        began = time.monotonic()
        line = why(fetch, connector, "video", f"http://127.0.0.1:{mute.getsockname()[1]}/x.mp4")
    assert line.endswith("it took longer than 0.5 s to fetch")
    assert time.monotonic() - began < 3


def test_too_many_at_once_get_429(fetch, connector, monkeypatch):
    class Full(Fetcher):
        async def _fetch(self, *arguments: Any, **options: Any) -> bytes:
            raise FetchBusy("this server is already fetching 16 recordings from that host: try later")

    monkeypatch.setattr(vllm_connector, "fetcher_for", lambda limits: Full(limits))
    with pytest.raises(
        MediaFailed, match="cannot use audio http://a.org/x.wav: this server is already"
    ) as caught:
        fetch(connector, "audio", "http://a.org/x.wav")
    assert caught.value.http_status == 429


def test_the_client_is_told_to_the_fetcher(connector, monkeypatch):
    clients = []

    class Asked(Fetcher):
        async def _fetch(self, url: str, client: str = "", **options: Any) -> bytes:
            clients.append(client)
            raise FetchBusy("no")

    monkeypatch.setattr(vllm_connector, "fetcher_for", lambda limits: Asked(limits))
    for fetch in (in_a_server, blocking):
        with pytest.raises(MediaFailed):
            fetch(connector, "audio", "http://a.org/x.wav")
    assert clients == ["192.0.2.7", ""]


def test_one_fetcher_counts_for_all_requests():
    assert vllm_connector.fetcher_for(FetchLimits()) is vllm_connector.fetcher_for(FetchLimits())


def test_other_models_are_guarded_too(fetch, connector, media, web, monkeypatch):
    monkeypatch.setattr(recordings, "_processor", None)
    with pytest.raises(MediaRejected, match="no address on the public internet"):
        fetch(connector, "image", f"{web}/red.png")
    monkeypatch.setenv("MLLM_ALLOW_PRIVATE_MEDIA", "1")
    assert fetch(connector, "image", f"{web}/red.png").size == (96, 96)


@pytest.mark.timeout(60)
def test_a_fifo_in_an_allowed_folder_holds_nobody(fetch, connector, media):
    pipe, link = media / "pipe.wav", media / "pipe_link.wav"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    try:
        for path in (pipe, link):
            assert "not an ordinary file" in why(fetch, connector, "audio", f"file://{path}")
    finally:
        pipe.unlink()
        link.unlink()


def test_settings_that_make_no_sense_end_the_start(reference, monkeypatch):
    monkeypatch.setenv("MLLM_MEDIA_FETCH_SECONDS", "soon")
    with pytest.raises(ValueError, match="MLLM_MEDIA_FETCH_SECONDS is 'soon'"):
        recordings.use_processor(reference[1])


# --- what is said ---------------------------------------------------------------------------------


@pytest.fixture
def listening(connector, tiny_whisper, heard_once, monkeypatch) -> MllmMediaConnector:
    """A connector that transcribes with a tiny model."""
    monkeypatch.setenv("MLLM_TRANSCRIPTS", str(tiny_whisper))
    monkeypatch.setattr(recordings, "_said", recordings.OrderedDict())
    forget = recordings._transcriber.cache_clear
    forget()
    yield connector
    forget()


def test_what_is_said_comes_with_its_recording(fetch, listening, reference, media):
    soundfile.write(media / "spoken.wav", np.tile(say("train", "seven", "en-us", "calm", 0), 3), 16_000)
    spoken = fetch(listening, "audio", (media / "spoken.wav").as_uri())
    text = reference[1].tokenizer.decode(spoken.said)
    assert text.startswith("Subtitles:\n[00:0")
    assert text.endswith("\n")
    for kind, name in (("audio", "low.wav"), ("video", "blue_silent.mp4"), ("image", "red.png")):
        assert fetch(listening, kind, (media / name).as_uri()).said == ()


def test_a_transcription_that_fails_is_an_error_of_the_request(fetch, listening, media, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory\nleft")

    monkeypatch.setattr(recordings, "_transcriber", fail)
    with pytest.raises(MediaRejected, match="^cannot use audio file:.*: no memory left$"):
        fetch(listening, "audio", (media / "low.wav").as_uri())


def test_too_many_recordings_to_transcribe_are_refused(listening, media, monkeypatch):
    monkeypatch.setattr(recordings, "_turns", threading.BoundedSemaphore(1))
    recordings._turns.acquire()
    with pytest.raises(MediaFailed, match="16 recordings wait to be transcribed: try again later") as busy:
        in_a_server(listening, "audio", (media / "high.flac").as_uri())
    assert busy.value.http_status == 429
