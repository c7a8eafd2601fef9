"""Items: what the index keeps of a recording, where it may come from, and its attributes."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import lancedb
import pyarrow as pa
import pytest

from mllm.errors import ConfigError
from mllm.search.index import Index, describe
from mllm.search.items import Item
from mllm.search.query import Query
from mllm.search.store import migrate
from tests.search.test_index import DIM, CountingEmbedder, full, recording
from tests.search.test_index_store import closed_folder, read_only_disk

ANN = {"speaker": "ann", "year": 2020, "public": True}


@pytest.fixture
def clips(tmp_path) -> Path:
    recording(tmp_path / "clips/a.mp4", full([1, 0, 0, 0], [0, 1, 0, 0]))
    recording(tmp_path / "clips/b.mp4", {"video": [0, 1, 0, 0]})
    return tmp_path / "clips"


@pytest.fixture
def index(tmp_path) -> Index:
    return Index.open(tmp_path / "index", CountingEmbedder())


def by_name(index: Index) -> dict[str, Item]:
    return {Path(item.shown).name: item for item in index.items()}


def test_a_hit_gives_the_item_back(index, clips):
    index.add([clips, Item(clips / "a.mp4", "Ann's talk", ANN, id="talk-1")])
    a, b = (index.search(query, 1)[0].item for query in ("1 1 0 0", "0 1 0 0"))
    assert a == Item(str(clips / "a.mp4"), "Ann's talk", ANN, "talk-1")
    assert b == Item(str(clips / "b.mp4"), None, {}, b.id)
    assert (a.shown, b.shown) == ("Ann's talk", str(clips / "b.mp4"))
    assert len(b.id) == 32
    assert describe(index.folder).attributes == {
        "public": ["boolean"],
        "speaker": ["string"],
        "year": ["number"],
    }


def test_a_relative_path_is_made_absolute(index, clips, monkeypatch):
    monkeypatch.chdir(clips)
    index.add([Item("a.mp4"), "b.mp4"])
    assert [item.source for item in index.items()] == [str(clips / "a.mp4"), str(clips / "b.mp4")]


def test_ids_are_those_of_the_source_and_stay(index, clips, tmp_path):
    index.add([clips])
    before = {name: item.id for name, item in by_name(index).items()}
    recording(clips / "a.mp4", {"video": [0, 0, 0, 1]})  # another content
    index.add([clips])
    assert {name: item.id for name, item in by_name(index).items()} == before
    rebuilt = Index.open(index.folder, index.embedder, rebuild=True)
    rebuilt.add([clips])
    assert {name: item.id for name, item in by_name(rebuilt).items()} == before


def test_items_with_an_id_of_their_own_keep_it_when_their_path_is_added(index, clips):
    index.add([Item(clips / "a.mp4", id="talk-1")])
    assert index.add([clips]).unchanged == [str(clips / "a.mp4")]
    assert by_name(index)["a.mp4"].id == "talk-1"


def test_a_file_that_has_moved_under_its_id_is_not_read_again(index, clips):
    index.add([clips])
    old = by_name(index)["a.mp4"]
    (clips / "a.mp4").rename(clips / "c.mp4")
    index.embedder.read.clear()
    assert index.add([Item(clips / "c.mp4", id=old.id)]).updated == [str(clips / "c.mp4")]
    assert index.embedder.read == []
    # What is put in its old place is another item.
    recording(clips / "a.mp4", {"video": [0, 0, 0, 1]})
    assert index.add([clips]).added == [str(clips / "a.mp4")]
    assert len({item.id for item in index.items()}) == len(index.items()) == 3


def test_a_file_that_was_moved_is_not_read_again(index, clips):
    index.add([Item(clips / "a.mp4", "Ann's talk", ANN)])
    id = index.items()[0].id
    (clips / "a.mp4").rename(clips / "ä 日本.mp4")
    index.embedder.read.clear()
    report = index.add([clips], prune=True)
    assert (report.updated, report.pruned) == (["Ann's talk"], [])
    assert index.embedder.read == ["b.mp4"]
    moved = by_name(index)["Ann's talk"]
    assert (moved.id, moved.source, moved.attributes) == (id, str(clips / "ä 日本.mp4"), ANN)
    assert len(index.add([clips]).unchanged) == 2


def test_files_with_the_same_content_are_one_item(index, clips):
    (clips / "copy.mp4").write_bytes((clips / "b.mp4").read_bytes())
    report = index.add([clips])
    same = [(str(clips / "copy.mp4"), f"the same content as {clips / 'b.mp4'}")]
    assert (report.passed_over, report.line()) == (
        same,
        "2 recordings added (4 rows), 0 unchanged, 1 passed over",
    )
    assert len(index.search("0 1 0 0")) == 2
    # If the first of them goes, or changes, the item lives on as the other.
    id = by_name(index)["b.mp4"].id
    recording(clips / "b.mp4", {"video": [0, 0, 0, 1]})
    index.embedder.read.clear()
    (clips / "a.mp4").unlink()
    report = index.add([clips / "copy.mp4"])
    assert (report.updated, by_name(index)["copy.mp4"].id) == ([str(clips / "copy.mp4")], id)
    assert index.embedder.read == []
    assert index.add([clips], prune=True).added == [str(clips / "b.mp4")]


def test_items_that_are_given_are_kept_apart(index, clips):
    (clips / "copy.mp4").write_bytes((clips / "b.mp4").read_bytes())
    index.add([Item(clips / "b.mp4"), Item(clips / "copy.mp4", "the same")])
    hits = index.search("0 1 0 0", 2)
    assert {Path(hit.item.source).name for hit in hits} == {"b.mp4", "copy.mp4"}
    index.remove([hits[0].item.id])
    assert len(index.items()) == 1


def test_content_without_a_file(index, clips):
    """A server has bytes; where they came from is kept if it is said, the bytes are not."""

    class BytesEmbedder(CountingEmbedder):
        def windows(self, media, isolated=False):
            if isinstance(media, bytes):
                (clips / "uploaded.mp4").write_bytes(media)
                media = clips / "uploaded.mp4"
            return super().windows(media)

    index.embedder = BytesEmbedder()
    content = (clips / "a.mp4").read_bytes()
    url = "https://example.com/talks/1?x=y"
    report = index.add([Item(url, content=content), Item(name="an upload", content=content)])
    assert report.added == [url, "an upload"]
    assert [(item.source, item.content) for item in index.items()] == [(None, None), (url, None)]
    assert index.add([Item(url), Item(url, content=content)]).unchanged == [url, url]
    assert len(index.add([Item(name="an upload", content=content)]).unchanged) == 1
    changed = recording(clips / "new.mp4", {"video": [0, 0, 0, 1]}).read_bytes()
    assert index.add([Item(url, content=changed)]).added == [url]
    assert index.search("0 0 0 1", 1)[0].item.source == url
    (failed,) = index.add([Item("https://example.com/2")]).failed
    assert failed[1].endswith("is not in the index and not fetched: give its bytes as content")
    assert index.add([clips], prune=True).pruned == []


def test_attributes_are_replaced_where_they_are_given_and_kept_elsewhere(index, clips):
    path = clips / "a.mp4"
    index.add([Item(path, "Ann's talk", ANN)])
    index.embedder.read.clear()
    assert index.add([clips]).unchanged == ["Ann's talk"]
    recording(path, {"video": [1, 0, 0, 1]})
    assert index.add([clips]).added == ["Ann's talk"]
    assert by_name(index)["Ann's talk"].attributes == ANN  # its content has changed, not what was said of it
    index.embedder.read.clear()
    assert index.add([Item(path, attributes={"year": 2021})]).updated == ["Ann's talk"]
    assert by_name(index)["Ann's talk"].attributes == {"year": 2021}
    assert index.add([Item(id=by_name(index)["Ann's talk"].id, attributes={})]).updated == ["Ann's talk"]
    assert by_name(index)["Ann's talk"].attributes == {}
    assert index.embedder.read == []
    assert index.info().rows == {"video": 2, "audio": 0, "both": 0, "image": 0}
    assert [hit.modality for hit in index.search("1 0 0 1", 1)] == ["video"]


def test_make_item_says_what_files_of_a_folder_are(index, clips):
    report = index.add([clips], make_item=lambda path: Item(path, path.stem.upper(), {"n": len(path.name)}))
    assert report.added == ["A", "B"]
    assert by_name(index)["A"].attributes == {"n": 5}


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Item(), "an item needs a source"),
        (lambda: Item("a.mp4", name=" "), "name is a string that is not empty"),
        (lambda: Item("a.mp4", id=""), "id is a string that is not empty"),
        (lambda: Item("data:video/mp4;base64,AAAA"), "give its bytes as content"),
        (lambda: Item("a.mp4", attributes=["x"]), "a.mp4: attributes are an object of names and values"),
        (
            lambda: Item("a.mp4", attributes={"": 1}),
            "a.mp4: '' is no name of an attribute: give it printable",
        ),
        (lambda: Item("a.mp4", attributes={"a\nb": 1}), r"a.mp4: 'a\\nb' is no name of an attribute"),
        (lambda: Item("a.mp4", attributes={"tags": ["x"]}), r"'tags' is \['x'\]: give a string, number"),
        (lambda: Item("a.mp4", attributes={"x": None}), "'x' is None: give a string, number or boolean"),
        (lambda: Item("a.mp4", attributes={"x": float("nan")}), "'x' is nan"),
        (lambda: Item("a.mp4", attributes={"x": 10**400}), "'x' is 1000"),
        (lambda: Item("a.mp4", attributes={"x": "\ud800"}), "'x' is "),
    ],
)
def test_items_that_are_none(make, error):
    with pytest.raises(ConfigError, match=error) as caught:
        make()
    assert "\n" not in str(caught.value)


# --- indexes of before there were items ---------------------------------------------------------------------


def former_index(folder: Path, paths: list[Path]) -> None:
    """An index as mllm made it before: rows named a path, and had a text that was always empty."""
    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("media_id", pa.string(), nullable=False),
            pa.field("path", pa.string()),
            pa.field("modality", pa.string()),
            pa.field("start", pa.float64()),
            pa.field("end", pa.float64()),
            pa.field("text", pa.string()),
            pa.field("fullest", pa.bool_()),
            pa.field("size", pa.int64()),
            pa.field("modified", pa.int64()),
            pa.field("digest", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), DIM)),
        ]
    )
    embedder = CountingEmbedder()
    stamp = {"model": embedder.name, "stamp": embedder.fingerprint(), "dim": DIM, "created": "2026-11-01"}
    made = Index.open(folder.with_name("made"), embedder)
    made.add(paths)
    rows = lancedb.connect(made.folder).open_table("windows").search().limit(1000).to_list()
    for row in rows:
        row |= {"media_id": row["item_id"], "path": row["source"], "text": ""}
    rows = [{name: row[name] for name in schema.names} for row in rows]
    schema = schema.with_metadata({"mllm": json.dumps(stamp)})
    lancedb.connect(folder).create_table("windows", pa.Table.from_pylist(rows, schema=schema))


@pytest.fixture
def former(tmp_path, clips) -> Path:
    former_index(tmp_path / "former", [clips])
    return tmp_path / "former"


def columns(folder: Path) -> set[str]:
    return set(lancedb.connect(folder).open_table("windows").schema.names)


def test_a_former_index_is_searched_without_being_written(former, clips):
    files = {path: path.stat().st_mtime_ns for path in former.rglob("*")}
    index = Index.open(former, CountingEmbedder(), create=False)
    assert [hit.item.source for hit in index.search("0 1 0 0", 1)] == [str(clips / "b.mp4")]
    seen = index.moments(Query("0 1 0 0", channels=("seen",)), 1)
    assert [moment.item.source for moment in seen] == [str(clips / "b.mp4")]
    assert {item.shown for item in index.items()} == {str(clips / "a.mp4"), str(clips / "b.mp4")}
    assert describe(former).recordings == 2
    with pytest.raises(
        ConfigError, match="no item has attributes, nor 'year': give them with mllm index add"
    ):
        index.search("1 0 0 0", filters={"type": "eq", "key": "year", "value": 1})
    assert {path: path.stat().st_mtime_ns for path in former.rglob("*")} == files


@pytest.mark.parametrize("closed", [read_only_disk, closed_folder])
def test_a_former_index_on_a_disk_that_cannot_be_written(former, closed):
    with closed(former) as place:
        index = Index.open(place, CountingEmbedder(), create=False)
        assert len(index.search("1 0 0 0")) == 2
        with pytest.raises(ConfigError, match="^cannot write index"):
            index.add([])


def test_adding_to_a_former_index_migrates_it_and_reads_nothing_again(former, clips, caplog):
    embedder = CountingEmbedder()
    index = Index.open(former, embedder)
    rows = index.info().rows
    with caplog.at_level(logging.INFO, "mllm"):
        assert len(index.add([clips]).unchanged) == 2
        assert index.add([Item(clips / "a.mp4", attributes=ANN)]).updated == [str(clips / "a.mp4")]
    assert caplog.messages == [f"index {former} was made by an earlier version: its table was migrated"]
    assert embedder.read == []
    assert columns(former) == columns(former.with_name("made"))
    assert (index.info().rows, index.info().model) == (rows, "model-a")
    recording(clips / "b.mp4", {"video": [0, 0, 0, 1]})
    index.add([clips])
    again = Index.open(former, embedder, create=False)
    assert again.search("0 0 0 1", 1)[0].item.source == str(clips / "b.mp4")
    assert again.search("1 1 0 0", 1)[0].item.attributes == ANN


def test_a_migration_that_was_killed_halfway_is_searched_and_finished(former, clips):
    def killed_after(step: str):
        class Table:
            def __getattr__(self, name):
                if name == step:
                    raise ConfigError(step)
                return getattr(table, name)

        table = lancedb.connect(former).open_table("windows")
        with pytest.raises(ConfigError, match=step):
            migrate(Table(), former)

    for step in ("alter_columns", "add_columns", "merge_insert", "create_index"):
        killed_after(step)
        index = Index.open(former, CountingEmbedder(), create=False)
        assert [hit.item.source for hit in index.search("0 1 0 0", 1)] == [str(clips / "b.mp4")]
    assert len(Index.open(former, CountingEmbedder()).add([clips]).unchanged) == 2
    assert columns(former) == columns(former.with_name("made"))
