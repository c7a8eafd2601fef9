"""The middleware in front of vLLM's API, a small application in vLLM's place (the real one: test_api.py)."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import torch

from mllm.media.fetch import FetchBusy
from mllm.media.windows import Seen, WindowLayout
from mllm.models.encoded import MediaFeatures
from mllm.vllm.api import ApiMiddleware, current, note, one_line

pytest.importorskip("vllm", reason="vLLM is not installed")


def request(application, method: str = "GET", path: str = "/health", **options) -> httpx.Response:
    """One request through the middleware, as a server would send it."""

    async def send() -> httpx.Response:
        wrapped = application if isinstance(application, ApiMiddleware) else ApiMiddleware(application)
        transport = httpx.ASGITransport(wrapped, client=("192.0.2.7", 4321))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


async def answer(send, *pieces: str, status: int = 200, kind: str = "application/json") -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len("".join(pieces).encode()))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for piece in pieces:
        await send({"type": "http.response.body", "body": piece.encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def test_a_task_that_the_request_starts_knows_who_asked():
    async def application(scope, receive, send):
        async def work() -> str:
            return current.get().client

        await answer(send, await asyncio.create_task(work()), kind="text/plain")

    assert request(application).text == "192.0.2.7"
    assert current.get() is None


def test_an_adapter_that_does_not_fit_the_model_is_not_loaded_at_run_time(checkpoint, adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    bad = Path(shutil.copytree(adapter, tmp_path / "bad"))
    weights = load_file(bad / "adapter_model.safetensors")
    renamed = {name.replace("model.language_model.", "model."): tensor for name, tensor in weights.items()}
    save_file(renamed, bad / "adapter_model.safetensors")

    async def loaded(scope, receive, send):
        await answer(send, "loaded", kind="text/plain")

    async def server(scope, receive, send):
        scope["app"] = SimpleNamespace(state=SimpleNamespace(args=SimpleNamespace(model=str(checkpoint))))
        await ApiMiddleware(loaded)(scope, receive, send)

    def load(folder: Path) -> httpx.Response:
        body = {"lora_name": "mine", "lora_path": str(folder)}
        return request(server, "POST", "/v1/load_lora_adapter", json=body)

    assert load(adapter).text == "loaded"
    refused = load(bad)
    assert refused.status_code == 400
    assert "fit no module of" in refused.json()["error"]["message"]
    save_file({}, bad / "adapter_model.safetensors")
    assert "it holds nothing that fits" in load(bad).json()["error"]["message"]


def test_every_vllm_server_gets_the_middleware_once():
    import vllm.entrypoints.launchers.cli_args  # noqa: F401  what every server has read by then
    from vllm.entrypoints.launchers import app as launcher

    from mllm.vllm.plugin import register

    register()
    register()
    added = []

    class Application:
        def add_middleware(self, kind, *_, **options):
            added.append(kind)

        def middleware(self, _):
            return added.append

    class Arguments:
        allowed_origins: list = []
        allowed_methods: list = []
        allowed_headers: list = []
        middleware: list = []
        allow_credentials = enable_request_id_headers = False
        api_key = ["secret"]

    launcher.init_entrypoints_middleware(Arguments(), Application(), ("generate",))
    names = [kind.__name__ for kind in added]
    assert names.count("ApiMiddleware") == 1
    assert names.index("ApiMiddleware") < names.index("AuthenticationMiddleware")  # added later: further out


# --- what is written into the usage ---------------------------------------------------------------

CHAT = "/v1/chat/completions"
VIDEO = {"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}}
PROCESSOR = SimpleNamespace(queries={"video": 8, "audio": 4})
CLIP = MediaFeatures(  # three windows, one of them without sound
    "video",
    None,
    None,
    torch.zeros(0),
    [WindowLayout(0.0, True, True), WindowLayout(2.0, True, True), WindowLayout(4.0, True, False)],
    Seen(3, 12, 5.5, 5.5, True, True),
)
USAGE = {"prompt_tokens": 50, "completion_tokens": 3, "total_tokens": 53}
FILLED = {
    "video_tokens": 24,
    "audio_tokens": 8,
    "image_tokens": 0,
    "transcript_tokens": 0,
    "frames": 12,
    "seconds": 5.5,
}


def ask(application, content, **options) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": content}], "model": "nano", **options}
    return request(application, "POST", CHAT, json=body)


def test_usage_says_what_was_seen():
    async def application(scope, receive, send):
        note("video", VIDEO["video_url"]["url"], CLIP, PROCESSOR)
        body = json.loads((await receive())["body"])
        assert body["messages"][0]["content"] == [VIDEO]
        details = {"cached_tokens": 32, "multimodal_tokens": {"video": 40}}
        await answer(send, json.dumps({"usage": USAGE | {"prompt_tokens_details": details}}))

    usage = ask(application, [VIDEO]).json()["usage"]
    sides = {"video": 24, "audio": 8}
    assert usage["prompt_tokens_details"] == {"cached_tokens": 32, "multimodal_tokens": sides} | FILLED


def test_usage_at_the_end_of_a_stream():
    events = [
        {"choices": [{"delta": {"content": 'the word "usage"'}}]},
        {"choices": [{"delta": {"content": "!"}}], "usage": USAGE},
        {"choices": [], "usage": USAGE | {"prompt_tokens_details": None}},
    ]
    text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"

    async def application(scope, receive, send):
        note("video", "", CLIP, PROCESSOR)
        # In pieces that have nothing to do with events.
        await answer(send, *[text[at : at + 7] for at in range(0, len(text), 7)], kind="text/event-stream")

    lines = ask(application, [VIDEO], stream=True).text.split("\n\n")
    assert lines[3:] == ["data: [DONE]", ""]
    seen = [json.loads(line.removeprefix("data: ")) for line in lines[:3]]
    assert seen[:2] == events[:2]
    assert seen[2]["usage"] == USAGE | {"prompt_tokens_details": FILLED}


def test_a_recording_named_by_uuid_again_is_counted_again():
    async def application(scope, receive, send):
        content = json.loads((await receive())["body"])["messages"][0]["content"]
        if content[0]["video_url"]:
            note("video", content[0]["video_url"]["url"], CLIP, PROCESSOR)
        await answer(send, json.dumps({"usage": USAGE}))

    for part in (VIDEO | {"uuid": "x"}, {"type": "video_url", "video_url": None, "uuid": "x"}):
        assert ask(application, [part]).json()["usage"]["prompt_tokens_details"] == FILLED


# --- errors ---------------------------------------------------------------------------------------


async def never(scope, receive, send):
    raise AssertionError("the request should have been refused")


def test_a_refusal_is_an_error_of_openais_form():
    requests = {
        "invalid_messages": ask(never, []),
        "invalid_request": ask(never, "hi", tools=[{"type": "file_search"}]),
    }
    for code, reply in requests.items():
        assert reply.status_code == 400
        error = reply.json()["error"]
        assert (error["code"], error["type"]) == (code, "BadRequestError")
        assert error["message"] in (
            "message 0 is empty: give it text or media",
            "this model calls no tools (tools[0] is of type 'file_search'): leave 'tools' out",
        )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{'no'}", "the request is no JSON: Expecting property name"),
        (b"", "the request is no JSON: Expecting value"),
        (b"\xff\xfe\xfd", "the request is no JSON: 'utf"),
        (b"[1]", "the request must be a JSON object, not list"),
        (b"[" * 100_000, "the request is nested too deeply"),
    ],
)
def test_what_is_no_json(content, says):
    reply = request(never, "POST", CHAT, content=content)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith(says)


def test_recordings_are_left_out_of_the_check_and_reach_vllm():
    """10 MB in base64 would take 30 ms to parse, twice."""
    video = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + "A" * 50_000}}
    sound = {"type": "input_audio", "input_audio": {"data": "A" * 50_000, "format": "wav"}}
    quoted = {"type": "text", "text": ";base64," + '"' * 50_000 + "\\"}
    body = {"messages": [{"role": "user", "content": [video, sound, quoted]}]}

    async def application(scope, receive, send):
        await answer(send, (await receive())["body"].decode(), kind="text/plain")

    for options in ({}, {"separators": (",", ":")}):
        text = json.dumps(body, **options)
        assert request(application, "POST", CHAT, content=text).text == text
        refused = request(never, "POST", CHAT, content=text[:-1] + ', "tools": [{"type": "mcp"}]}')
        assert "'mcp'" in refused.json()["error"]["message"]


def test_vllms_validation_errors_become_one_line():
    listed = (
        "2 validation errors:\n  {'type': 'x', 'loc': 'body.stop', 'msg': 'Input should be a list', 'i': 5}"
    )
    printed = "8 validation errors for Foo\n0.Bar.text\n  Field required [type=missing]\n    For further …"

    async def application(scope, receive, send):
        await answer(send, json.dumps({"error": {"message": listed}}), status=400)

    assert ask(application, "hi").json() == {"error": {"message": "stop: Input should be a list"}}
    assert one_line(printed) == "0.Bar.text: Field required"
    assert one_line("first\nsecond") == "first second"


def test_an_error_of_a_recording_keeps_its_code_behind_vllm():
    async def application(scope, receive, send):
        current.get().error = FetchBusy("this server is already fetching 16 recordings: try later")
        await answer(send, json.dumps({"error": {"message": "no", "code": 429}}), status=429)

    assert ask(application, "hi").json() == {"error": {"message": "no", "code": "busy"}}


def test_another_models_requests_pass_as_they_are():
    async def application(scope, receive, send):
        await answer(send, json.dumps({"usage": USAGE}))

    other = ApiMiddleware(application, is_ours=lambda: False)
    assert request(other, "POST", CHAT, json={"messages": []}).json() == {"usage": USAGE}
