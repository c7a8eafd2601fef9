"""An index that is damaged, closed or on a read-only disk: one line that names it and what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lancedb
import pyarrow as pa
import pytest

from mllm.errors import ConfigError
from mllm.search.index import Index, describe, exists
from mllm.search.store import sample_rows
from tests.search.test_index import CountingEmbedder, full, recording

NOBODY = 65534


@pytest.fixture
def library(tmp_path) -> Path:
    for number in range(3):
        recording(tmp_path / f"library/{number}.mp4", full([1, 0, 0, number], [0, 1, 0, 0]))
    return tmp_path / "library"


@pytest.fixture
def folder(tmp_path, library) -> Path:
    Index.open(tmp_path / "index", CountingEmbedder()).add([library])
    return tmp_path / "index"


def for_each(pattern: str, change: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        files = sorted((folder / "windows.lance").glob(pattern))
        assert files
        for file in files:
            change(file)

    return damage


def newest(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Versions are numbered backwards."""
    return lambda folder: change(min((folder / "windows.lance/_versions").glob("*.manifest")))


def empty(file: Path) -> None:
    file.write_bytes(b"")


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def noise(file: Path) -> None:
    file.write_bytes(b"\7" * file.stat().st_size)


def no_table(folder: Path) -> None:
    shutil.rmtree(folder / "windows.lance")
    (folder / "windows.lance").mkdir()


def a_file(folder: Path) -> None:
    shutil.rmtree(folder / "windows.lance")
    (folder / "windows.lance").write_text("")


def a_link_to_nothing(folder: Path) -> None:
    shutil.rmtree(folder / "windows.lance")
    (folder / "windows.lance").symlink_to("gone")


def another_stamp(stamp: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        schema = lancedb.connect(folder).open_table("windows").schema.with_metadata({"mllm": stamp})
        lancedb.connect(folder).create_table("windows", schema=schema, mode="overwrite")

    return damage


DAMAGE = {
    "newest manifest empty": newest(empty),
    "newest manifest cut": newest(half),
    "newest manifest noise": newest(noise),
    "manifests empty": for_each("_versions/*.manifest", empty),
    "manifests gone": for_each("_versions/*", Path.unlink),
    "data empty": for_each("data/*", empty),
    "data cut": for_each("data/*", half),
    "data noise": for_each("data/*", noise),
    "data gone": for_each("data/*", Path.unlink),
    "no table": no_table,
    "a file for a table": a_file,
    "a link to nothing": a_link_to_nothing,
    "stamp no JSON": another_stamp(b"{"),
    "stamp of something else": another_stamp(b'["model"]'),
    "no stamp": another_stamp(b""),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_line_and_a_rebuild_recovers(folder, library, kind):
    DAMAGE[kind](folder)
    assert exists(folder)
    for ask in (
        lambda: describe(folder).recordings,
        lambda: Index.open(folder, CountingEmbedder(), create=False).search("1 0 0 0"),
        lambda: Index.open(folder, CountingEmbedder()).add([library]),
    ):
        with pytest.raises(ConfigError) as caught:
            ask()
        line = str(caught.value)
        assert line.startswith(f"index {folder} cannot be read (")
        assert line.endswith(f"fill it again with mllm index add DIR --index {folder} --rebuild")
        assert len(line) < 300 + 2 * len(str(folder))
        assert not any(word in line for word in ("\n", ".rs:", "cargo", "lance error"))
    index = Index.open(folder, CountingEmbedder(), rebuild=True)
    assert len(index.add([library]).added) == 3
    assert (describe(folder).recordings, len(index.search("1 0 0 0"))) == (3, 3)


def test_old_damage_is_no_matter(folder, library):
    """Versions before the newest, and what only helps to find that one."""
    newest_first = sorted((folder / "windows.lance/_versions").glob("*.manifest"))
    for manifest in newest_first[1:]:
        empty(manifest)
    for_each("_versions/*.json", noise)(folder)
    assert describe(folder).recordings == 3
    assert len(Index.open(folder, CountingEmbedder()).add([library]).unchanged) == 3


def test_rebuild_takes_no_other_table_away(tmp_path):
    """Somebody's own LanceDB: an index of ours is known by its columns, should its stamp be lost."""
    lancedb.connect(tmp_path).create_table("windows", pa.table({"a": [1]}))
    with pytest.raises(ConfigError, match="not made by mllm"):
        Index.open(tmp_path, CountingEmbedder(), rebuild=True)
    assert lancedb.connect(tmp_path).open_table("windows").count_rows() == 1


def test_a_panic_inside_the_store_is_one_line_too(folder, monkeypatch):
    index = Index.open(folder, CountingEmbedder())
    monkeypatch.setattr(index, "table", None)
    with pytest.raises(ConfigError, match="cannot be read .*--rebuild"):
        index.search("1 0 0 0")


@contextmanager
def read_only_disk(source: Path) -> Iterator[Path]:
    place = Path(tempfile.mkdtemp())
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=False).returncode:
        place.rmdir()
        pytest.skip("nothing can be mounted here")
    try:
        shutil.copytree(source, place / "index")
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        yield place / "index"
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


@contextmanager
def closed_folder(source: Path) -> Iterator[Path]:
    """For whom modes mean something: root is somebody else in here."""
    place = Path(tempfile.mkdtemp())
    shutil.copytree(source, place / "index")
    place.chmod(0o755)
    for path in (place / "index").rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (place / "index").chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield place / "index"
    finally:
        if root:
            os.setresuid(0, 0, 0)
        for path in (place, *place.rglob("*")):
            path.chmod(0o755)
        shutil.rmtree(place)


@pytest.mark.parametrize("closed", [read_only_disk, closed_folder])
def test_an_index_that_cannot_be_written_is_searched_and_says_so(folder, closed):
    why = {read_only_disk: "Read-only file system", closed_folder: "Permission denied"}[closed]
    library = Path(tempfile.mkdtemp())
    library.chmod(0o755)
    new = recording(library / "new.mp4", {"video": [1, 0, 0, 0]})
    with closed(folder) as place:
        assert describe(place).recordings == 3
        embedder = CountingEmbedder()
        index = Index.open(place, embedder, create=False)
        assert len(index.search("1 0 0 0")) == 3
        line = f"cannot write index {place}: {why}: change its mode or owner, or name another with --index"
        for write in (
            lambda: index.add([new]),
            lambda: index.remove(["x", index.search("1 0 0 0", 1)[0].item.id]),
            lambda: Index.open(place, embedder, rebuild=True),
        ):
            with pytest.raises(ConfigError) as caught:
                write()
            assert str(caught.value) == line
        assert embedder.read == []  # no recording was decoded for nothing
        with pytest.raises(ConfigError, match=f"^cannot write index {place}/in/it: "):
            Index.open(place / "in" / "it", embedder)
        assert describe(place).recordings == 3
    shutil.rmtree(library)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can become somebody else")
def test_an_index_that_cannot_be_read(folder):
    with closed_folder(folder) as place:
        os.setresuid(0, 0, 0)
        (place / "windows.lance").chmod(0)
        os.setresuid(NOBODY, NOBODY, 0)
        with pytest.raises(ConfigError, match=f"^no permission to read index {place}: change its mode"):
            describe(place)


def test_a_stamp_says_what_it_said(folder):
    table = lancedb.connect(folder).open_table("windows")
    assert set(json.loads(table.schema.metadata[b"mllm"])) == {"model", "stamp", "dim", "created"}


def test_a_sample_stands_for_the_rows_that_are_left(folder, library):
    index = Index.open(folder, CountingEmbedder())
    (gone, *_) = index.items()
    index.remove([gone.id])
    index.table.checkout_latest()
    assert len(sample_rows(index.table, folder, ["modality"], 100)) == 6
    drawn = sample_rows(index.table, folder, ["item_id", "vector"], 4)
    assert len(drawn) == 4
    assert gone.id not in drawn["item_id"].to_pylist()


def test_the_store_starts_without_its_clients_for_catalogues():
    """They are a third of its import; whoever asks for them gets them."""
    script = """
import sys
from mllm.search.store import _lancedb
_lancedb()
assert not [name for name in sys.modules if name.startswith("lance_namespace_urllib3_client.api.")]
from lance_namespace_urllib3_client import ApiClient, TableApi
import lance_namespace_urllib3_client.api.table_api as api
assert api.TableApi is TableApi
"""
    subprocess.run([sys.executable, "-c", script], check=True)
