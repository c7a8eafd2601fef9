"""Looking after an index: list, delete, renew with another model, compact."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm.errors import ConfigError
from mllm.search.expressions import parse_expression
from mllm.search.index import Index, describe
from mllm.search.items import Item
from mllm.search.upkeep import compact_index, delete, list_items, renew
from tests.search.test_index import CountingEmbedder, full, recording
from tests.search.test_items import former_index
from tests.search.test_texts import Listener, texts


@pytest.fixture
def clips(tmp_path) -> Path:
    recording(tmp_path / "clips/a.mp4", full([1, 0, 0, 0], [0, 1, 0, 0]), full([1, 0, 0, 0], [0, 1, 0, 1]))
    recording(tmp_path / "clips/deep/b.mp4", {"video": [0, 1, 0, 0]})
    recording(tmp_path / "clips/deep/c.png", {"start": 0, "end": 0, "image": [0, 1, 1, 0]})
    return tmp_path / "clips"


@pytest.fixture
def folder(tmp_path, clips) -> Path:
    index = Index.open(tmp_path / "index", CountingEmbedder())
    a = Item(clips / "a.mp4", "Ann's talk", {"year": 2020}, id="talk-1", description="About dogs")
    index.add([a, clips], transcriber=Listener())
    return tmp_path / "index"


def names(items) -> list[str]:
    return [Path(str(item.source)).name for item in items]


def test_items_are_listed_with_what_is_known_of_them(folder):
    a, b, c = list_items(folder)[::-1][::-1]
    found = {Path(str(one.item.source)).name: one for one in (a, b, c)}
    talk = found["a.mp4"]
    assert (talk.item.id, talk.item.description, talk.kind, talk.duration) == (
        "talk-1",
        "About dogs",
        "both",
        4.0,
    )
    assert (found["b.mp4"].kind, found["c.png"].kind, found["c.png"].duration) == ("video", "image", 0.0)
    assert talk.said_by == "transcript whisper-base"
    assert names(one.item for one in list_items(folder, parse_expression("duration > 3"))) == ["a.mp4"]


def test_items_are_deleted_by_name_folder_and_filter(folder, clips):
    with pytest.raises(ConfigError, match="no item 'd.mp4' in index .*: mllm index list shows what there is"):
        delete(folder, ["a.mp4", "d.mp4"])
    assert describe(folder).recordings == 3  # all or none
    assert names(delete(folder, ["b.mp4"])) == ["b.mp4"]
    assert names(delete(folder, [str(clips / "deep")], parse_expression("modality = image"))) == ["c.png"]
    assert delete(folder, [], parse_expression("year > 2020")) == []
    assert names(delete(folder, ["Ann's talk"])) == ["a.mp4"]
    assert describe(folder).recordings == 0
    assert describe(folder).texts == {"said": 0, "written": 0}


def test_an_index_is_renewed_for_another_model(folder):
    before = {one.item.id: one for one in list_items(folder)}
    said = texts(Index.open(folder, CountingEmbedder()))
    other = CountingEmbedder("model-b")
    report = renew(folder, other)
    assert (len(report.renewed), report.lost) == (3, [])
    assert {one.item.id: one for one in list_items(folder)} == before
    index = Index.open(folder, other, create=False)
    assert (describe(folder).model, texts(index)) == ("model-b", said)
    assert index.moments("hello", 1)[0].matches[0].words[0].end == 0.5
    assert not (folder / "renewed").exists()


def test_who_opened_an_index_before_it_was_renewed_adds_nothing_to_it(folder, clips):
    before = Index.open(folder, CountingEmbedder())
    renew(folder, CountingEmbedder("model-b"))
    recording(clips / "new.mp4", {"video": [1, 1, 0, 0]})
    with pytest.raises(ConfigError, match="was filled by model model-b"):
        before.add([clips])
    assert describe(folder).recordings == 3


def test_a_renewal_goes_on_where_it_stopped_and_until_then_nothing_changes(folder, clips):
    (clips / "deep/b.mp4").rename(clips / "lost.mp4")
    other = CountingEmbedder("model-b")
    with pytest.raises(
        ConfigError, match="1 of 3 recordings cannot be read again, so index .* stays as it is"
    ):
        renew(folder, other)
    assert len(Index.open(folder, CountingEmbedder(), create=False).search("1 0 0 0")) == 4
    (clips / "lost.mp4").rename(clips / "deep/b.mp4")
    other.read.clear()
    assert len(renew(folder, other).renewed) == 3
    assert other.read == ["b.mp4"]


def test_what_is_lost_can_be_left_out(folder, clips):
    (clips / "deep/b.mp4").unlink()
    seen = []
    report = renew(folder, CountingEmbedder(), leave_out=True, progress=lambda *told: seen.append(told))
    assert [Path(name).name for name, _ in report.lost] == ["b.mp4"]
    assert ("Ann's talk", "renewed") in seen
    assert describe(folder).recordings == 2


def test_a_file_that_has_changed_since_says_nothing_until_it_is_heard(folder, clips):
    recording(clips / "a.mp4", {"video": [0, 0, 0, 1]})
    renew(folder, CountingEmbedder("model-b"))
    (talk,) = (one for one in list_items(folder) if one.item.id == "talk-1")
    assert (talk.said_by, talk.kind, talk.item.description) == (None, "video", "About dogs")
    assert Index.open(folder, CountingEmbedder("model-b")).add([clips]).added == []


def test_compacting_brings_an_earlier_index_up_to_date(tmp_path, clips):
    former_index(tmp_path / "former", [clips])
    with pytest.raises(ConfigError, match="nor 'duration'"):
        list_items(tmp_path / "former", parse_expression("duration > 3"))
    before, after = compact_index(tmp_path / "former")
    assert min(before, after) > 0
    assert len(list_items(tmp_path / "former", parse_expression("duration > 3"))) == 1
    with pytest.raises(ConfigError, match="no index in"):
        compact_index(tmp_path / "none")
