"""An open recording: one scan, however many clips are read of it."""

from __future__ import annotations

import hashlib
import os
import signal
import time

import numpy as np
import pytest

from mllm.errors import MediaError
from mllm.media import decode, decode_pool, decode_process, tracks
from mllm.media.decode_pool import DecodePool, WorkerLost
from mllm.media.recording import load_clip, open_recording, probe
from mllm.media.sources import MediaLimits
from mllm.media.windows import WindowSpec, load_windows
from tests.media_files import at, make, tone, write_film

film = pytest.fixture(scope="session")(write_film)
CUTS = [
    {"size": 32, "end": 1.0},
    {"size": 32, "start": 1.0, "end": 2.0, "choose": at(0, 0.5)},
    {"size": 32, "start": 0.25, "choose": at(0.1, 0.9)},  # back again
    {"want_video": False, "start": 0.5},
    {},
]


@pytest.fixture
def scans(monkeypatch):
    """The recordings that this process scans, in order."""
    found: list[str] = []
    scan = tracks.scan

    def counted(source, *rest):
        found.append(source.name)
        return scan(source, *rest)

    monkeypatch.setattr(tracks, "scan", counted)
    return found


@pytest.fixture
def pool(monkeypatch):
    """A pool of this test's own, with one request at a time."""
    own = DecodePool(side_by_side=1)
    monkeypatch.setattr(decode_pool, "_pool", own)
    yield own
    own.close()


@pytest.fixture
def opened(monkeypatch):
    """The recordings that workers open, in order: each is scanned then, and only then."""
    found: list[str] = []
    ask = decode_process.Worker.ask

    def counted(self, request, *rest):
        found.extend(source["name"] for source in request.get("open", {}).get("sources", []))
        return ask(self, request, *rest)

    monkeypatch.setattr(decode_process.Worker, "ask", counted)
    return found


def test_it_is_scanned_once(film, scans):
    with open_recording(film) as recording:
        assert recording.info.duration == pytest.approx(probe(film).duration)
        clips = [recording.clip(**cut) for cut in CUTS]
        load_windows(recording, WindowSpec(0.5, 2, 8, 32))
        assert recording.digest
    assert scans == [str(film), str(film)]  # the other one is `probe`'s
    assert [clip.digest() for clip in clips] == [load_clip(film, **cut).digest() for cut in CUTS]


def test_a_worker_scans_it_once(film, pool, opened):
    with open_recording(film, isolated=True) as recording:
        assert recording.info == probe(film)
        clips = [recording.clip(**cut) for cut in CUTS]
        assert recording.digest == hashlib.sha256(film.read_bytes()).hexdigest()
    assert opened == [str(film)]
    assert [clip.digest() for clip in clips] == [load_clip(film, **cut).digest() for cut in CUTS]
    assert len(pool._idle) == 1, "the worker waits for the next recording"


def test_decord_begins_once_for_each_size(film, monkeypatch):
    decord = pytest.importorskip("decord")
    begun = []

    class Reader(decord.VideoReader):
        def __init__(self, *args, **options):
            begun.append(options.get("width"))
            super().__init__(*args, **options)

    monkeypatch.setattr(decode.decord, "VideoReader", Reader)
    with open_recording(film) as recording:
        for cut in CUTS:
            recording.clip(**cut)
    assert begun == [32, None]


def test_what_cannot_be_opened_is_said_at_once(tmp_path, pool):
    for isolated in (False, True):
        with (
            pytest.raises(MediaError, match="nowhere.mp4: no such file"),
            open_recording(tmp_path / "nowhere.mp4", isolated=isolated),
        ):
            pytest.fail("it is not there")


def test_an_error_in_one_piece_leaves_it_open(film, opened):
    with open_recording(film, isolated=True) as recording:
        with pytest.raises(MediaError, match="start 99 s lies behind its end"):
            recording.clip(99)
        assert len(recording.clip(size=16).frames)
    assert opened == [str(film)]


def test_a_lost_worker_costs_the_recording_that_it_had_open(film, pool):
    other = load_clip(film, size=16).digest()
    with open_recording(film, isolated=True) as recording:
        recording.clip(end=1.0, size=16)
        process = recording._worker.process

        def crash(duration):
            os.kill(process.pid, signal.SIGKILL)
            return np.zeros(1)

        with pytest.raises(WorkerLost, match="decoding it was killed"):
            recording.clip(size=16, choose=crash)
        assert load_clip(film, size=16, isolated=True).digest() == other
    assert pool._places._value == decode_pool.MOST_WORKERS


def test_recordings_that_stay_open_hold_up_nobody(film, pool):
    with open_recording(film, isolated=True), open_recording(film, isolated=True) as second:
        assert len(second.clip(size=16).frames)
        assert len(load_clip(film, size=16, isolated=True).frames)
    assert pool._places._value == decode_pool.MOST_WORKERS
    assert len(pool._idle) == 1


def test_a_worker_that_died_while_nobody_asked_is_not_handed_on(film, pool):
    with open_recording(film, isolated=True) as recording:
        recording._worker.process.kill()
        recording._worker.process.wait()
    assert load_clip(film, size=16, isolated=True)
    assert pool._places._value == decode_pool.MOST_WORKERS


@pytest.mark.parametrize("isolated", [False, True])
@pytest.mark.parametrize("how", ["written over", "replaced", "taken away"])
def test_a_file_that_changes_while_it_is_open_is_noticed(film, tmp_path, how, isolated):
    path = tmp_path / "film.mp4"
    path.write_bytes(film.read_bytes())
    with open_recording(path, isolated=isolated) as recording:
        assert len(recording.clip(size=16).frames)
        time.sleep(0.05)  # more than a tick of the file system's clock
        if how == "taken away":
            path.unlink()
        elif how == "replaced":
            make(tmp_path / "other.mp4", seconds=1).rename(path)
        else:
            path.write_bytes(film.read_bytes()[:-100])
        for read in (lambda: recording.clip(start=0.5, size=16), lambda: recording.digest):
            with pytest.raises(MediaError, match=r"film.mp4: it changed while it was read: read it again"):
                read()


def test_the_digest_is_of_what_is_read(film, tmp_path):
    from PIL import Image

    def digest(source, **options) -> str:
        with open_recording(source, **options) as recording:
            return recording.digest

    sound = make(tmp_path / "sound.wav", codec=None, sound_codec="pcm_s16le", sounds=[tone(1, 44_100)])
    assert digest(film) == digest(film.read_bytes()) == hashlib.sha256(film.read_bytes()).hexdigest()
    assert digest(film, audio=sound) != digest(film)
    clip = load_clip(film, size=16)
    assert digest(clip) == clip.digest()
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(2):
        Image.new("RGB", (16, 16), "red").save(frames / f"{number}.png")
    before = digest(frames)
    (frames / "fps.txt").write_text("5")
    faster = digest(frames)
    Image.new("RGB", (16, 16), "blue").save(frames / "1.png")
    assert len({before, faster, digest(frames)}) == 3


def test_a_separate_sound_belongs_to_it(film, tmp_path):
    sound = make(tmp_path / "sound.wav", codec=None, sound_codec="pcm_s16le", sounds=[tone(6, 44_100)])
    for isolated in (False, True):
        with open_recording(film, audio=sound, isolated=isolated) as recording:
            assert (recording.info.audio_codec, recording.info.duration) == ("pcm_s16le", 6.0)
            assert len(recording.clip(1.0, 6.0, want_video=False).waveform) == 80_000
            with pytest.raises(MediaError, match="it is open already: give `audio` where it is opened"):
                load_clip(recording, audio=sound)


def test_a_clip_is_a_recording_too(film):
    clip = load_clip(film, size=16)
    with open_recording(clip) as recording:
        assert recording.clip() is clip
        assert recording.clip(1.0).duration == pytest.approx(clip.duration - 1.0)
        assert recording.info.has_audio


def test_limits_hold_for_every_piece(film):
    with open_recording(film, MediaLimits(max_seconds=1.0)) as recording:
        assert recording.clip(0.5, 1.0, size=16).duration == 0.5
        with pytest.raises(MediaError, match="more than the limit of 1 s"):
            recording.clip(size=16)


def test_an_isolated_recording_that_is_closed_says_so(film, pool):
    with open_recording(film, isolated=True) as recording:
        pass
    with pytest.raises(MediaError, match="it is closed: read it inside"):
        recording.clip(size=16)
