"""Our messages as any OpenAI-compatible server takes them."""

from __future__ import annotations

import pytest

from mllm.errors import ChatError, MediaError
from mllm.records.openai_parts import media_url, to_openai
from tests.tiny import clip


def test_to_openai_keeps_turns_and_order(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"a")
    (tmp_path / "b.png").write_bytes(b"b")
    messages = [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "audio", "audio": tmp_path / "a.wav"},
                {"type": "text", "text": "and"},
                {"type": "image", "image": str(tmp_path / "b.png")},
                {"type": "text", "text": "what?"},
            ],
        },
        {"role": "assistant", "content": "that."},
        {"role": "user", "content": "why?"},
    ]
    sent = to_openai(messages)
    assert [m["role"] for m in sent] == ["system", "user", "assistant", "user"]
    assert [part["type"] for part in sent[1]["content"]] == ["audio_url", "text", "image_url", "text"]
    assert sent[1]["content"][2]["image_url"]["url"] == "data:image/png;base64,Yg=="
    assert (sent[0]["content"], sent[3]["content"]) == ("be brief", "why?")


def test_what_cannot_go_over_http_is_refused():
    cut = [{"type": "video", "video": "a.mp4", "start": 1.0}, {"type": "text", "text": "q"}]
    with pytest.raises(ChatError, match="start"):
        to_openai([{"role": "user", "content": cut}])
    in_memory = [{"type": "video", "video": clip()}, {"type": "text", "text": "q"}]
    with pytest.raises(ChatError, match="write it to a file"):
        to_openai([{"role": "user", "content": in_memory}])
    with pytest.raises(MediaError, match="no such file: missing.wav"):
        to_openai([{"role": "user", "content": [{"type": "audio", "audio": "missing.wav"}]}])


def test_files_travel_as_data_or_by_name_and_urls_as_they_are(tmp_path):
    path = tmp_path / "ein Ton.wav"
    path.write_bytes(b"a")
    assert media_url(path, "audio").endswith(";base64,YQ==")
    assert media_url(path, "audio", file_urls=True) == path.as_uri()
    assert media_url(b"a", "video") == "data:video/*;base64,YQ=="
    assert media_url("https://example.org/a.mp4", "video") == "https://example.org/a.mp4"
    assert media_url(" DATA:video/mp4;base64,QUJD\n", "video") == "DATA:video/mp4;base64,QUJD"
