"""For each importer an excerpt in the form of the official files, and the records that come of it, whole.

    excerpts/<name>/<annotation files>
                    media.txt         the recordings that would lie beside them
                    expected.jsonl    the records

To write `expected.jsonl` for a new importer, or after a change that is meant: EXCERPTS=write make test
TESTS=tests/data_prep/test_excerpts.py; then read what changed.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_prep.importers import IMPORTERS
from data_prep.importers.write import import_records

EXCERPTS = Path(__file__).parent / "excerpts"
BESIDE = ("media.txt", "expected.jsonl")


@pytest.mark.parametrize("name", IMPORTERS)
def test_an_excerpt_gives_these_records(name: str, tmp_path: Path) -> None:
    media = tmp_path / "media"  # beside the records, so that their paths are the same everywhere
    media.mkdir()
    for line in (EXCERPTS / name / "media.txt").read_text(encoding="utf-8").splitlines():
        (media / line).parent.mkdir(parents=True, exist_ok=True)
        (media / line).touch()
    annotations = sorted(path for path in (EXCERPTS / name).iterdir() if path.name not in BESIDE)
    report = import_records(name, annotations, media, tmp_path)
    assert report.missing == []
    found = (tmp_path / "records.jsonl").read_text(encoding="utf-8")
    if os.environ.get("EXCERPTS") == "write":
        (EXCERPTS / name / "expected.jsonl").write_text(found, encoding="utf-8")
    assert found == (EXCERPTS / name / "expected.jsonl").read_text(encoding="utf-8")
