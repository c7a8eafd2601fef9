"""A server that many use at once, some of them badly: nobody else notices, and nothing is left behind."""

from __future__ import annotations

import base64
import contextlib
import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import psutil
import pytest

from tests.media_files import encoded

pytestmark = pytest.mark.slow

MEGABYTE = 1 << 20


def question(kind: str, url: str, text: str = "what do you see or hear?") -> list[dict[str, Any]]:
    parts = [{"type": kind, kind: {"url": url}}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def as_uri(data: bytes) -> str:
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode()


def never_seen(path: Path, number: int) -> bytes:
    """The same recording as other bytes, so that no cache knows it: an mp4 may end with a box of anything."""
    return path.read_bytes() + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big")


def ask(client, messages, **options) -> str:
    answer = client.chat.completions.create(
        model="nano", messages=messages, max_tokens=8, temperature=0, **options
    )
    return answer.choices[0].message.content


def processes(server) -> list[psutil.Process]:
    root = psutil.Process(server.process.pid)
    return [root, *root.children(recursive=True)]


def memory(server) -> float:
    """MB that all processes of the server hold alone or share evenly."""
    total = 0
    for process in processes(server):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / MEGABYTE


def decoders(server) -> list[psutil.Process]:
    found = []
    for process in processes(server):
        with contextlib.suppress(psutil.Error):
            if "mllm.media.decode_worker" in process.cmdline():
                found.append(process)
    return found


@pytest.fixture(scope="module")
def harmful(media) -> list[tuple[str, bytes]]:
    """(kind, data) of what is to be refused, or has ended servers."""
    film = (media / "red_low.mp4").read_bytes()
    beyond = bytearray(film)
    table = beyond.index(b"stco")
    beyond[table + 12] = 0x7F  # an offset far beyond the end
    rng = np.random.default_rng(0)
    return [
        ("video_url", b"no recording at all"),
        ("video_url", b"\0"),
        ("video_url", film[: len(film) // 3]),
        ("video_url", bytes(beyond)),
        ("audio_url", rng.bytes(5000)),
        ("image_url", film),
        ("audio_url", b"RIFF\xff\xff\xff\x7fWAVEfmt " + rng.bytes(400)),
    ]


def test_400_mixed_requests_leave_nothing_behind(server, client, media, harmful, capsys):
    wide = encoded(
        codec=None,
        container="wav",
        sound_codec="pcm_s16le",
        layout="7.1",
        rate=16_000,
        sounds=[np.sin(np.arange(16_000) / 5).astype(np.float32) / 2],
    )
    good = [
        ("video_url", "red_low.mp4"),
        ("video_url", "blue_silent.mp4"),
        ("audio_url", "low.wav"),
        ("image_url", "red.png"),
    ]
    counts = {"answered": 0, "refused": 0}
    lines: set[str] = set()
    lock = threading.Lock()

    def one(number: int) -> None:
        dice = random.Random(number)
        choice = dice.random()
        result = "answered"
        try:
            if choice < 0.25:
                ask(client, [{"role": "user", "content": f"say {number}"}])
            elif choice < 0.45:
                ask(client, question("video_url", as_uri(never_seen(media / "red_low.mp4", number))))
            elif choice < 0.7:
                kind, name = dice.choice(good)
                ask(client, question(kind, (media / name).as_uri()))
            elif choice < 0.8:
                ask(client, question("audio_url", as_uri(wide)))
            else:
                kind, data = dice.choice(harmful)
                ask(client, question(kind, as_uri(data)))
        except openai.BadRequestError as error:
            lines.add(error.body["message"])
            result = "refused"
        with lock:
            counts[result] += 1

    def run(numbers: range) -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(one, numbers))

    run(range(100))  # caches fill, decoders start
    before, files = memory(server), psutil.Process(server.process.pid).num_fds()
    run(range(100, 400))
    after = memory(server)
    with capsys.disabled():
        print(f"\n400 requests: {counts}; memory {before:.0f} MB after 100, {after:.0f} MB after 400")
    assert counts["answered"] + counts["refused"] == 400
    assert not [line for line in lines if "\n" in line or "Traceback" in line]
    assert counts["answered"] > 300
    assert counts["refused"] > 20
    assert after - before < 150
    assert psutil.Process(server.process.pid).num_fds() - files < 40


def test_a_decoder_that_is_lost_costs_nobody_else_an_answer(server, client, media):
    expected = ask(client, question("video_url", (media / "red_low.mp4").as_uri()))
    stop = threading.Event()

    def kill_decoders() -> None:
        while not stop.wait(0.05):
            for worker in decoders(server)[:1]:
                with contextlib.suppress(psutil.Error):
                    worker.send_signal(signal.SIGSEGV)

    killer = threading.Thread(target=kill_decoders)
    killer.start()
    outcomes, lines = [], []
    try:
        for number in range(20):
            try:
                url = as_uri(never_seen(media / "red_low.mp4", 10_000 + number))
                outcomes.append(ask(client, question("video_url", url)))
            except openai.BadRequestError as error:
                lines.append(error.body["message"])
    finally:
        stop.set()
        killer.join()
    assert set(outcomes) <= {expected}
    assert [line for line in lines if "crashed its decoder (signal 11, SIGSEGV)" not in line] == []
    assert ask(client, question("video_url", as_uri(never_seen(media / "red_low.mp4", 20_000)))) == expected


def test_50_streaming_clients_and_20_that_hang_up(server, client, media):
    messages = question("video_url", (media / "red_low.mp4").as_uri(), "tell me all of it")
    expected = ask(client, messages)

    def stream(cut: bool) -> str:
        pieces = []
        with client.chat.completions.create(
            model="nano", messages=messages, max_tokens=8, temperature=0, stream=True
        ) as events:
            for event in events:
                pieces.append(event.choices[0].delta.content or "" if event.choices else "")
                if cut:
                    break
        return "".join(pieces)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(stream, [False] * 50))
    assert answers == [expected] * 50
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(stream, [True] * 20))
    deadline = time.monotonic() + 20
    while _running(server) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert _running(server) == 0, "what nobody reads any more is no longer generated"
    assert ask(client, messages) == expected
    os.kill(server.process.pid, 0)


def _running(server) -> float:
    import urllib.request

    with urllib.request.urlopen(server.api.removesuffix("/v1") + "/metrics") as answer:
        lines = answer.read().decode().splitlines()
    wanted = [line for line in lines if line.startswith("vllm:num_requests_running")]
    return sum(float(line.split()[-1]) for line in wanted)
