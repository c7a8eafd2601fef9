"""The same recording twice: copied, a little changed, cut on and off the grid of windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mllm.search.duplicates import duplicates
from mllm.search.index import Index
from mllm.search.items import Item
from tests.search.test_index import CountingEmbedder, recording, unit

DIM = 32


class WideEmbedder(CountingEmbedder):
    dim = DIM

    def embed_text(self, texts):
        return np.stack([unit(np.ones(DIM))] * len(texts))


@pytest.fixture
def library(tmp_path) -> Path:
    """A film whose windows wander; a noisy copy; a cut 6 s in; one 7 s in, half a window; another film."""
    rng = np.random.default_rng(0)
    film, other = (np.cumsum(rng.normal(size=(20, DIM)), 0) for _ in range(2))
    film /= np.linalg.norm(film, axis=1, keepdims=True)

    def write(name: str, vectors: np.ndarray) -> None:
        recording(tmp_path / f"clips/{name}.mp4", *[{"video": vector.tolist()} for vector in vectors])

    write("film", film)
    write("noisy", film + 0.005 * rng.normal(size=film.shape))
    write("cut", film[3:15])
    write("off", (film[3:14] + film[4:15]) / 2)
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
    assert found["film", "off"].offset == 7.0
    assert found["film", "off"].score == pytest.approx(1.0, abs=1e-5)
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
