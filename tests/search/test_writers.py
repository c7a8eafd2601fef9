"""Several processes at one index: none loses what another has written; a killed one leaves whole items."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mllm.errors import ConfigError
from mllm.search.index import Index, describe
from mllm.search.query import Query
from tests.search.test_index import CountingEmbedder, full, recording

pytestmark = pytest.mark.slow

ADD = """
import sys
from mllm.errors import MllmError
from mllm.search.index import Index
from tests.search.test_index import CountingEmbedder
try:
    index = Index.open({folder!r}, CountingEmbedder(seconds=0.01))
    print("open", flush=True)
    sys.stdin.readline()
    index.add([{library!r}], progress=lambda path, status: print(status, flush=True))
except MllmError as error:
    sys.exit(f"mllm: {{error}}")
"""


def adding(folder: Path, library: Path) -> subprocess.Popen:
    """A process that has opened the index, and adds the library once a line is written to it."""
    script = ADD.format(folder=str(folder), library=str(library))
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    assert process.stdout.readline() == "open\n"
    return process


def talks(library: Path, count: int) -> Path:
    """Recordings of two windows, in each of which somebody says its number."""
    for i in range(count):
        name = f"{library.name}{i:02d}"
        recording(library / f"{name}.mp4", *[full([1, 0, len(library.name), i], [0, 1, 0, 0])] * 2)
        line = f"1\n00:00:01,000 --> 00:00:02,000\nThis is {name}.\n"
        (library / f"{name}.srt").write_text(line)
    return library


def check(folder: Path, library: Path, count: int) -> None:
    """All recordings are there once, with all of their rows, and are found by what is said."""
    index = Index.open(folder, CountingEmbedder())
    assert len(index.add([library]).unchanged) == count
    info = describe(folder)
    assert info.rows == {"video": 2 * count, "audio": 2 * count, "both": 2 * count, "image": 0}
    assert (info.recordings, info.texts["said"]) == (count, count)
    for path in library.glob("**/*.mp4"):
        (match, *_) = index.moments(Query(path.stem, channels=("said",)), 1)[0].matches
        assert match.text == f"This is {path.stem}."


def test_a_killed_one_leaves_whole_recordings_with_their_words(tmp_path):
    library, folder = talks(tmp_path / "talk", 40), tmp_path / "index"
    process = adding(folder, library)
    process.stdin.write("\n")
    process.stdin.flush()
    acknowledged = sum(process.stdout.readline() == "added\n" for _ in range(10))
    process.send_signal(signal.SIGKILL)
    acknowledged += process.communicate()[0].count("added\n")
    index = Index.open(folder, CountingEmbedder())
    left = index.info()
    assert 10 <= acknowledged <= left.recordings <= acknowledged + 1 < 40
    assert left.rows["both"] == 2 * left.texts["said"] == 2 * left.recordings
    assert len(index.add([library]).unchanged) == left.recordings
    check(folder, library, 40)


@pytest.mark.parametrize("same", [False, True])
def test_two_that_write_at_once_take_turns(tmp_path, same):
    folder, library = tmp_path / "index", tmp_path / "library"
    parts = [talks(library / name, 20) for name in ("here", "there")]
    processes = [adding(folder, part) for part in ([library, library] if same else parts)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(err for _, err in said) == [
        "",
        f"waiting until another process has written to index {folder}\n",
    ]
    assert sum(out.count("added\n") for out, _ in said) == 40  # none twice
    check(folder, library, 40)


def test_one_that_reads_sees_whole_recordings_while_another_writes(tmp_path):
    library, folder = talks(tmp_path / "talk", 20), tmp_path / "index"
    process = adding(folder, library)
    process.stdin.write("\n")
    process.stdin.flush()
    while process.poll() is None:
        index = Index.open(folder, CountingEmbedder(), create=False)
        for moments in index.recordings("1 1 0 0", 20):
            assert moments[0].end - moments[0].start in (2, 4)
        info = index.info()
        assert info.rows["both"] == 2 * info.recordings
    assert process.wait() == 0
    check(folder, library, 20)
    with pytest.raises(ConfigError, match="was filled by model model-a"):
        Index.open(folder, CountingEmbedder("model-b"), create=False)
