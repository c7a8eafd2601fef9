"""The middleware in front of vLLM's API, a small application in vLLM's place (the real one: test_api.py)."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from mllm.vllm_api import ApiMiddleware, current


def request(application, method: str = "GET", path: str = "/health", **options) -> httpx.Response:
    """One request through the middleware, as a server would send it."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(ApiMiddleware(application), client=("192.0.2.7", 4321))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


async def answer(send, text: str) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": text.encode()})


def test_a_task_that_the_request_starts_knows_who_asked():
    async def application(scope, receive, send):
        async def work() -> str:
            return current.get().client

        await answer(send, await asyncio.create_task(work()))

    assert request(application).text == "192.0.2.7"
    assert current.get() is None


def test_every_vllm_server_gets_the_middleware_once():
    launcher = pytest.importorskip("vllm.entrypoints.launchers.app", reason="vLLM is not installed")
    import vllm.entrypoints.launchers.cli_args  # noqa: F401  what every server has read by then

    from mllm.vllm_plugin import register

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
