"""The first question, asked by the launcher itself; a small program stands in vLLM's place."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mllm.media.recording import probe
from serve.warm_up import QUESTIONS, warm_up


@pytest.fixture
def asked() -> Iterator[tuple[int, list[Any], dict[str, int]]]:
    """(port, requests that came: headers and body, the status that is answered)."""
    came: list[Any] = []
    answer = {"status": 200}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.append((self.path, dict(self.headers), json.loads(body)))
            self.send_response(answer["status"])
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], came, answer
        server.shutdown()


def test_small_recordings_of_picture_and_sound_are_asked_about(asked):
    port, came, _ = asked
    warm_up(f"http://127.0.0.1:{port}/v1", "mine", ["--api-key=secret"])
    assert len(came) == QUESTIONS
    urls = set()
    for path, headers, body in came:
        assert path == "/v1/chat/completions"
        assert headers["Authorization"] == "Bearer secret"
        assert body["model"] == "mine"
        urls.add(body["messages"][0]["content"][0]["video_url"]["url"])
        info = probe(body["messages"][0]["content"][0]["video_url"]["url"])
        assert info.has_video
        assert info.has_audio
    assert len(urls) == QUESTIONS


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_server_that_takes_no_videos_is_ready_all_the_same(asked, status):
    port, came, answer = asked
    answer["status"] = status
    warm_up(f"http://127.0.0.1:{port}/v1", "model")
    assert len(came) == QUESTIONS


def test_a_server_that_is_gone_is_not_waited_for(asked):
    warm_up("http://127.0.0.1:1/v1", "model")
