"""Backends: the same prompts to a checkpoint in this process and to a server, answers in their order."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eval.backends import OpenAIBackend
from mllm.errors import MllmError


class Server(BaseHTTPRequestHandler):
    """Answers with the last text it was sent, later questions sooner; "fail" gives a 400."""

    requests: list
    under_way = 0
    most = 0
    lock = threading.Lock()

    def do_GET(self):
        self._send(
            200,
            {"object": "list", "data": [{"id": "nano", "object": "model", "created": 0, "owned_by": "m"}]},
        )

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        cls = type(self)
        with cls.lock:
            cls.requests.append(body)
            cls.under_way += 1
            cls.most = max(cls.most, cls.under_way)
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        time.sleep(0.02 if text == "q0" else 0.005)
        with cls.lock:
            cls.under_way -= 1
        if text == "fail":
            self._send(400, {"error": {"message": "no such clip", "type": "BadRequestError", "code": 400}})
            return
        message = {"role": "assistant", "content": text.upper()}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self._send(
            200, {"id": "1", "object": "chat.completion", "created": 0, "model": "nano", "choices": [choice]}
        )

    def _send(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Server,), {"requests": [], "under_way": 0, "most": 0})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}", handler
    running.shutdown()
    running.server_close()


def question(text: str, media: str | None = None) -> list[dict]:
    parts = [{"type": "video", "video": media}] if media else []
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def test_answers_keep_their_order_and_requests_overlap(server):
    url, handler = server
    backend = OpenAIBackend(url, concurrent=4)
    told = []
    answers = backend.answer([question(f"q{i}") for i in range(20)], told.append)
    assert answers == [f"Q{i}" for i in range(20)]
    assert sum(told) == 20
    assert 1 < handler.most <= 4
    assert backend.name == f"nano at {url}/v1"
    for body in handler.requests:
        assert (body["temperature"], body["max_tokens"], body["model"]) == (0.0, 48, "nano")


def test_media_travel_as_data_or_as_paths(server, tmp_path):
    url, handler = server
    clip = tmp_path / "a ü.mp4"
    clip.write_bytes(b"not really a clip")
    OpenAIBackend(url).answer([question("q", str(clip))])
    OpenAIBackend(url, file_urls=True).answer([question("q", str(clip))])
    sent = [body["messages"][0]["content"][0] for body in handler.requests]
    assert sent[0]["type"] == "video_url"
    prefix, data = sent[0]["video_url"]["url"].split(",")
    assert prefix == "data:video/mp4;base64"
    assert base64.b64decode(data) == b"not really a clip"
    assert sent[1]["video_url"]["url"] == clip.as_uri()


def test_recordings_that_cannot_be_read_cost_their_own_answers(server, tmp_path):
    """Refused by the server, or not there to be sent; a question without one that is refused is our fault."""
    url, _ = server
    clip = tmp_path / "a.mp4"
    clip.write_bytes(b"not really a clip")
    asked = [question("q"), question("fail", str(clip)), question("r", str(tmp_path / "gone.mp4"))]
    first, refused, gone = OpenAIBackend(url).answer([*asked])
    assert first == "Q"
    assert "no such clip" in refused.cause
    assert "no such file" in gone.cause


def test_server_errors_are_one_line(server):
    url, _ = server
    with pytest.raises(MllmError, match="no such clip") as error:
        OpenAIBackend(url).answer([question("q"), question("fail"), question("q")])
    assert "\n" not in str(error.value)
    with pytest.raises(MllmError, match="mllm serve"):
        OpenAIBackend("http://127.0.0.1:9")
