"""Asking an index: parts that are added and subtracted, channels, filters, pages, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mllm.errors import ConfigError, MllmError
from mllm.records.transcript import Segment, Transcript, Word
from mllm.search.expressions import parse_expression
from mllm.search.index import Index
from mllm.search.items import Item
from mllm.search.query import Query
from tests.search.test_index import CountingEmbedder, full, recording, unit

SAID = {
    "park.mp4": [("The dogs are barking.", 0.0, 2.0), ("Look at the river!", 4.0, 6.0)],
    "kitchen.mp4": [("My dog sleeps all day.", 2.0, 4.0)],
    "street.mp4": [("日本の犬が吠える", 0.0, 2.0)],
}


class Listener:
    name = "whisper-base"

    def transcribe(self, source, isolated=False, **span):
        segments = []
        for text, start, end in SAID.get(Path(source).name, ()):
            words = text.split()
            step = (end - start) / len(words)
            timed = [Word(start + i * step, start + (i + 1) * step, word) for i, word in enumerate(words)]
            segments.append(Segment(start, end, text, tuple(timed)))
        return Transcript("en", tuple(segments))


class Embedder(CountingEmbedder):
    """A file of examples holds four numbers."""

    def embed_clips(self, sources, modality="both"):
        return np.stack(
            [unit([float(word) for word in Path(source).read_text().split()]) for source in sources]
        )


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Index:
    """Pictures look along 1 0 0 0 (park) to 0 1 0 0 (street), sounds along 0 0 1 0 and 0 0 0 1."""
    folder = tmp_path_factory.mktemp("asked")
    clips = folder / "clips"
    recording(
        clips / "park.mp4", *[full([1, 0, 0, 0], [0, 0, 1, 0])] * 2, full([1, 0.5, 0, 0], [0, 0, 1, 0.2])
    )
    recording(clips / "kitchen.mp4", full([1, 1, 0, 0], [0, 0, 0, 1]), full([0, 1, 0, 0], [0, 0, 0.9, 1]))
    recording(clips / "street.mp4", {"video": [0, 1, 0, 0]})
    recording(clips / "still.png", {"start": 0, "end": 0, "image": [1, 0.1, 0, 0]})
    index = Index.open(folder / "index", Embedder())
    index.add(
        [
            Item(clips / "park.mp4", "A walk with dogs", {"year": 2020}),
            Item(clips / "street.mp4", description="Nobody says river"),
            clips,
        ],
        transcriber=Listener(),
    )
    return index


def found(index: Index, query: Query | str, k: int = 10, offset: int = 0) -> list[str]:
    return [
        f"{Path(str(moment.item.source)).stem} {moment.start:g}-{moment.end:g}"
        for moment in index.moments(query, k, offset)
    ]


def test_what_is_seen_and_heard_is_found_as_moments(index):
    assert found(index, Query("1 0 1 0", channels=("seen", "heard")))[0] == "park 0-6"
    assert found(index, Query("1 0 0 0", channels=("seen",)))[:2] == ["park 0-4", "still 0-0"]
    assert found(index, Query("0 0 0 1", channels=("heard",)))[0] == "kitchen 0-4"
    assert found(index, Query("0 1 0 0", modality="video"))[0] == "kitchen 2-4"


def test_what_is_said_is_found_by_its_words(index):
    query = Query("Where did the dog bark?", channels=("said",))
    park, kitchen = index.moments(query, 2)
    (match,) = park.matches  # once, though it was found by its words and by its vector
    assert (park.start, park.end, park.score, match.text) == (0.0, 2.0, None, "The dogs are barking.")
    assert [(word.text, word.start) for word in match.words] == [("dogs", 0.5), ("barking.", 1.5)]
    assert [word.text for word in kitchen.matches[0].words] == ["dog"]
    assert found(index, Query("犬", channels=("said",)))[0] == "street 0-2"
    # Words that nobody says still find what is nearest in meaning, as far as the model knows.
    assert len(found(index, Query("puppies", channels=("said",)))) == 4


def test_what_is_written_is_found_by_its_words(index):
    (match,) = index.moments(Query("walks", channels=("written",)), 1)[0].matches[:1]
    assert (match.modality, match.text, match.end) == ("written", "A walk with dogs", 6.0)
    assert found(index, Query("river", channels=("written",)))[0] == "street 0-2"


def test_all_channels_together(index):
    """A sentence and a title with the word go before windows that only look a little like it."""
    first, second = index.recordings("river", 2)
    assert {Path(str(moments[0].item.source)).stem for moments in (first, second)} == {"park", "street"}
    assert all({"said", "written"} & {match.modality for match in one[0].matches} for one in (first, second))
    matches = index.moments(Query("river", channels=("seen", "said")))[0].matches
    assert [(match.modality, match.text) for match in matches] == [
        ("said", "Look at the river!"),
        ("video", ""),
    ]


def test_channels_are_weighed_and_fused_by_ranks_if_asked(index):
    """Somebody says what a window only looks a little like."""
    query = Query("river", channels=("heard", "said"))
    assert index.moments(query, 1)[0].matches[0].modality == "said"
    heard = Query("river", channels=("heard", "said"), weights={"said": 0.01})
    assert index.moments(heard, 1)[0].matches[0].modality == "audio"
    assert all(
        match.modality == "audio"
        for moment in index.moments(Query("river", channels=("heard", "said"), weights={"said": 0}))
        for match in moment.matches
    )
    (first, *_) = index.moments(Query("river", fusion="ranks"), 1)
    assert 1 / 61 <= first.relevance <= 3 / 61


def test_examples_and_words_are_added(index, tmp_path):
    (tmp_path / "picture.png").write_text("1 0 0 0")
    (tmp_path / "sound.wav").write_text("0 0 0 1")
    picture, sound = tmp_path / "picture.png", tmp_path / "sound.wav"
    assert found(index, Query(image=picture))[:2] == ["park 0-4", "still 0-0"]
    assert found(index, Query(image=picture, audio=sound))[0] == "kitchen 0-4"
    assert found(index, Query(image=picture, audio=sound, weights={"audio": 0.1}))[0] == "park 0-4"
    vector = Query("0 0 1 0", image=picture, weights={"text": 2, "image": 1}).vector(index.embedder)
    np.testing.assert_allclose(vector, np.array([1, 0, 2, 0]) / 5**0.5, atol=1e-6)


def test_what_is_not_meant_is_subtracted(index):
    both = Query("1 1 0 0", channels=("seen",))
    assert found(index, both)[0] == "kitchen 0-2"
    without = Query("1 1 0 0", without=("1 0 0 0",), weights={"without": 1}, channels=("seen",))
    np.testing.assert_allclose(without.vector(index.embedder)[:2] * 1.0824, [-0.293 * 1.414, 1], atol=2e-3)
    assert "street" in found(index, without)[0] or "kitchen 2" in found(index, without)[0]
    said = Query("dog", without=("sleeping", "puppies"), channels=("said",))
    assert [line for line in found(index, said) if "kitchen" in line] == []
    with pytest.raises(ConfigError, match="cancel out: give other weights"):
        Query("1 0 0 0", without=("1 0 0 0",), weights={"without": 1}).vector(index.embedder)


def test_more_like_something_in_the_index(index):
    park = next(item for item in index.items() if item.shown == "A walk with dogs")
    more = Query(like=index.vector_of(str(park.id)), excluded=park.id)
    assert all("park" not in line for line in found(index, more))
    alike = index.vector_of(str(park.id), 5.0, 5.5)
    np.testing.assert_allclose(alike, unit(unit([1, 0.5, 1, 0.2])), atol=1e-6)
    with pytest.raises(ConfigError, match="nothing of item .* from 60 s on in index"):
        index.vector_of(str(park.id), 60.0)


def test_filters_thresholds_and_pages(index):
    assert found(index, Query("1 0 0 0", filters=parse_expression("year = 2020"))) == [
        "park 0-4",
        "park 4-6",
    ]
    assert found(index, Query("dog", channels=("said",), filters=parse_expression("start >= 2"))) == [
        "kitchen 2-4",
        "park 4-6",
    ]
    few = found(index, Query("1 0 0 0", threshold=0.9))
    assert few == ["park 0-4", "still 0-0"]
    every = found(index, "1 0 0 0", 100)
    assert [line for at in range(0, len(every), 2) for line in found(index, "1 0 0 0", 2, at)] == every
    assert found(index, "1 0 0 0", 10, 100) == []
    names = [Path(str(group[0].item.source)).stem for group in index.recordings("1 0 0 0", 2, 1)]
    assert (len(names), "park" in names) == (2, False)


def test_a_long_recording_hides_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr("mllm.search.index.CANDIDATES", 4)
    recording(tmp_path / "clips/long.mp4", *[{"video": [1, 0, 0, i / 1000]} for i in range(90)])
    recording(tmp_path / "clips/short.mp4", {"video": [0, 1, 0, 0]})
    index = Index.open(tmp_path / "index", Embedder())
    index.add([tmp_path / "clips"])
    groups = index.recordings("1 0 0 0", 2)
    assert [Path(str(group[0].item.source)).stem for group in groups] == ["long", "short"]


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda: Query(), "nothing to search for: say what is seen or heard"),
        (lambda: Query(" \n"), "nothing to search for"),
        (
            lambda: Query("a", channels=("smelt",)),
            "no channel 'smelt': choose from seen, heard, said, written",
        ),
        (lambda: Query("a", channels=()), "no channel is given: choose from seen, heard, said, written"),
        (lambda: Query("a", modality="smell"), "choose from video, audio, both, image"),
        (lambda: Query("a", modality="video", channels=("seen",)), "give it, or channels"),
        (lambda: Query(image="x.png", channels=("said",)), "found by words: give a text, or other channels"),
        (lambda: Query("a", weights={"smell": 1}), "no weight smell=1: give text, image, audio, video, like"),
        (lambda: Query("a", fusion="luck"), "no fusion 'luck': choose from evidence, ranks"),
        (lambda: Query("a", weights={"text": float("nan")}), "no weight text=nan"),
    ],
)
def test_queries_that_are_none(ask, error):
    with pytest.raises(MllmError, match=error) as caught:
        ask()
    assert "\n" not in str(caught.value)


def test_odd_queries_are_answered_or_refused_in_one_line(index):
    odd = [
        "'; DROP TABLE windows --",
        "🎬",
        "x" * 1_000_000,
        "a AND (",
        '"',
        "犬" * 5000,
        "\x00",
        "%",
        "NEAR/2",
    ]
    for text in odd:
        assert index.moments(text, 1)
    for vector in (np.full(4, np.nan), np.ones(3), np.array([np.inf, 0, 0, 0])):
        for ask in (index.search, index.moments):
            with pytest.raises(ConfigError, match="a query is a text, or 4 finite numbers"):
                ask(vector)
