"""What a look at one recording tells: what is lost of it, and nothing about one that is whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.check_media import look
from tests.media_files import encoded, make, overwritten, tone, with_tag

FRONT = {"movflags": "faststart"}
WAV = {"codec": None, "sound_codec": "pcm_s16le", "container": "wav", "rate": 16_000}


def problems(path: Path) -> list[str]:
    facts = look(str(path))
    assert facts.error is None
    return [what for _, what in facts.problems]


def test_a_tag_that_is_not_utf8_is_no_fault(tmp_path: Path) -> None:
    wav = encoded(sounds=[tone(1, 16_000)], **WAV)
    (tmp_path / "tag.wav").write_bytes(with_tag(wav, "Müller".encode("latin-1")))
    assert problems(tmp_path / "tag.wav") == []


@pytest.mark.parametrize("noise", [False, True])
def test_a_recording_that_lost_its_middle(tmp_path: Path, noise: bool) -> None:
    make(tmp_path / "whole.mp4", seconds=8, sounds=[tone(8, 44_100)], container_options=FRONT)
    (tmp_path / "lost.mp4").write_bytes(overwritten((tmp_path / "whole.mp4").read_bytes(), noise))
    assert problems(tmp_path / "whole.mp4") == []
    found = problems(tmp_path / "lost.mp4")
    assert found
    assert all("packets of its" in what and "cannot be decoded: fetch it again" in what for what in found)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("video_videollama/examples/dog_barking.mp4", ["picture", "sound"]),
        ("video_scikit/bikes.mp4", ["picture"]),
    ],
)
def test_real_recordings_that_lost_their_middle(
    real_data: Path, tmp_path: Path, name: str, kinds: list[str]
) -> None:
    whole = (real_data / name).read_bytes()
    quarter = len(whole) // 4
    (tmp_path / "lost.mp4").write_bytes(whole[:quarter] + bytes(2 * quarter) + whole[3 * quarter :])
    assert problems(real_data / name) == []
    found = problems(tmp_path / "lost.mp4")
    assert len(found) == len(kinds)
    assert all(
        f"packets of its {kind} cannot be decoded" in what for kind, what in zip(kinds, found, strict=True)
    )


def test_real_recordings_that_are_whole_are_not_called_damaged(real_data: Path) -> None:
    names = [
        "odd_torchcodec/nasa_13013.mp4",
        "odd_torchcodec/av1_video.mkv",
        "video_mmaction2/tests/data/test.avi",
    ]
    for name in names:
        assert problems(real_data / name) == []


def test_a_length_that_ffmpeg_guesses_is_no_promise(tmp_path: Path) -> None:
    loud = np.random.default_rng(0).uniform(-0.3, 0.3, 44_100 * 10).astype(np.float32)
    sound = np.concatenate([np.zeros(44_100 * 30, np.float32), loud])  # the quiet beginning takes few bits
    make(tmp_path / "a.aac", codec=None, sounds=[sound], container="adts")
    assert problems(tmp_path / "a.aac") == []


def test_riff_files_that_were_cut_off(tmp_path: Path) -> None:
    wav = encoded(sounds=[tone(4, 16_000)], **WAV)
    (tmp_path / "cut.wav").write_bytes(wav[: len(wav) // 2])
    make(tmp_path / "whole.avi", seconds=8, codec="mpeg4", options={"g": "5"})
    avi = (tmp_path / "whole.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(avi[: len(avi) // 2])
    for name in ("cut.wav", "cut.avi"):
        (told,) = problems(tmp_path / name)
        assert told.startswith("cut off: ")
        assert told.endswith(" bytes that it announces are there: fetch it again")
    assert problems(tmp_path / "whole.avi") == []


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_that_was_streamed_announces_nothing(tmp_path: Path, size: int) -> None:
    wav = encoded(sounds=[tone(1, 16_000)], **WAV)
    (tmp_path / "streamed.wav").write_bytes(wav[:4] + size.to_bytes(4, "little") + wav[8:])
    assert problems(tmp_path / "streamed.wav") == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_sound_that_is_no_numbers(tmp_path: Path, value: float) -> None:
    samples = tone(1, 16_000)
    samples[100:200] = value
    soundfile.write(tmp_path / "odd.wav", samples, 16_000, subtype="FLOAT")
    assert problems(tmp_path / "odd.wav") == ["its sound holds values that are no numbers: encode it again"]


def test_the_ends_of_picture_and_sound_are_kept(tmp_path: Path) -> None:
    make(tmp_path / "short.mp4", seconds=6, sounds=[tone(2, 44_100)])
    info = look(str(tmp_path / "short.mp4")).info
    assert info["picture_ends"] == pytest.approx(6.0, abs=0.05)
    assert info["sound_ends"] == pytest.approx(2.0, abs=0.05)
