"""Fetching for strangers: from real servers on this machine.

A made-up name server gives hosts their addresses. Where a test needs a host "on the internet", its public
address is checked as ever, and only the connection is led to this machine (`fetcher` below).
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import pytest
from aiohttp import web

from mllm.media.addresses import REFUSED, FetchError, Find, Resolver, client_key, is_public, pinned
from mllm.media.fetch import FetchBusy, Fetcher, FetchLimits

PUBLIC = "93.184.215.14"
HOSTS = {
    "clips.test": [PUBLIC],
    "other.test": ["2606:2800:21f:cb07::1"],
    "inside.test": ["10.0.0.8"],
    "half.test": [PUBLIC, "10.0.0.8"],
    "here.test": ["127.0.0.1"],
}
PATIENT = FetchLimits(
    seconds=30.0, connect_seconds=10.0, silent_seconds=10.0, patience=0.3
)  # of a busy machine, too
HASTY = FetchLimits(seconds=2.5, connect_seconds=1.0, silent_seconds=1.0, patience=0.3)
CONTENT = bytes(range(256)) * 1000
BOMB = gzip.compress(bytes(20_000_000))  # 20 kB


def look_up(host: str, port: int) -> list[str]:
    """Made-up hosts; what is an address already, in any spelling, the system reads."""
    if host in HOSTS:
        return HOSTS[host]
    if any(letter not in "0123456789abcdefx.:" for letter in host):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Site:
    """A web server with good and bad manners, by path."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []  # (Host header, path)
        self.open = 0
        self.runners: list[web.AppRunner] = []
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.port = asyncio.run_coroutine_threadsafe(self._start(), self.loop).result()

    async def _start(self, ssl_context: ssl.SSLContext | None = None) -> int:
        app = web.Application()
        app.router.add_get("/{kind}", self.answer)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        self.runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=ssl_context).start()
        return runner.addresses[0][1]

    async def stop(self) -> None:
        for runner in self.runners:
            await runner.cleanup()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((request.headers["Host"], request.path))
        kind = request.match_info["kind"]
        if kind == "to":
            raise web.HTTPFound(request.query["url"])
        if kind == "loop":
            raise web.HTTPFound("/loop")
        if kind.isdigit():
            return web.Response(status=int(kind))
        if kind == "flaky":
            status = 503 if [path for _, path in self.seen].count("/flaky") == 1 else 200
            return web.Response(status=status, body=CONTENT)
        if kind in ("silent", "drip"):
            self.open += 1
            try:
                await self.hold(request, drips=kind == "drip")
            finally:
                self.open -= 1
        if kind in ("gzip", "bomb", "garbled", "brotli", "deflate"):
            body = {
                "gzip": lambda: gzip.compress(CONTENT),
                "deflate": lambda: zlib.compress(CONTENT),
                "bomb": lambda: BOMB,
                "garbled": lambda: b"\x1f\x8b no",
                "brotli": lambda: b"?",
            }[kind]()
            packing = {"brotli": "br", "deflate": "deflate"}.get(kind, "gzip")
            return web.Response(body=body, headers={"Content-Encoding": packing})
        if kind == "endless":
            response = web.StreamResponse()
            await response.prepare(request)
            while True:
                await response.write(bytes(65536))
        if kind == "cut":
            response = web.StreamResponse(headers={"Content-Length": "1000"})
            await response.prepare(request)
            await response.write(b"half")
            request.transport.close()
            return response
        return web.Response(body=CONTENT)

    async def hold(self, request: web.Request, drips: bool) -> None:
        if not drips:
            await asyncio.sleep(3600)
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b".")
            await asyncio.sleep(0.05)


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    asyncio.run_coroutine_threadsafe(site.stop(), site.loop).result()
    site.loop.call_soon_threadsafe(site.loop.stop)


class AtHome(Fetcher):
    """Checks addresses as ever, then connects to this machine."""

    def _connector(self, find: Find) -> aiohttp.TCPConnector:
        return super()._connector(pinned(["127.0.0.1"]))


@pytest.fixture
def fetcher() -> Fetcher:
    return AtHome(PATIENT, look_up)


@pytest.fixture
def hasty() -> Fetcher:
    return AtHome(HASTY, look_up)


def why(fetcher: Fetcher, url: str, **options) -> str:
    with pytest.raises(FetchError) as caught:
        fetcher.fetch_blocking(url, **options)
    return str(caught.value)


# --- what is fetched ---


def test_fetches_with_and_without_an_event_loop(fetcher, site):
    url = f"http://clips.test:{site.port}/good"
    assert fetcher.fetch_blocking(url) == CONTENT
    assert asyncio.run(fetcher.fetch(url)) == CONTENT

    async def inside_of_a_loop() -> bytes:
        return fetcher.fetch_blocking(url)

    assert asyncio.run(inside_of_a_loop()) == CONTENT


def test_the_host_is_looked_up_once_and_its_name_is_sent(site):
    asked = []

    def once(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.8"]

    fetcher = Fetcher(FetchLimits(allow_private=True), once)
    assert fetcher.fetch_blocking(f"http://clips.test:{site.port}/good") == CONTENT
    assert asked == ["clips.test"]
    assert site.seen == [(f"clips.test:{site.port}", "/good")]


def test_redirects_are_followed_to_a_limit(fetcher, site):
    end = f"http://other.test:{site.port}/good"
    assert fetcher.fetch_blocking(f"http://clips.test:{site.port}/to?url={end}") == CONTENT
    assert fetcher.fetch_blocking(f"http://clips.test:{site.port}/to?url=/good") == CONTENT
    assert "does not follow" in why(fetcher, f"http://clips.test:{site.port}/to?url={end}", follow=False)
    site.seen.clear()
    assert "redirected more than 5 times" in why(fetcher, f"http://clips.test:{site.port}/loop")
    assert len(site.seen) == 6


def test_what_breaks_is_tried_again(fetcher, site):
    url = f"http://clips.test:{site.port}/flaky"
    assert "status 503" in why(fetcher, url)
    site.seen.clear()
    assert fetcher.fetch_blocking(url, attempts=2) == CONTENT


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("404", "its host answered with status 404"),
        ("500", "its host answered with status 500"),
        ("cut", "the connection ended before the recording did"),
        ("garbled", "says that it is compressed, but it is not"),
        ("brotli", "sends it compressed"),
        ("endless", "larger than 1 MB, the most that this server takes"),
        ("bomb", "larger than 1 MB, the most that this server takes"),
        ("to?url=file:///etc/passwd", "a redirect leads to what is no address on the web"),
        ("to?url=ftp://clips.test/x", "a redirect leads to what is no address on the web"),
    ],
)
def test_what_public_hosts_do_wrong_is_told(fetcher, site, path, says):
    assert says in why(fetcher, f"http://clips.test:{site.port}/{path}", max_bytes=1_000_000)


@pytest.mark.parametrize("path", ["gzip", "deflate"])
def test_what_is_sent_packed_is_unpacked(fetcher, site, path):
    url = f"http://clips.test:{site.port}/{path}"
    assert fetcher.fetch_blocking(url, max_bytes=len(CONTENT)) == CONTENT
    assert "larger than" in why(fetcher, url, max_bytes=len(CONTENT) - 1)


def test_what_is_no_web_address(fetcher):
    for url in ("ftp://clips.test/x", "http://", "http://clips.test:99999/x", "http://[::1/x", "\ud800", ""):
        assert "it is no address on the web" in why(fetcher, url)


# --- where nobody gets in ---

INSIDE = """
127.0.0.1 127.1 2130706433 0x7f000001 0x7f.1 0177.0.0.1 017700000001 0 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1
169.254.169.254 100.64.0.1 100.100.100.200 192.0.0.192 168.63.129.16 198.18.0.1 224.0.0.1 240.0.0.1
255.255.255.255 [::] [::1] [::127.0.0.1] [::ffff:127.0.0.1] [::ffff:10.0.0.8] [::ffff:7f00:1]
[64:ff9b::127.0.0.1] [64:ff9b::a00:8] [64:ff9b:1::a00:8] [2002:7f00:1::] [2002:a00:8::1] [2001:0:7f00:1::]
[fe80::1] [fc00::1] [fd00:ec2::254] [fec0::1] [ff02::1] [2001:db8::1] [3fff::1] [100::1]
inside.test half.test here.test unknown.test １２７.０.０.１ ①②⑦.⓪.⓪.① localhost.localdomain 127.0.0.1.
"""


@pytest.mark.parametrize("host", INSIDE.split())
def test_hosts_inside_the_network_are_refused_in_one_sentence(host, site):
    """With the real connector: what is refused is never connected to."""
    fetcher = Fetcher(PATIENT, look_up)
    for url in (f"http://{host}:{site.port}/good", f"http://{host}:1/closed", f"http://u:p@{host}/404"):
        assert why(fetcher, url) == REFUSED
    assert site.seen == []


def test_also_behind_a_redirect(fetcher, site):
    for target in ("127.0.0.1:1/closed", f"127.0.0.1:{site.port}/good", "inside.test/", "unknown.test/"):
        assert why(fetcher, f"http://clips.test:{site.port}/to?url=http://{target}") == REFUSED
    assert {path for _, path in site.seen} == {"/to"}


def test_public_addresses():
    public = f"{PUBLIC} 1.1.1.1 2606:2800:21f:cb07::1 64:ff9b::5db8:d70e ::ffff:1.1.1.1 2002:101:101::1"
    assert all(map(is_public, public.split()))
    assert not is_public("fe80::1%eth0")


def test_a_name_that_changes_its_address_gains_nothing(site):
    """DNS rebinding: public when it is checked, on this machine when it would be looked up again."""
    answers = iter([[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]])
    connected_to = []

    class Watched(AtHome):
        def _connector(self, find: Find) -> aiohttp.TCPConnector:
            connected_to.append(asyncio.run_coroutine_threadsafe(find("rebind.test", 80), site.loop).result())
            return super()._connector(find)

    fetcher = Watched(PATIENT, lambda host, port: next(answers))
    assert fetcher.fetch_blocking(f"http://rebind.test:{site.port}/good") == CONTENT
    assert connected_to == [[PUBLIC]]
    assert why(fetcher, f"http://rebind.test:{site.port}/good") == REFUSED


def test_the_operator_can_allow_them(site):
    url = f"http://here.test:{site.port}/good"
    assert Fetcher(FetchLimits(allow_private=True), look_up).fetch_blocking(url) == CONTENT
    fetcher = Fetcher(PATIENT, look_up)
    assert why(fetcher, url) == REFUSED
    # A host that the operator names is his to know, wherever it is; no other is fetched from then.
    assert fetcher.fetch_blocking(url, domains=["Here.test"]) == CONTENT
    assert "none of those" in why(fetcher, "http://clips.test/good", domains=["here.test"])
    leads_out = f"http://here.test:{site.port}/to?url=http://clips.test/good"
    assert "none of those" in why(fetcher, leads_out, domains=["here.test"])


def test_the_environments_proxy_is_used_only_where_addresses_do_not_matter(site, fetcher, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://here.test:{site.port}")
    assert "cannot connect" in why(fetcher, "http://clips.test:1/good")
    assert site.seen == []
    open_to_all = Fetcher(FetchLimits(allow_private=True), look_up)
    assert open_to_all.fetch_blocking("http://known.to.the.proxy/good") == CONTENT
    assert site.seen == [("known.to.the.proxy", "/good")]


def test_certificates_are_checked_against_the_name(fetcher, site, tmp_path):
    context = certificate(tmp_path, "clips.test")
    names = []
    context.sni_callback = lambda connection, name, _: names.append(name)
    port = asyncio.run_coroutine_threadsafe(site._start(context), site.loop).result()
    trusting = AtHome(PATIENT, look_up)
    trust = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
    here = Resolver(pinned(["127.0.0.1"]))
    trusting._connector = lambda find: aiohttp.TCPConnector(resolver=here, ssl=trust)
    assert trusting.fetch_blocking(f"https://clips.test:{port}/good") == CONTENT
    assert names == ["clips.test"]
    assert "certificate" in why(trusting, f"https://other.test:{port}/good")
    assert "certificate" in why(fetcher, f"https://clips.test:{port}/good")


def certificate(folder, host: str) -> ssl.SSLContext:
    import datetime

    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    day = datetime.timedelta(days=1)
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "certificate.pem").write_bytes(signed.public_bytes(pem))
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    return context


# --- nobody is held up ---


def test_a_silent_host_is_left_soon(hasty, site):
    began = time.monotonic()
    assert "does not answer in time" in why(hasty, f"http://clips.test:{site.port}/silent")
    assert time.monotonic() - began < 10


def test_a_dripping_host_is_left_at_the_deadline_retries_and_redirects_included(hasty, site):
    drip = f"http://clips.test:{site.port}/drip"
    for url in (drip, f"http://clips.test:{site.port}/to?url={drip}"):
        began = time.monotonic()
        assert why(hasty, url, attempts=5) == "it took longer than 2.5 s to fetch"
        assert time.monotonic() - began < 10


def test_a_port_that_takes_connections_and_never_speaks(hasty):
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(1)
        for scheme in ("http", "https"):
            began = time.monotonic()
            assert "in time" in why(hasty, f"{scheme}://clips.test:{mute.getsockname()[1]}/x")
            assert time.monotonic() - began < 10


def test_110_silent_hosts_hold_nobody_up(site):
    limits = FetchLimits(silent_seconds=3.0)
    fetcher = AtHome(limits, lambda host, port: [PUBLIC])
    with ThreadPoolExecutor(110) as pool:
        held = [
            pool.submit(why, fetcher, f"http://silent{number}.test:{site.port}/silent", client="1.1.1.1")
            for number in range(110)
        ]
        wait_until(lambda: site.open == 110)
        began = time.monotonic()
        assert fetcher.fetch_blocking(f"http://clips.test:{site.port}/good", client="2.2.2.2") == CONTENT
        assert time.monotonic() - began < 1.5
        assert {future.result() for future in held} == {"its host does not answer in time"}


def test_what_is_in_flight_for_a_client_from_a_host_and_over_all_is_limited(site):
    limits = FetchLimits(
        seconds=5.0, silent_seconds=2.0, patience=0.2, total=6, per_client=4, per_host=3, lookups_per_client=9
    )
    fetcher = AtHome(limits, lambda host, port: [PUBLIC])
    silent, good = f"test:{site.port}/silent", f"test:{site.port}/good"

    def busy(host: str, client: str) -> str:
        with pytest.raises(FetchBusy) as caught:
            fetcher.fetch_blocking(f"http://{host}.{good}", client=client)
        return str(caught.value)

    with ThreadPoolExecutor(16) as pool:

        def hold(host: str, client: str, count: int, then: int) -> None:
            for _ in range(count):
                pool.submit(why, fetcher, f"http://{host}.{silent}", client=client)
            wait_until(lambda: site.open == then)

        hold("a", "1.1.1.1", 9, then=3)  # six wait for the host, and none of them takes a client's turn
        already = "this server is already fetching"
        assert busy("a", "2.2.2.2") == f"{already} 3 recordings from that host: try later"
        assert fetcher.fetch_blocking(f"http://b.{good}", client="1.1.1.1") == CONTENT
        hold("b", "1.1.1.1", 1, then=4)
        assert busy("c", "1.1.1.1") == f"{already} 4 recordings for you: try later"
        hold("c", "2.2.2.2", 2, then=6)
        assert busy("d", "3.3.3.3") == f"{already} 6 recordings: try later"
        wait_until(lambda: site.open == 0)
    assert fetcher.fetch_blocking(f"http://a.{good}", client="1.1.1.1") == CONTENT


def test_a_slow_name_server_takes_turns_only_from_who_asks_it(site):
    woken = threading.Event()

    def slow(host: str, port: int) -> list[str]:
        if host == "slow.test":
            woken.wait(30)
        return [PUBLIC]

    limits = FetchLimits(seconds=0.5, patience=0.2, lookups_per_client=3)
    fetcher = AtHome(limits, slow)
    with ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(why, fetcher, "http://slow.test/x", client="1.1.1.1") for _ in range(10)]
        said = [future.result() for future in asked]
    assert said.count("it took longer than 0.5 s to fetch") == 3
    assert sum("try later" in text for text in said) == 7
    # Three threads still wait for that name server, and count.
    assert "try later" in why(fetcher, f"http://clips.test:{site.port}/good", client="1.1.1.1")
    assert fetcher.fetch_blocking(f"http://clips.test:{site.port}/good", client="2.2.2.2") == CONTENT
    woken.set()
    wait_until(lambda: not fetcher._lookups._lines["1.1.1.1"].locked())
    assert fetcher.fetch_blocking(f"http://clips.test:{site.port}/good", client="1.1.1.1") == CONTENT


def test_who_gives_up_frees_his_turn(fetcher, site):
    async def give_up() -> None:
        task = asyncio.ensure_future(fetcher.fetch(f"http://clips.test:{site.port}/drip"))
        while not site.open:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    wait_until(lambda: site.open == 0)
    assert fetcher._buffered == 0
    assert fetcher._all._lines.get("") is None or not fetcher._all._lines[""].locked()


def test_what_is_held_in_memory_is_limited(site):
    fetcher = AtHome(FetchLimits(seconds=5, buffered_bytes=3_000_000), look_up)
    with pytest.raises(FetchBusy, match="as much as it can hold"):
        fetcher.fetch_blocking(f"http://clips.test:{site.port}/endless")
    assert fetcher._buffered == 0


def test_one_ipv6_client_is_a_network():
    assert client_key("2001:db8:1:2::7") == client_key("2001:db8:1:2:f::1") != client_key("2001:db8:1:3::7")
    assert client_key("192.0.2.1") != client_key("192.0.2.2")
    assert client_key("unix:") == "unix:"


def test_limits_from_the_environment(monkeypatch):
    assert FetchLimits.from_environment() == FetchLimits()
    monkeypatch.setenv("MLLM_MEDIA_FETCH_SECONDS", "7.5")
    monkeypatch.setenv("MLLM_MEDIA_FETCHES_PER_CLIENT", "3")
    monkeypatch.setenv("MLLM_ALLOW_PRIVATE_MEDIA", "1")
    assert FetchLimits.from_environment() == FetchLimits(seconds=7.5, per_client=3, allow_private=True)
    for name, value in (("MLLM_MEDIA_FETCHES", "none"), ("MLLM_ALLOW_PRIVATE_MEDIA", "maybe")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(ValueError, match=f"{name} is '{value}'"):
                FetchLimits.from_environment()


def wait_until(holds, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)
