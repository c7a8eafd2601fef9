"""The same recording twice: copied, a little changed, cut on and off the grid of windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mllm.media.recording import SAMPLE_RATE
from mllm.search.duplicates import duplicates, same_sounds
from mllm.search.index import Index
from mllm.search.items import Item
from tests.search.test_index import CountingEmbedder, WindowVector, recording, unit
from tests.sounding import bursts

DIM = 32


class WideEmbedder(CountingEmbedder):
    dim = DIM

    def embed_text(self, texts):
        return np.stack([unit(np.ones(DIM))] * len(texts))


@pytest.fixture
def library(tmp_path) -> Path:
    """A film whose windows wander; a noisy copy; a cut 6 s in; another film."""
    rng = np.random.default_rng(0)
    film, other = (np.cumsum(rng.normal(size=(20, DIM)), 0) for _ in range(2))
    film /= np.linalg.norm(film, axis=1, keepdims=True)

    def write(name: str, vectors: np.ndarray) -> None:
        recording(tmp_path / f"clips/{name}.mp4", *[{"video": vector.tolist()} for vector in vectors])

    write("film", film)
    write("noisy", film + 0.005 * rng.normal(size=film.shape))
    write("cut", film[3:15])
    write("other", other)
    recording(tmp_path / "clips/still.png", {"start": 0, "end": 0, "image": other[0].tolist()})
    index = Index.open(tmp_path / "index", WideEmbedder())
    index.add([tmp_path / "clips"])
    return tmp_path


def test_copies_and_cuts_are_found_with_their_place(library):
    found = {
        (Path(str(one.first.source)).stem, Path(str(one.second.source)).stem): one
        for one in duplicates(library / "index")
    }
    assert found["film", "noisy"].offset == 0
    assert found["film", "noisy"].share == 1.0
    assert found["film", "cut"].offset == 6.0
    assert not [pair for pair in found if "other" in pair or "still" in pair]


def test_a_stricter_cosine_leaves_out_what_was_encoded_anew(library):
    pairs = {Path(str(one.second.source)).stem for one in duplicates(library / "index", alike=0.99999)}
    assert "noisy" not in pairs
    assert "cut" in pairs


def test_copies_that_were_given_as_items(library):
    index = Index.open(library / "index", WideEmbedder())
    (library / "copy.mp4").write_bytes((library / "clips/other.mp4").read_bytes())
    index.add([Item(library / "copy.mp4", "a copy")])
    found = [one for one in duplicates(library / "index") if "a copy" in (one.first.shown, one.second.shown)]
    assert [(one.share, one.offset) for one in found] == [(1.0, 0.0)]


def test_an_index_of_nothing_has_no_duplicates(tmp_path):
    Index.open(tmp_path / "index", WideEmbedder())
    assert duplicates(tmp_path / "index") == []


class EarEmbedder(WideEmbedder):
    """A window of a sound file is its mean spectrum, in DIM bands."""

    def windows(self, path, isolated=False):
        self.read.append(Path(path).name)
        samples, _ = soundfile.read(path, dtype="float32")
        for first in range(0, len(samples), 2 * SAMPLE_RATE):
            bands = np.array_split(np.abs(np.fft.rfft(samples[first : first + 2 * SAMPLE_RATE])), DIM)
            vector = unit(np.log([band.mean() + 1e-6 for band in bands]))
            start = first / SAMPLE_RATE
            yield WindowVector(start, min(start + 2, len(samples) / SAMPLE_RATE), "audio", vector)


@pytest.fixture
def sounds(tmp_path) -> Path:
    """A concert; another; cuts of the first 5.3 s in, with noise, and of its jingle before something else."""
    concert, other = bursts(30), bursts(24, seed=1)
    noise = np.random.default_rng(2).normal(0, 0.005, 15 * SAMPLE_RATE)
    cut = concert[round(5.3 * SAMPLE_RATE) :][: len(noise)] + noise
    jingle = np.concatenate([concert[: 6 * SAMPLE_RATE], bursts(18, seed=3)])
    (tmp_path / "clips").mkdir()
    for name, samples in {"concert": concert, "cut": cut, "jingle": jingle, "other": other}.items():
        soundfile.write(tmp_path / f"clips/{name}.wav", samples, SAMPLE_RATE)
    Index.open(tmp_path / "index", EarEmbedder()).add([tmp_path / "clips"])
    return tmp_path


def test_a_cut_off_the_grid_of_windows_is_heard(sounds):
    assert duplicates(sounds / "index") == []
    (pair,) = same_sounds(sounds / "index")
    assert [Path(str(item.source)).stem for item in (pair.first, pair.second)] == ["concert", "cut"]
    assert (pair.by, pair.offset) == ("sound", pytest.approx(5.3, abs=0.02))
    assert pair.share > 0.9
    assert pair.score > 0.5


def test_what_only_looks_alike_is_not_heard(sounds):
    alike = duplicates(sounds / "index", alike=-1, share=0)
    assert len(alike) == 6  # every pair
    (pair,) = same_sounds(sounds / "index", alike)
    assert pair.by == "sound"
    for name in ("cut", "other", "jingle"):
        (sounds / f"clips/{name}.wav").unlink()
    assert len(same_sounds(sounds / "index", alike)) == 6  # that cannot be heard again


def test_a_recording_that_cannot_be_heard_is_named(sounds):
    (sounds / "clips/cut.wav").unlink()
    (sounds / "clips/other.wav").write_text("garbage")
    passed_over = {}
    assert same_sounds(sounds / "index", passed_over=passed_over.__setitem__) == []
    assert sorted(Path(name).stem for name in passed_over) == ["cut", "other"]
    assert all("\n" not in cause for cause in passed_over.values())
