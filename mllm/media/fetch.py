"""Fetches URLs from untrusted clients without giving them access to the network or letting them block others.

    fetcher = Fetcher(FetchLimits())
    data = await fetcher.fetch("https://example.org/clip.mp4", max_bytes=200_000_000, client="203.0.113.7")

Every host, redirects included, is resolved once, its addresses are checked, and the connection goes to one of
these. One deadline covers everything: waiting, redirects and retries. Fetches run in an event loop of their
own, so neither a silent host nor a slow name server blocks anyone else's thread.

    MLLM_MEDIA_FETCH_SECONDS        deadline for one recording (s)
    MLLM_MEDIA_FETCHES              fetches at a time, over all
    MLLM_MEDIA_FETCHES_PER_CLIENT   … for one client
    MLLM_MEDIA_FETCHES_PER_HOST     … from one host
    MLLM_ALLOW_PRIVATE_MEDIA        1: also fetch from addresses inside the network
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import aiohttp
from yarl import URL

from mllm.media.addresses import (
    REFUSED,
    FetchError,
    Find,
    Resolver,
    addresses_of,
    client_key,
    is_public,
    pinned,
    plain_host,
    web_address,
)

_log = logging.getLogger(__name__)

REDIRECTS = {301, 302, 303, 307, 308}
MEGABYTE = 1_000_000
CHUNK = 1 << 16  # bytes

T = TypeVar("T")


class FetchBusy(FetchError):
    """Too much is being fetched at the moment: the same request may succeed later."""

    code, status = "busy", 429


@dataclass(frozen=True)
class FetchLimits:
    """Limits on fetching.

    Attributes:
        seconds: deadline for one recording, from the request to the last byte.
        connect_seconds: time to connect, TLS included.
        silent_seconds: longest wait for a byte from the host.
        patience: how long a fetch waits for its turn (s) before it is refused as busy.
        total, per_client, per_host: concurrent fetches.
        lookups, lookups_per_client: concurrent host name lookups; each takes a thread.
        buffered_bytes: memory of all unfinished fetches together.
        redirects: followed for one recording.
        allow_private: also fetch from addresses inside the network, and through the environment's proxy.
    """

    seconds: float = 30.0
    connect_seconds: float = 5.0
    silent_seconds: float = 10.0
    patience: float = 5.0
    total: int = 512
    per_client: int = 128
    per_host: int = 16
    lookups: int = 128
    lookups_per_client: int = 16
    buffered_bytes: int = 2_000_000_000
    redirects: int = 5
    allow_private: bool = False

    @classmethod
    def from_environment(cls) -> FetchLimits:
        """Raises ValueError if a variable has an invalid value."""
        private = os.environ.get("MLLM_ALLOW_PRIVATE_MEDIA", "").lower()
        if private not in ("", "0", "1", "false", "true"):
            raise ValueError(
                f"the environment variable MLLM_ALLOW_PRIVATE_MEDIA is {private!r}: set it to 1, or unset it"
            )
        return cls(
            seconds=positive_from_environment("MLLM_MEDIA_FETCH_SECONDS", cls.seconds, float),
            total=positive_from_environment("MLLM_MEDIA_FETCHES", cls.total, int),
            per_client=positive_from_environment("MLLM_MEDIA_FETCHES_PER_CLIENT", cls.per_client, int),
            per_host=positive_from_environment("MLLM_MEDIA_FETCHES_PER_HOST", cls.per_host, int),
            allow_private=private in ("1", "true"),
        )


def positive_from_environment(name: str, default: Any, kind: type) -> Any:
    """The number in an environment variable.

    Raises:
        ValueError: if it does not hold a positive number.
    """
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not value > 0:
        raise ValueError(
            f"the environment variable {name} is {text!r}: set it to a number above 0, or unset it"
        )
    return value


class Turns:
    """At most `limit` holders per key at a time; others queue."""

    def __init__(self, limit: int, patience: float, what: str):
        self.limit = limit
        self.patience = patience
        self.what = what
        # A queue lives as long as something waits in it.
        self._lines: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        """Raises FetchBusy if it takes longer than `patience`."""
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = asyncio.Semaphore(self.limit)
        try:
            async with asyncio.timeout(self.patience):
                await line.acquire()
        except TimeoutError:
            raise FetchBusy(f"this server is already fetching {self.limit} {self.what}: try later") from None
        try:
            yield
        finally:
            line.release()


class Fetcher:
    """Fetches URLs within limits; a process needs exactly one, since it counts the fetches in flight.

    Args:
        lookup: returns the addresses of a host; raises OSError if it has none.
    """

    def __init__(
        self, limits: FetchLimits | None = None, lookup: Callable[[str, int], list[str]] = addresses_of
    ):
        self.limits = limits = limits or FetchLimits()
        self.lookup = lookup
        patience = min(limits.patience, limits.seconds / 2)  # else waiting would look like a slow host
        self._all = Turns(limits.total, patience, "recordings")
        self._clients = Turns(limits.per_client, patience, "recordings for you")
        self._hosts = Turns(limits.per_host, patience, "recordings from that host")
        self._lookups = Turns(limits.lookups_per_client, patience, "recordings for you")
        self._buffered = 0  # bytes
        self._threads = ThreadPoolExecutor(limits.lookups, thread_name_prefix="mllm-lookup")
        self._started = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def fetch(self, url: str, **options: Any) -> bytes:
        """The bytes at `url`; cancelling it ends the connection. Options: see `fetch_blocking`."""
        return await asyncio.wrap_future(self._submit(self._fetch(url, **options)))

    def fetch_blocking(self, url: str, **options: Any) -> bytes:
        """The bytes at `url`.

        Args:
            max_bytes: largest size accepted, uncompressed; None for no limit.
            client: address of the client; "" if unknown.
            domains: the only hosts allowed, public or not; if empty, all public hosts are.
            follow: whether redirects are followed.
            attempts: how often to try in case of broken connections and statuses from 500 on.

        Raises:
            FetchBusy: if its turn does not come in time.
            FetchError: if it cannot be fetched, is too large, takes too long, or is not allowed.
        """
        return self._submit(self._fetch(url, **options)).result()

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        with self._started:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="mllm-fetch", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _fetch(
        self,
        url: str,
        max_bytes: int | None = None,
        client: str = "",
        domains: Collection[str] = (),
        follow: bool = True,
        attempts: int = 1,
    ) -> bytes:
        redirects = self.limits.redirects if follow else 0
        task = _Fetch(self, client_key(client), frozenset(map(plain_host, domains)), max_bytes, redirects)
        try:
            async with asyncio.timeout(self.limits.seconds):
                for attempt in range(attempts - 1):
                    try:
                        return await task.run(web_address(url))
                    except _Broken as error:
                        _log.info("attempt %d of %d: %s", attempt + 1, attempts, error)
                        await asyncio.sleep(0.5 * 2**attempt)
                return await task.run(web_address(url))
        except TimeoutError:
            raise FetchError(f"it took longer than {self.limits.seconds:g} s to fetch") from None

    async def _resolve(self, host: str, port: int, client: str) -> list[str]:
        """Addresses of a host. An abandoned lookup keeps its turn, since it still holds its thread."""
        work = asyncio.ensure_future(self._look_up(host, port, client))
        # An abandoned lookup's exception counts as retrieved, else asyncio would log it.
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await asyncio.shield(work)

    async def _look_up(self, host: str, port: int, client: str) -> list[str]:
        loop = asyncio.get_running_loop()
        if not client:
            return await loop.run_in_executor(self._threads, self.lookup, host, port)
        async with self._lookups.hold(client):
            return await loop.run_in_executor(self._threads, self.lookup, host, port)

    def _connector(self, find: Find) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(resolver=Resolver(find), use_dns_cache=False, force_close=True)


class _Broken(FetchError):
    """A failure that a retry may fix."""


@dataclass
class _Fetch:
    """The fetch of one recording: its limits, and the hops that lead to it."""

    fetcher: Fetcher
    client: str
    domains: frozenset[str]
    max_bytes: int | None
    redirects: int

    async def run(self, url: URL) -> bytes:
        fetcher = self.fetcher
        for _ in range(self.redirects + 1):
            # The host's turn comes first: waiting for a slow host must not use up the client's turns.
            async with fetcher._hosts.hold(f"{url.raw_host}:{url.port}"), self._turn():
                found = await self._hop(url)
            if isinstance(found, bytes):
                return found
            url = found
        raise FetchError(
            f"it is redirected more than {self.redirects} times"
            if self.redirects
            else "it is redirected, which this server does not follow: give the final address"
        )

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if not self.client:
            async with self.fetcher._all.hold(""):
                yield
            return
        async with self.fetcher._clients.hold(self.client), self.fetcher._all.hold(""):
            yield

    async def _hop(self, url: URL) -> bytes | URL:
        """The body, or the target of a redirect."""
        limits = self.fetcher.limits
        connector = self.fetcher._connector(await self._way_to(url))
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=limits.connect_seconds, sock_read=limits.silent_seconds
        )
        try:
            async with (
                aiohttp.ClientSession(
                    connector=connector,
                    timeout=timeout,
                    auto_decompress=False,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    # A proxy resolves the host itself, so it is used only if the address does not matter.
                    trust_env=limits.allow_private,
                    headers={"User-Agent": "mllm", "Accept-Encoding": "identity"},
                ) as session,
                session.get(url, allow_redirects=False) as response,
            ):
                if response.status in REDIRECTS and "Location" in response.headers:
                    return web_address(response.headers["Location"], url)
                if response.status >= 500:
                    raise _Broken(f"its host answered with status {response.status}")
                if not 200 <= response.status < 300:
                    raise FetchError(f"its host answered with status {response.status}")
                return await self._body(response)
        except aiohttp.ServerTimeoutError:
            raise FetchError("its host does not answer in time") from None
        except aiohttp.ClientConnectorDNSError:
            raise FetchError("its host is not known") from None
        except (aiohttp.ClientConnectorError, aiohttp.ClientSSLError) as error:
            raise _Broken(f"cannot connect to its host ({_cause(error)})") from None
        except aiohttp.ClientPayloadError:
            raise _Broken("the connection ended before the recording did") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, FetchError):
                raise
            raise _Broken(f"its host does not answer as a web server does ({type(error).__name__})") from None

    async def _way_to(self, url: URL) -> Find:
        """The lookup that the connection uses.

        Raises:
            FetchError: if fetching from this host is not allowed.
        """
        assert url.raw_host is not None
        assert url.port is not None
        named = plain_host(url.raw_host) in self.domains
        if self.domains and not named:
            raise FetchError("its host is none of those that this server fetches from")
        if named or self.fetcher.limits.allow_private:
            return partial(self.fetcher._resolve, client=self.client)
        try:
            addresses = await self.fetcher._resolve(url.raw_host, url.port, self.client)
        except (OSError, UnicodeError):
            raise FetchError(REFUSED) from None
        if not addresses or not all(map(is_public, addresses)):
            raise FetchError(REFUSED)
        return pinned(addresses)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        """The recording, decompressed if the host sends it compressed."""
        packing = response.headers.get("Content-Encoding", "identity").strip().lower()
        if packing not in ("identity", "", "gzip", "x-gzip", "deflate"):
            raise FetchError("its host sends it compressed: let it send the file as it is")
        unpack = None if packing in ("identity", "") else zlib.decompressobj(47)  # accepts zlib and gzip
        if unpack is None and response.content_length is not None:
            self._check(response.content_length)
        chunks: list[bytes] = []
        size = 0
        try:
            async for chunk in response.content.iter_chunked(CHUNK):
                # A bomb is decompressed in small pieces, and never beyond the limit.
                for piece in [chunk] if unpack is None else _unpacked(unpack, chunk):
                    size += len(piece)
                    self._check(size)
                    self.fetcher._buffered += len(piece)
                    chunks.append(piece)
                    if self.fetcher._buffered > max(self.fetcher.limits.buffered_bytes, self.max_bytes or 0):
                        raise FetchBusy("this server is already fetching as much as it can hold: try later")
        except zlib.error:
            raise FetchError("its host says that it is compressed, but it is not") from None
        finally:
            self.fetcher._buffered -= sum(map(len, chunks))
        if unpack is not None and not unpack.eof:
            raise _Broken("the connection ended before the recording did")
        return b"".join(chunks)

    def _check(self, size: int) -> None:
        if self.max_bytes is not None and size > self.max_bytes:
            raise FetchError(
                f"it is larger than {self.max_bytes / MEGABYTE:g} MB, the most that this server takes"
            )


def _unpacked(unpack: Any, chunk: bytes) -> Any:
    while chunk and not unpack.eof:
        yield unpack.decompress(chunk, CHUNK)
        chunk = unpack.unconsumed_tail


def _cause(error: aiohttp.ClientError) -> str:
    """Why the connection failed, without naming addresses."""
    inner = getattr(error, "os_error", None) or getattr(error, "certificate_error", None) or error
    if isinstance(inner, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, aiohttp.ClientSSLError):
        return "its certificate or its TLS does not hold"
    return str(getattr(inner, "strerror", None) or type(inner).__name__).lower()
