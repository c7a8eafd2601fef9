"""A server as answerer: requests in OpenAI's form, answers in order, failures in one line."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mllm.answerer_remote import RemoteAnswerer
from mllm.errors import ChatError, MllmError
from mllm.records.answers import Generation


class Server(BaseHTTPRequestHandler):
    """Answers with the last text it was sent, later questions sooner; "fail" gives a 400."""

    requests: list
    ranks = True
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
        extra = {}
        if "prompt_logprobs" in body and self.ranks:
            # The prompt has 3 tokens; an option has one for each letter, an end marker and white space.
            letters = [(letter, -0.1 * (ord(letter) - ord("a"))) for letter in text]
            tokens = [("p", -9.0)] * 2 + [*letters, ("<|end|>", -1.0), ("\n", -5.0)]
            extra["prompt_logprobs"] = [None, *({"7": {"logprob": p, "decoded_token": t}} for t, p in tokens)]
        message = {"role": "assistant", "content": text.upper()}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
        head = {"id": "1", "object": "chat.completion", "created": 0, "model": "nano"}
        self._send(200, head | {"choices": [choice], "usage": usage} | extra)

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
    answerer = RemoteAnswerer(url, generation=Generation(max_tokens=48), concurrent=4)
    arrived = []
    answers = answerer.answer([question(f"q{i}") for i in range(20)], progress=arrived.append)
    assert answers == [f"Q{i}" for i in range(20)]
    assert sum(arrived) == 20
    assert 1 < handler.most <= 4
    assert answerer.name == f"nano at {url}/v1"
    for body in handler.requests:
        assert (body["temperature"], body["max_tokens"], body["model"]) == (0.0, 48, "nano")


def test_generation_settings_reach_the_server(server):
    url, handler = server
    drawn = Generation(max_tokens=5, min_tokens=2, temperature=0.7, top_p=0.9, seed=3)
    RemoteAnswerer(url).answer([question("q")], drawn)
    sent = {name: handler.requests[0][name] for name in ("max_tokens", "min_tokens", "top_p", "seed")}
    assert sent == {"max_tokens": 5, "min_tokens": 2, "top_p": 0.9, "seed": 3}


def test_options_are_ranked_by_the_log_likelihoods_of_prompts(server):
    url, handler = server
    ranking = RemoteAnswerer(url).rank(question("which?"), ["bb", "a"])
    assert ranking.log_likelihoods == pytest.approx((-1.2, -1.0))  # with the end marker, no white space
    assert ranking.best == "a"
    whole = next(body for body in handler.requests if len(body["messages"]) == 2)
    assert (whole["add_generation_prompt"], whole["prompt_logprobs"]) == (False, 0)


def test_a_server_without_log_likelihoods_cannot_rank(server):
    url, handler = server
    handler.ranks = False
    with pytest.raises(MllmError, match=r"cannot rank: .*as vLLM does"):
        RemoteAnswerer(url).rank(question("which?"), ["a", "b"])


def test_media_travel_as_data_or_as_paths(server, tmp_path):
    url, handler = server
    clip = tmp_path / "a ü.mp4"
    clip.write_bytes(b"not really a clip")
    RemoteAnswerer(url).answer([question("q", str(clip))])
    RemoteAnswerer(url, file_urls=True).answer([question("q", str(clip))])
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
    first, refused, gone = RemoteAnswerer(url).answer([*asked])
    assert first == "Q"
    assert "no such clip" in refused.cause
    assert "no such file" in gone.cause


def test_server_errors_are_one_line(server):
    url, _ = server
    with pytest.raises(MllmError, match="no such clip") as error:
        RemoteAnswerer(url).answer([question("q"), question("fail"), question("q")])
    assert "\n" not in str(error.value)
    with pytest.raises(MllmError, match=r"no OpenAI-compatible server at http://127.0.0.1:9/v1 .*mllm serve"):
        RemoteAnswerer("http://127.0.0.1:9")


def test_malformed_conversations_and_options_are_refused_before_anything_is_sent(server):
    url, handler = server
    with pytest.raises(ChatError, match="must be a list"):
        RemoteAnswerer(url).answer([[]])
    with pytest.raises(ChatError, match="'a' occurs twice"):
        RemoteAnswerer(url).rank(question("which?"), ["a", "a"])
    assert handler.requests == []


@pytest.mark.parametrize(
    ("reply", "calls"),
    [
        (b"<html>a proxy's page</html>", ("answer", "rank")),
        (b'{"choices": [', ("answer", "rank")),
        (b"[1, 2]", ("answer", "rank")),
        (b'{"choices": []}', ("answer",)),
        (b'{"choices": null}', ("answer",)),
        (b'{"choices": [{"index": 0}]}', ("answer",)),
        (b'{"choices": [{"message": {"content": [3]}}]}', ("answer",)),
        (b'{"usage": {"prompt_tokens": 1}, "prompt_logprobs": [null, null]}', ("rank",)),
        (b'{"usage": {"prompt_tokens": 1}, "prompt_logprobs": [null, {"1": {"logprob": "x"}}]}', ("rank",)),
        (b"data: [3]\n\n", ("stream",)),
        (b'data: {"choi\n\n', ("stream",)),
        (b"", ("stream",)),
    ],
)
def test_a_reply_in_another_form_is_one_line(server, monkeypatch, reply, calls):
    url, handler = server
    answerer = RemoteAnswerer(url)

    def do_post(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/html" if reply.startswith(b"<") else "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    monkeypatch.setattr(handler, "do_POST", do_post)
    messages = [{"role": "user", "content": "q"}]
    asked = {
        "answer": lambda: answerer.answer([messages]),
        "rank": lambda: answerer.rank(messages, ["a", "b"]),
        "stream": lambda: list(answerer.stream(messages)),
    }
    for call in calls:
        with pytest.raises(MllmError, match="form of OpenAI's API") as failure:
            asked[call]()
        assert "\n" not in str(failure.value)
