"""What stands between a client and vLLM's API: one ASGI middleware, added to every server of our model.

It keeps, for as long as a request lasts, who asked and which recordings were read (`current`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass
class Exchange:
    """One request and what becomes of it.

    Attributes:
        client: address of who asks; "" if it is not known (a Unix socket).
    """

    client: str = ""


# The request that this task works for; None outside of a server (`LLM.generate`). Tasks that the request
# starts inherit it, threads do not.
current: ContextVar[Exchange | None] = ContextVar("current", default=None)


class ApiMiddleware:
    """Wraps vLLM's application, inside its authentication."""

    def __init__(self, app: Application):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        token = current.set(Exchange(client=(scope.get("client") or ("",))[0]))
        try:
            await self.app(scope, receive, send)
        finally:
            current.reset(token)


def attach() -> None:
    """Make vLLM's servers in this process wrap their application; safe to call again.

    vLLM asks plugins for no middleware, and `--middleware` would have to be typed with every `vllm serve`.
    Wrapped is the function that adds vLLM's own: ours comes inside of them, so that who has no key is turned
    away first.
    """
    from vllm.entrypoints.launchers import app as launcher

    add_vllms = launcher.init_entrypoints_middleware
    if getattr(add_vllms, "with_mllm", False):
        return

    def add_all(args: Any, app: Any, *more: Any) -> None:
        app.add_middleware(ApiMiddleware)
        add_vllms(args, app, *more)

    add_all.with_mllm = True  # type: ignore[attr-defined]
    launcher.init_entrypoints_middleware = add_all
