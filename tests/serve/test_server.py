"""The real server: the API's other corners, and what it says to bad media. Parity is in test_parity.py."""

from __future__ import annotations

import base64
import json
import socket
import time
from typing import Any

import httpx
import pytest

from mllm.records.openai_parts import media_url

pytestmark = pytest.mark.slow


def ask(client, *parts: dict[str, Any], **options: Any):
    content = [*parts, {"type": "text", "text": "What is seen?"}]
    messages: Any = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="nano", messages=messages, max_tokens=4, **options)


def url_part(modality: str, url: str) -> dict[str, Any]:
    return {"type": f"{modality}_url", f"{modality}_url": {"url": url}}


def base64_part(modality: str, data: bytes) -> dict[str, Any]:
    return url_part(modality, f"data:{modality}/any;base64,{base64.b64encode(data).decode()}")


def test_models_are_listed(client):
    assert {"nano", "tuned"} <= {model.id for model in client.models.list()}


def test_health_and_curl_line(server):
    assert server.healthy()
    line = server.curl()
    assert line.startswith(f"curl {server.api}/chat/completions")
    body = line.split("-d '")[1].rstrip("'")
    reply = httpx.post(
        f"{server.api}/chat/completions",
        content=body,
        headers={"Content-Type": "application/json"},
        timeout=60,
    )
    assert reply.status_code == 200
    assert reply.json()["model"] == "nano"


def test_usage_counts_the_tokens_of_the_recording(client, media, reference):
    processor = reference[1]
    reply = ask(client, url_part("image", media_url(media / "red.png", "image")))
    alone = ask(client)
    assert reply.usage.prompt_tokens - alone.usage.prompt_tokens == processor.queries["video"]


def test_a_recording_can_be_named_by_uuid_again(client, media):
    first = url_part("video", media_url(media / "red_low.mp4", "video")) | {"uuid": "a clip"}
    again = {"type": "video_url", "video_url": None, "uuid": "a clip"}
    assert ask(client, again | first).choices[0].message == ask(client, again).choices[0].message


BAD_BYTES = {
    "zero bytes": b"",
    "garbage": bytes(range(256)) * 20,
    "text": b"This is not a recording, only text.\n" * 50,
}


@pytest.mark.parametrize("modality", ["video", "audio", "image"])
@pytest.mark.parametrize("what", [*BAD_BYTES, "truncated"])
def test_bad_bytes(client, media, modality, what):
    if what == "truncated":
        whole = {"video": "red_low.mp4", "audio": "beeps.m4a", "image": "red.png"}[modality]
        data = (media / whole).read_bytes()[:90]
    else:
        data = BAD_BYTES[what]
    assert_rejected(client, base64_part(modality, data))


def test_media_of_another_kind(client, media):
    assert_rejected(client, url_part("audio", media_url(media / "blue_silent.mp4", "audio")), "no sound")
    assert_rejected(client, url_part("image", media_url(media / "low.wav", "image")), "no still picture")
    assert_rejected(client, url_part("image", media_url(media / "short.mp4", "image")), "no still picture")
    assert_rejected(client, url_part("audio", media_url(media / "red.png", "audio")), "no sound")


def test_sound_sent_as_video_is_heard(client, media):
    assert ask(client, url_part("video", media_url(media / "low.wav", "video"))).choices


def test_bad_base64(client):
    assert_rejected(client, url_part("video", "data:video/mp4;base64,%%%not base64%%%"), "base64")
    assert_rejected(
        client, {"type": "input_audio", "input_audio": {"data": "%%%", "format": "wav"}}, "base64"
    )


def test_bad_urls(client, media, web):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for modality, url, says in (
        ("video", f"file://{media}/missing.mp4", "no such file"),
        ("audio", f"file://{media}", "allowed"),
        ("video", "file:///etc/hostname", "allowed"),
        ("image", f"file://{media}/../../etc/passwd", "allowed"),
        ("video", f"{web}/missing.mp4", "404"),
        ("image", f"http://127.0.0.1:{port}/x.png", "connection refused"),
        ("video", "ftp://example.org/x.mp4", "URL"),
        ("video", "not a url", "not a url"),
        ("audio", "data:audio/wav,plain", "it is text, not a recording"),
        ("audio", "data:audio/wav;base64", ""),
        ("video", "http://", ""),
    ):
        assert_rejected(client, url_part(modality, url), says)


SECRET = base64.b64encode(b"nobody may be told this again" * 9).decode()


@pytest.mark.parametrize(
    "part",
    [
        url_part("video", ""),
        url_part("video", "  "),
        {"type": "video_url", "video_url": {"url": None}},
        {"type": "video_url", "video_url": None},
        {"type": "video_url"},
        {"type": "audio_url", "audio_url": SECRET},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": None, "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": SECRET, "format": "wav"}},
        {"type": "input_audio", "input_audio": {"data": "\ud800" + SECRET, "format": "wav"}},
        url_part("image", SECRET),
        url_part("image", f" data:image/png;base64,{SECRET}"),
        url_part("image", f"data:{SECRET}"),
        url_part("image", f"data:image/png,{SECRET}"),
        url_part("image", "http://example.org/\ud800.png"),
        {"type": "text", "text": "half \udfff"},
        {"type": "text", "text": None},
        None,
    ],
)
def test_odd_parts_get_one_line_that_repeats_nothing(server, part):
    content = part and [part, {"type": "text", "text": "What is seen?"}]
    body = {"model": "nano", "messages": [{"role": "user", "content": content}], "max_tokens": 4}
    reply = httpx.post(f"{server.api}/chat/completions", content=json.dumps(body), timeout=60)
    message = reply.json()["error"]["message"]
    assert reply.status_code == 400, message
    assert message
    assert "\n" not in message
    assert SECRET[:12] not in message
    assert "pydantic" not in message


def test_half_characters_anywhere(server):
    body = {"model": "nano", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    for field in ({"stop": "\ud800"}, {"model": "na\ud800no"}, {"user": "\udfff"}):
        reply = httpx.post(f"{server.api}/chat/completions", content=json.dumps(body | field), timeout=60)
        assert reply.status_code == 400
        assert "half a character" in reply.json()["error"]["message"]


def test_link_out_of_the_allowed_folder(client, media, tmp_path):
    outside = tmp_path / "outside.png"
    outside.write_bytes((media / "red.png").read_bytes())
    link = media / "link.png"
    link.symlink_to(outside)
    assert_rejected(client, url_part("image", f"file://{link}"), "allowed")


def test_too_large_and_too_long(client, media, web):
    import av
    import numpy as np

    with (media / "large.wav").open("wb") as file:
        file.truncate(61_000_000)
    for url in (f"file://{media}/large.wav", f"{web}/large.wav"):
        assert_rejected(client, url_part("audio", url), "60 MB")
    with av.open(str(media / "long.m4a"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        stream.layout = "mono"
        for start in range(0, 8000 * 720, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 8000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert_rejected(client, url_part("audio", f"file://{media}/long.m4a"), "700 s")


def test_too_much_for_the_prompt(client, media):
    clip = url_part("video", media_url(media / "long.mp4", "video"))
    assert_rejected(client, *[clip] * 40)


def test_110_requests_for_a_silent_host_hold_up_nobody(server, client, web):
    from concurrent.futures import ThreadPoolExecutor

    import openai

    def why(url: str) -> tuple[int, str]:
        with pytest.raises(openai.APIStatusError) as caught:
            ask(client, url_part("video", url))
        return caught.value.status_code, caught.value.body["message"].rpartition(": ")[2]

    with socket.socket() as mute, ThreadPoolExecutor(110) as pool:
        mute.bind(("127.0.0.1", 0))
        mute.listen(128)
        silent = f"http://127.0.0.1:{mute.getsockname()[1]}/x.mp4"
        held = [pool.submit(why, silent) for _ in range(110)]
        time.sleep(1)
        began = time.monotonic()
        assert ask(client, url_part("video", f"{web}/short.mp4")).choices
        assert time.monotonic() - began < 4
        said = [future.result() for future in held]
    assert time.monotonic() - began < 20
    late, busy = (400, "it took longer than 5 s to fetch"), (429, "try later")
    assert set(said) == {late, busy}
    assert said.count(late) >= 16  # from one host at a time; the others wait for a moment


def assert_rejected(client, *parts: dict[str, Any] | str) -> None:
    """Status 4xx, one line that says what is wrong (a last string stands in it), and the server lives."""
    import openai

    says = parts[-1] if isinstance(parts[-1], str) else ""
    sent: Any = [piece for piece in parts if isinstance(piece, dict)]
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, *sent)
    message = caught.value.body["message"]
    assert 400 <= caught.value.status_code < 500, message
    assert message.strip()
    assert "\n" not in message.strip()
    assert "Traceback" not in message
    assert says in message
    assert ask(client).choices[0].message.content is not None


def test_many_bad_requests_at_once_do_not_harm_a_good_one(client, media):
    from concurrent.futures import ThreadPoolExecutor

    import openai

    good = url_part("video", media_url(media / "red_low.mp4", "video"))
    before = ask(client, good).choices[0].message.content

    def send(index: int) -> Any:
        try:
            return (
                ask(client, base64_part("video", bytes([index])) if index % 2 else good)
                .choices[0]
                .message.content
            )
        except openai.APIStatusError as error:
            return error.status_code

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(send, range(32)))
    assert answers[::2] == [before] * 16
    assert all(400 <= status < 500 for status in answers[1::2])


REAL = ("video_*", "odd_*", "jfk", "llamafactory_demo")


def test_real_media(client, real_data):
    """Every real recording is answered, or refused with a clear line."""
    import openai

    kinds = {".mp4": "video", ".mkv": "video", ".avi": "video", ".webm": "video", ".mov": "video"}
    kinds |= {".wav": "audio", ".mp3": "audio", ".flac": "audio", ".m4a": "audio", ".ogg": "audio"}
    kinds |= {".png": "image", ".jpg": "image", ".jpeg": "image", ".webp": "image"}
    folders = [folder for pattern in REAL for folder in sorted(real_data.glob(pattern))]
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix.lower() in kinds]
    outcomes = {}
    for path in files:
        modality = kinds[path.suffix.lower()]
        name = str(path.relative_to(real_data))
        try:
            reply = ask(client, url_part(modality, media_url(path, modality)))
            outcomes[name] = (200, f"{reply.usage.prompt_tokens} tokens")
        except openai.APIStatusError as error:
            outcomes[name] = (error.status_code, error.body["message"])
    for name, (status, said) in outcomes.items():
        print(status, name, said, sep="\t")
    assert outcomes
    assert all(status < 500 for status, _ in outcomes.values()), outcomes
    assert any(status == 200 for status, _ in outcomes.values())
