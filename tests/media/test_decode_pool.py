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

from mllm.errors import ConfigError, MediaError
from mllm.media import decode_pool, decode_process
from mllm.media.decode_pool import DecodePool, shared_pool
from mllm.media.recording import load_clip, probe
from mllm.media.sources import MediaLimits
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


def gone(process: int) -> bool:
    """Whether it ends soon."""
    stat = Path(f"/proc/{process}/stat")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not stat.exists() or " Z " in stat.read_text():  # whoever adopts orphans has yet to take note
            return True
        time.sleep(0.05)
    return False


def equal(one, other) -> bool:
    return one.digest() == other.digest() and one.source == other.source


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
    monkeypatch.setattr(decode_process, "SLOW", 0.2)
    load_clip(film, isolated=True)
    hangs = worker_of(pool)
    asked, said = threading.Event(), []

    def hang(duration):
        os.kill(hangs, signal.SIGSTOP)
        asked.set()
        return np.zeros(1)

    def ask():
        with pytest.raises(MediaError, match="decoding it takes longer than 6 s") as error:
            load_clip(film, choose=hang, isolated=True, limits=MediaLimits(max_decode_seconds=6))
        said.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert asked.wait(30)
    assert equal(load_clip(film), load_clip(film, isolated=True))
    assert not said, "the other request did not wait for the one that hangs"
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
    expected = load_clip(film, size=16).digest()
    found: list[str] = []

    def ask():
        found.append(load_clip(film, size=16, isolated=True).digest())

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
        "import sys\n"
        "from mllm.media.recording import load_clip; from mllm.media.decode_pool import shared_pool\n"
        f"clip = load_clip({str(film)!r}, isolated=True)\n"
        "print(shared_pool()._idle[0].process.pid, len(clip.frames), flush=True); sys.stdin.read()"
    )
    owner = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(decode_pool.__file__).parents[2])},
        text=True,
    )
    worker = int(owner.stdout.readline().split()[0])
    owner.kill()
    owner.communicate()
    assert gone(worker)


def test_what_crosses_is_aligned(tmp_path):
    """One frame of 3 × 15 × 15 bytes ends at an odd place, where no float64 may begin."""
    from PIL import Image

    Image.new("RGB", (15, 15), "red").save(tmp_path / "a.png")
    clip = load_clip(tmp_path / "a.png", isolated=True)
    assert clip.frame_times.flags.aligned
    assert clip.frames.flags.aligned


def test_a_clips_separate_sound_is_isolated_too(film, tmp_path, pool):
    sound = make(tmp_path / "sound.wav", codec=None, sound_codec="pcm_s16le", sounds=[tone(1, 44_100)])
    clip = load_clip(film)
    together = load_clip(clip, audio=sound, isolated=True)
    assert worker_of(pool), "a worker has read it"
    assert equal(together, load_clip(clip, audio=sound))
    for silent in (make(tmp_path / "silent.mp4"), clip):
        with pytest.raises(MediaError, match="no sound in it|cannot be the sound"):
            load_clip(clip, audio=silent, isolated=True)


def test_a_worker_that_ended_while_it_waited_blames_no_recording(film, pool):
    load_clip(film, isolated=True)
    os.kill(worker_of(pool), signal.SIGKILL)
    pool._idle[0].process.wait()
    assert equal(load_clip(film), load_clip(film, isolated=True))


def test_a_worker_that_cannot_start_blames_no_recording(film, pool, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with pytest.raises(MediaError, match="^no process to decode recordings can be started"):
        load_clip(film, isolated=True)
    assert not pool._idle
    monkeypatch.setattr(sys, "executable", None)
    with pytest.raises(MediaError, match="set sys.executable"):
        load_clip(film, isolated=True)


def test_requests_that_are_lost_leave_no_more_workers_than_work_at_once(film, pool):
    load_clip(film, isolated=True)
    pool.replace()
    pool.replace()
    assert len(pool._idle) == 1


def test_waiting_that_is_interrupted_leaves_its_place(film, pool, monkeypatch):
    def interrupted(timeout=None):
        raise KeyboardInterrupt

    places = pool._places._value
    with monkeypatch.context() as patched:
        patched.setattr(pool._turns, "acquire", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_clip(film, isolated=True)
    assert pool._places._value == places
    assert equal(load_clip(film), load_clip(film, isolated=True))


def test_without_free_descriptors_it_is_said(film, pool):
    import resource

    data, (soft, hard) = film.read_bytes(), resource.getrlimit(resource.RLIMIT_NOFILE)
    said: set[bool] = set()
    lowest = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest)
    for spare in range(12):
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + spare, hard))
        try:
            load_clip(data, isolated=True)
            break
        except MediaError as error:
            said.add("Too many open files" in str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert said == {True}
    assert equal(load_clip(data), load_clip(data, isolated=True))


def test_a_worker_does_not_outlive_its_owner_whatever_it_decodes(film):
    """Its owner is killed while it waits for an answer, as in the middle of decoding, and without a limit."""
    code = (
        "import os, signal; from mllm.media.recording import load_clip\n"
        "from mllm.media.sources import MediaLimits; from mllm.media.decode_pool import shared_pool\n"
        f"film, none = {str(film)!r}, MediaLimits(max_decode_seconds=None)\n"
        "load_clip(film, isolated=True)\n"
        "worker = shared_pool()._idle[0].process.pid\n"
        "def choose(duration): print(worker, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
        "load_clip(film, isolated=True, limits=none, choose=choose)"
    )
    owner = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert gone(int(owner.stdout))


def test_a_forked_process_does_not_keep_its_parents_workers_alive(film, pool):
    load_clip(film, isolated=True)
    worker = pool._idle[0]
    child = os.fork()
    if not child:
        time.sleep(30)
        os._exit(0)
    begin = time.monotonic()
    worker.end()
    took = time.monotonic() - begin
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pool._idle.clear()
    assert took < 0.9


def test_names_of_any_bytes_stay_one_line(tmp_path):
    folder = tmp_path / os.fsdecode(b"a\xff\nb")
    folder.mkdir()
    (folder / os.fsdecode(b"0\xff\n.png")).write_bytes(b"no picture")
    for options in ({}, {"isolated": True}):
        with pytest.raises(MediaError, match=r"/a\?\?b/0\?\?\.png: not an image") as error:
            load_clip(folder, **options)
        assert str(error.value).isprintable()


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf"), 2**70])
def test_limits_are_numbers_above_0(limit):
    with pytest.raises(ConfigError, match="max_decode_bytes is .*: give a number above 0, or None"):
        MediaLimits(max_decode_bytes=limit)
