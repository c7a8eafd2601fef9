"""Decoding in processes that may be lost: the same clips, and never more lost than the one request."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mllm import decode_pool
from mllm.decode_pool import DecodePool, shared_pool
from mllm.errors import MediaError
from mllm.media import load_clip, probe
from mllm.sources import MediaLimits
from tests.media_files import at, make, tone, write_film

film = pytest.fixture(scope="session")(write_film)


@pytest.fixture
def pool(monkeypatch):
    """A pool of this test's own, with one request at a time."""
    own = DecodePool(side_by_side=1)
    monkeypatch.setattr(decode_pool, "_pool", own)
    yield own
    own.close()


def worker_of(pool: DecodePool) -> int:
    """Process number of the worker that waits."""
    (worker,) = pool._idle
    return worker.process.pid


def equal(one, other) -> bool:
    return one.fingerprint() == other.fingerprint() and one.source == other.source


@pytest.mark.parametrize("way", ["path", "bytes", "data"])
def test_a_worker_gives_the_same_clip(film, way):
    import base64

    data = film.read_bytes()
    uri = "data:video/mp4;base64," + base64.b64encode(data).decode()
    source = {"path": film, "bytes": data, "data": uri}[way]
    options = {"size": 32, "choose": at(0.1, 0.4, 0.9), "start": 0.05}
    here, there = load_clip(source, **options), load_clip(source, **options, isolated=True)
    assert equal(here, there)
    there.frames[:] = 0  # ours to write, like any other
    assert probe(source) == probe(source, isolated=True)


def test_stills_folders_and_separate_sound_go_the_same_way(film, tmp_path):
    from PIL import Image

    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    sound = make(tmp_path / "sound.wav", codec=None, sound_codec="pcm_s16le", sounds=[tone(1, 44_100)])
    for source, options in [
        (tmp_path / "0.png", {}),
        (tmp_path, {}),
        (film, {"audio": sound}),
        (film, {"audio": sound.read_bytes(), "want_video": False}),
    ]:
        assert equal(load_clip(source, **options), load_clip(source, **options, isolated=True))


def test_what_is_wrong_with_a_file_is_said_in_the_same_words(film, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(film.read_bytes()[:500])
    for source, limits in [
        (broken, MediaLimits()),
        (tmp_path / "nowhere.mp4", MediaLimits()),
        (b"", MediaLimits()),
        (film, MediaLimits(max_seconds=0.1)),
        (film, MediaLimits(max_pixels=10)),
    ]:
        with pytest.raises(MediaError) as here:
            load_clip(source, limits=limits)
        with pytest.raises(MediaError) as there:
            load_clip(source, limits=limits, isolated=True)
        assert str(here.value) == str(there.value)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_costs_one_request(film, pool, number):
    load_clip(film, isolated=True)
    lost = worker_of(pool)

    def crash(duration):
        os.kill(lost, number)
        return np.zeros(1)

    with pytest.raises(MediaError, match="film.mp4: (it crashed its decoder|decoding it was killed)"):
        load_clip(film, choose=crash, isolated=True)
    assert worker_of(pool) != lost, "the next worker starts before the next request"
    assert equal(load_clip(film), load_clip(film, isolated=True))


def test_a_hang_costs_one_request_and_holds_up_no_other(film, pool, monkeypatch):
    monkeypatch.setattr(decode_pool, "SLOW", 0.2)
    load_clip(film, isolated=True)
    hangs = worker_of(pool)
    asked, said = threading.Event(), []

    def hang(duration):
        os.kill(hangs, signal.SIGSTOP)
        asked.set()
        return np.zeros(1)

    def ask():
        with pytest.raises(MediaError, match="decoding it takes longer than 4 s") as error:
            load_clip(film, choose=hang, isolated=True, limits=MediaLimits(max_decode_seconds=4))
        said.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert asked.wait(30)
    begin = time.monotonic()
    assert equal(load_clip(film), load_clip(film, isolated=True))
    assert time.monotonic() - begin < 3.5, "the other request did not wait for the one that hangs"
    thread.join(30)
    assert said
    with pytest.raises(ProcessLookupError):
        os.kill(hangs, 0)


def test_a_bomb_costs_one_request(tmp_path, pool):
    bomb = make(tmp_path / "bomb.mp4", seconds=4, fps=25, width=1280, height=720)
    limits = MediaLimits(max_decode_bytes=200_000_000)
    with pytest.raises(MediaError, match="bomb.mp4: .*memory"):
        load_clip(bomb, isolated=True, limits=limits)
    assert len(load_clip(bomb, size=16, isolated=True).frames) == 100


def test_no_more_wait_than_can_be_served_in_time(film, pool):
    load_clip(film, isolated=True)
    inside, done = threading.Event(), threading.Event()

    def wait(duration):
        inside.set()
        done.wait(30)
        return np.zeros(1)

    thread = threading.Thread(target=lambda: load_clip(film, choose=wait, isolated=True))
    thread.start()
    assert inside.wait(30)
    with pytest.raises(MediaError, match="too many recordings are being decoded: try again later"):
        load_clip(film, isolated=True, limits=replace(MediaLimits(), max_decode_seconds=0.2))
    done.set()
    thread.join(30)


def test_many_threads_share_the_workers(film):
    expected = load_clip(film, size=16).fingerprint()
    found: list[str] = []

    def ask():
        found.append(load_clip(film, size=16, isolated=True).fingerprint())

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [expected] * 24
    assert len(shared_pool()._idle) <= shared_pool().side_by_side


def test_a_worn_worker_is_replaced(film, pool, monkeypatch):
    monkeypatch.setattr(decode_pool, "REQUESTS", 2)
    load_clip(film, isolated=True)
    first = worker_of(pool)
    load_clip(film, isolated=True)
    assert worker_of(pool) != first


def test_a_fault_of_a_callers_own_stays_his(film, pool):
    with pytest.raises(ZeroDivisionError):
        load_clip(film, choose=lambda duration: 1 / 0, isolated=True)
    assert equal(load_clip(film), load_clip(film, isolated=True))


def test_workers_end_with_their_owner_and_import_nothing_of_the_users(film, tmp_path):
    """Also when the owner is killed, and from a folder whose files are called as our imports."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the folder of the user')")
    code = (
        "import sys; from mllm.media import load_clip; from mllm.decode_pool import shared_pool\n"
        f"clip = load_clip({str(film)!r}, isolated=True)\n"
        "print(shared_pool()._idle[0].process.pid, len(clip.frames), flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(decode_pool.__file__).parents[1])},
        text=True,
    )
    worker = int(owner.stdout.readline().split()[0])
    owner.kill()
    owner.communicate()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and Path(f"/proc/{worker}/stat").exists():
        if " Z " in Path(f"/proc/{worker}/stat").read_text():
            break  # ended; whoever adopts orphans has yet to take note
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{worker}").exists()
