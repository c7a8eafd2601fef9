"""The index, with an embedder whose vectors a reader can add up: a "recording" is a JSON file of windows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from mllm.errors import ConfigError, MediaError, MllmError
from mllm.search.fill import walk
from mllm.search.index import Index, describe, exists

DIM = 4


class WindowVector(NamedTuple):
    """As `mllm.search.embedder.WindowVector`, without loading torch."""

    start: float
    end: float
    modality: str
    vector: np.ndarray


class CountingEmbedder:
    """Reads {"windows": [{"start", "end", modality: vector}]}; a text is its four numbers, or as any."""

    dim = DIM

    def __init__(self, name: str = "model-a", seconds: float = 0.0):
        self.name = name
        self.seconds = seconds
        self.read: list[str] = []

    def fingerprint(self) -> str:
        return f"{self.name}-fingerprint".ljust(64, "0")

    def windows(self, path, isolated=False):
        self.read.append(Path(path).name)
        time.sleep(self.seconds)
        try:
            windows = json.loads(Path(path).read_text())["windows"]
        except (ValueError, KeyError):
            raise MediaError(f"{path} is no recording:\n  not JSON") from None
        for window in windows:
            for modality in ("video", "audio", "both", "image"):
                if modality in window:
                    yield WindowVector(window["start"], window["end"], modality, unit(window[modality]))

    def embed_text(self, texts):
        numbers = [[float(word) for word in text.split() if word.lstrip("-").isdigit()] for text in texts]
        return np.stack([unit(row if len(row) == DIM else [1, 1, 1, 1]) for row in numbers])


def unit(vector) -> np.ndarray:
    return (np.asarray(vector) / np.linalg.norm(vector)).astype(np.float32)


def recording(path: Path, *windows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"start": 2.0 * i, "end": 2.0 * i + 2} | window for i, window in enumerate(windows)]
    path.write_text(json.dumps({"windows": rows}))
    return path


def full(video, audio) -> dict:
    return {"video": video, "audio": audio, "both": (np.asarray(video) + np.asarray(audio)).tolist()}


@pytest.fixture
def library(tmp_path) -> Path:
    folder = tmp_path / "library"
    recording(folder / "star.mp4", full([1, 0, 0, 0], [0, 1, 0, 0]), full([0, 0, 1, 0], [0, 0, 1, 0]))
    recording(folder / "silent.mp4", {"video": [1, 0, 0, 0]})
    recording(folder / "deep/beeps.wav", {"audio": [0, 1, 0, 0]})
    recording(folder / "still.png", {"image": [0, 0, 0, 1]})
    (folder / "notes.txt").write_text("not media")
    (folder / ".hidden.mp4").write_text("{}")
    return folder


@pytest.fixture
def index(tmp_path, library) -> Index:
    opened = Index.open(tmp_path / "index", CountingEmbedder())
    opened.add([library])
    return opened


def names(hits) -> list[tuple[str, str, float]]:
    return [(Path(hit.item.source).name, hit.modality, hit.start) for hit in hits]


def test_every_window_has_its_rows(index, library):
    info = index.info()
    assert info.rows == {"video": 3, "audio": 3, "both": 2, "image": 1}
    assert (info.recordings, info.seconds, info.dim) == (4, 10.0, DIM)
    assert (info.model, info.stamp) == ("model-a", CountingEmbedder().fingerprint())
    assert sorted(path.name for path in walk(library)) == [
        "beeps.wav",
        "silent.mp4",
        "star.mp4",
        "still.png",
    ]


def test_query_without_modality_meets_every_window_once(index):
    hits = index.search("1 1 0 0", k=100)
    assert names(hits)[0] == ("star.mp4", "both", 0.0)
    assert hits[0].score == pytest.approx(1.0)
    assert sorted(names(hits)) == [
        ("beeps.wav", "audio", 0.0),
        ("silent.mp4", "video", 0.0),
        ("star.mp4", "both", 0.0),
        ("star.mp4", "both", 2.0),
        ("still.png", "image", 0.0),
    ]
    # Fused: the sum of both cosines over the length of the sum of both vectors, here (√½ + √½) / √2.
    by_name = {name[0]: hit.score for name, hit in zip(names(hits), hits, strict=True)}
    assert by_name["silent.mp4"] == pytest.approx(0.5**0.5)


def test_modality_filter(index):
    assert names(index.search("1 0 0 0", 2, "video")) == [
        ("silent.mp4", "video", 0),
        ("star.mp4", "video", 0),
    ]
    assert {hit.modality for hit in index.search("1 0 0 0", 100, "audio")} == {"audio"}
    assert names(index.search("1 0 0 0", 100, "image")) == [("still.png", "image", 0.0)]
    with pytest.raises(ConfigError, match="choose from video, audio"):
        index.search("1 0 0 0", modality="smell")


def test_find_gives_recordings(index):
    found = index.find("1 1 0 0", k=2)
    assert [Path(hits[0].item.source).name for hits in found.values()] == ["star.mp4", "beeps.wav"]
    assert [hit.start for hit in next(iter(found.values()))] == [0.0, 2.0]
    assert all(hit.item.id == item_id for item_id, hits in found.items() for hit in hits)
    assert len(index.find("1 1 0 0", k=100)) == 4


def test_find_looks_past_the_windows_of_one_long_recording(tmp_path):
    recording(tmp_path / "library/long.mp4", *[{"video": [1, 0, 0, i / 1000]} for i in range(90)])
    recording(tmp_path / "library/short.mp4", {"video": [0, 1, 0, 0]})
    index = Index.open(tmp_path / "index", CountingEmbedder())
    index.add([tmp_path / "library"])
    found = index.find("1 0 0 0", k=2).values()
    assert [Path(hits[0].item.source).name for hits in found] == ["long.mp4", "short.mp4"]


def test_search_is_exact(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, DIM))
    for i, part in enumerate(np.split(vectors, 8)):
        recording(tmp_path / f"library/{i}.mp4", *[{"video": row.tolist()} for row in part])
    index = Index.open(tmp_path / "index", CountingEmbedder())
    index.add([tmp_path / "library"])
    unit_vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for query in rng.normal(size=(10, DIM)):
        query = unit(query)
        scores = unit_vectors @ query
        best = np.argsort(-scores)[:20]
        hits = index.search(query, k=20)
        np.testing.assert_allclose([hit.score for hit in hits], scores[best], atol=1e-5)
        assert [(int(Path(h.item.source).stem) * 50 + int(h.start / 2)) for h in hits] == best.tolist()


def test_adding_again_reads_nothing(index, library):
    index.embedder.read.clear()
    report = index.add([library, library / "star.mp4"])
    assert (len(report.added), len(report.unchanged), index.embedder.read) == (0, 4, [])
    os.utime(library / "star.mp4", (1, 1))  # touched, not changed
    assert index.add([library]).added == []
    assert index.embedder.read == []
    assert index.info().rows == {"video": 3, "audio": 3, "both": 2, "image": 1}


def test_changed_file_replaces_its_rows(index, library):
    recording(library / "star.mp4", {"video": [0, 0, 0, 1]})
    report = index.add([library])
    assert [Path(path).name for path in report.added] == ["star.mp4"]
    assert index.info().rows == {"video": 2, "audio": 1, "both": 0, "image": 1}
    assert names(index.search("0 0 0 1", 1, "video")) == [("star.mp4", "video", 0.0)]


def test_bad_files_cost_a_line_each(index, library):
    (library / "torn.mp4").write_text("garbage")
    recording(library / "empty.mp4")
    recording(library / "new.mp4", {"video": [1, 0, 0, 1]})
    seen = []
    report = index.add(
        [library], progress=lambda name, status: seen.append((Path(name).name, status.split(":")[0]))
    )
    assert [Path(path).name for path in report.added] == ["new.mp4"]
    assert sorted(Path(path).name for path, _ in report.failed) == ["empty.mp4", "torn.mp4"]
    assert all("\n" not in cause for _, cause in report.failed)
    assert ("torn.mp4", "failed") in seen
    assert ("star.mp4", "unchanged") in seen
    assert "1 recordings added (1 rows), 4 unchanged, 2 failed" in report.line()


def test_a_pipe_holds_nothing_up(index, library):
    os.mkfifo(library / "camera.mp4")
    (library / "linked.wav").symlink_to(library / "camera.mp4")
    (library / "lost.mp4").symlink_to(library / "gone.mp4")
    report = index.add([library, library / "camera.mp4"])
    assert len(report.unchanged) == 4
    causes = {Path(path).name: cause.split(": ", 1)[1] for path, cause in report.failed}
    assert causes == {
        "camera.mp4": "not an ordinary file but a pipe (FIFO): give a file",
        "linked.wav": "not an ordinary file but a pipe (FIFO): give a file",
        "lost.mp4": "a link to what is not there: check where it leads",
    }


def test_folders_behind_links_are_read_once(tmp_path):
    disk, library = tmp_path / "disk", tmp_path / "library"
    recording(disk / "far.mp4", {"video": [1, 0, 0, 0]})
    recording(disk / "deep/deeper.mp4", {"video": [1, 0, 0, 1]})
    recording(library / "near.mp4", {"video": [1, 0, 1, 0]})
    recording(library / "z/last.mp4", {"video": [1, 0, 1, 1]})
    for name, target in {
        "a_disk": disk,
        "again": disk,
        "z/loop": library,
        "z/sibling": library / "z",
        "above": tmp_path,
        "unmounted": tmp_path / "nowhere",
        ".hidden": disk,
    }.items():
        (library / name).symlink_to(target)
    (disk / "back").symlink_to(library)
    seen = {}
    index = Index.open(tmp_path / "index", CountingEmbedder())
    report = index.add([library], progress=lambda name, status: seen.update({Path(name).name: status}))
    inside = [str(Path(path).relative_to(library)) for path in report.added]
    assert inside == ["near.mp4", "z/last.mp4", "a_disk/far.mp4", "a_disk/deep/deeper.mp4"]
    assert {Path(path).name: cause for path, cause in report.passed_over} == {
        "above": "a link to a folder above the one that is read",
        "again": "a link to a folder that is read already",
        "back": "a link to a folder that is read already",
        "loop": "a link to a folder that is read already",
        "sibling": "a link to a folder that is read already",
        "unmounted": "a link to what is not there",
    }
    assert seen["above"] == "passed over: a link to a folder above the one that is read"
    assert report.line() == "4 recordings added (4 rows), 0 unchanged, 6 passed over"
    (library / "a_disk").unlink()
    (library / "again").unlink()
    assert len(index.add([library], prune=True).pruned) == 2
    (tmp_path / "link").symlink_to(library)
    by_link = index.add([tmp_path / "link"]).passed_over  # a folder that is named by a link
    assert [cause for _, cause in by_link if str(library / "near.mp4") in cause]


def test_a_folder_that_is_closed_is_named(index, library, monkeypatch):
    """As for anyone but root."""
    scan = os.scandir

    def closed(path):
        if Path(path) == library / "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", closed)
    report = index.add([library])
    assert report.passed_over == [(str(library / "deep"), "Permission denied")]
    assert len(report.unchanged) == 3


def test_named_file_is_tried_whatever_its_suffix(index, library):
    assert index.add([library / "notes.txt"]).failed
    with pytest.raises(MllmError, match="does not exist"):
        index.add([library / "nowhere"])


def test_prune_removes_what_is_gone_from_there(index, library, tmp_path):
    elsewhere = recording(tmp_path / "elsewhere/a.mp4", {"video": [1, 0, 0, 1]})
    index.add([elsewhere])
    elsewhere.unlink()
    (library / "deep/beeps.wav").unlink()
    assert index.add([library]).pruned == []
    report = index.add([library], prune=True)
    assert [Path(path).name for path in report.pruned] == ["beeps.wav"]
    assert index.info().recordings == 4
    assert [Path(path).name for path in index.add([elsewhere.parent], prune=True).pruned] == ["a.mp4"]


def test_unicode_and_quotes_in_paths(tmp_path):
    path = recording(tmp_path / "é 'café' \" 日本;--" / "ö\n%.mp4", {"video": [1, 0, 0, 0]})
    index = Index.open(tmp_path / "index 'ü'", CountingEmbedder())
    assert index.add([path.parent]).added == [str(path)]
    assert index.add([path.parent]).unchanged == [str(path)]
    assert index.search("1 0 0 0", 1)[0].item.source == str(path)
    path.unlink()
    assert index.add([path.parent], prune=True).pruned == [str(path)]
    assert index.search("1 0 0 0", 1) == []


def test_path_that_is_not_text_is_a_failure_not_a_crash(tmp_path):
    try:
        recording(tmp_path / os.fsdecode(b"library/\xff.mp4"), {"video": [1, 0, 0, 0]})
    except OSError:
        pytest.skip("this file system takes only Unicode names")
    assert len(Index.open(tmp_path / "index", CountingEmbedder()).add([tmp_path / "library"]).failed) == 1


def test_another_model_is_refused(index, library):
    other = CountingEmbedder("model-b")
    with pytest.raises(
        ConfigError, match=r"model-a \(model-a-fing.* model-b \(model-b-fing.*index add DIR .*--rebuild"
    ) as e:
        Index.open(index.folder, other)
    assert "\n" not in str(e.value)
    assert index.info().recordings == 4  # and nothing is lost
    rebuilt = Index.open(index.folder, other, rebuild=True)
    assert rebuilt.info().recordings == 0
    rebuilt.add([library])
    assert (rebuilt.info().model, rebuilt.info().recordings) == ("model-b", 4)
    with pytest.raises(ConfigError, match="model-b"):
        Index.open(index.folder, CountingEmbedder())


def test_model_that_changed_under_its_name_is_refused(index):
    changed = CountingEmbedder("model-a")
    changed.fingerprint = lambda: "f" * 64
    with pytest.raises(ConfigError, match=r"before its weights changed \(ffffffffffff\).*--rebuild"):
        Index.open(index.folder, changed)


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write index"):
        Index.open(tmp_path / "file/index", CountingEmbedder())


def test_missing_index_and_foreign_folder(tmp_path):
    assert not exists(tmp_path)
    for attempt in (
        lambda: describe(tmp_path),
        lambda: Index.open(tmp_path / "none", CountingEmbedder(), create=False),
    ):
        with pytest.raises(ConfigError, match=r"no index in .*mllm index add"):
            attempt()
    import lancedb

    lancedb.connect(tmp_path).create_table("windows", [{"a": 1}])
    with pytest.raises(ConfigError, match="not made by mllm"):
        describe(tmp_path)


def test_empty_index_answers(tmp_path):
    index = Index.open(tmp_path / "index", CountingEmbedder())
    assert index.search("1 0 0 0") == []
    assert index.find("1 0 0 0") == {}
    assert index.info().recordings == 0


def test_hits_are_what_was_stored(index, library):
    hit = index.search("1 0 0 0", 1, "video")[0]
    assert replace(hit, score=1.0) == hit
    assert (hit.end, hit.item.source, hit.item.attributes) == (2.0, str(library / "silent.mp4"), {})
    assert hit.id == f"{hit.item.id}:video:0"


ADD = """
import sys
sys.path.insert(0, {tests!r})
from test_index import CountingEmbedder
from mllm.search.index import Index
index = Index.open({folder!r}, CountingEmbedder(seconds=0.01))
index.add([{library!r}], progress=lambda path, status: print(status, flush=True))
"""


@pytest.mark.slow
def test_killed_while_adding(tmp_path):
    """Whole recordings or none, after kill -9; adding goes on where it stopped."""
    library, folder = tmp_path / "library", tmp_path / "index"
    for i in range(60):
        recording(
            library / f"{i:02d}.mp4", full([1, 0, 0, i], [0, 1, 0, 0]), full([0, 0, 1, i], [0, 1, 0, 0])
        )
    script = ADD.format(tests=str(Path(__file__).parent), folder=str(folder), library=str(library))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    acknowledged = sum(process.stdout.readline().strip() == "added" for _ in range(12))
    process.send_signal(signal.SIGKILL)
    acknowledged += sum(line.strip() == "added" for line in process.stdout)
    process.wait()
    assert 12 <= acknowledged < 60
    index = Index.open(folder, CountingEmbedder())
    left = index.info()
    assert acknowledged <= left.recordings <= acknowledged + 1
    assert left.rows["video"] == left.rows["audio"] == left.rows["both"] == 2 * left.recordings
    report = index.add([library])
    assert len(report.unchanged) == left.recordings
    assert index.info().recordings == 60
    assert index.info().rows["both"] == 120
