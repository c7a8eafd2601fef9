"""Importers of other packages: found by their entry point, listed, and named when they cannot be used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from data_prep.importers import IMPORTERS, all_importers
from mllm.command.cli import main
from mllm.errors import ConfigError
from tests.data_prep.importing import do_import

MODULE = '''
from data_prep.importers import Importer

def street_qa(job):
    """questions.json; recordings are called <clip>."""
    for row in job.rows():
        yield job.qa(row["number"], [job.video(row["clip"])], row.text("question"), job.answer(row))

said_more = Importer(street_qa, "number, clip, question, answer", beside=True)
nothing = 3
'''
ROWS = [{"number": 7, "clip": "a", "question": "Which way?", "answer": "left"}]


@pytest.fixture
def install(tmp_path: Path, monkeypatch):
    """Puts a distribution with entry points on sys.path, as pip would leave it."""

    def install(**entries: str) -> None:
        site = tmp_path / "site"
        info = site / "streets-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "streets_of_others.py").write_text(MODULE)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: streets\nVersion: 1.0\n")
        lines = [f"{name.replace('_', '-')} = {value}" for name, value in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(["[mllm.importers]", *lines, ""]))
        monkeypatch.syspath_prepend(str(site))

    yield install
    sys.modules.pop("streets_of_others", None)


@pytest.mark.parametrize("value", ["streets_of_others:street_qa", "streets_of_others:said_more"])
def test_an_importer_of_another_package_imports(tmp_path: Path, install, value: str) -> None:
    install(street_qa=value)
    (record,), report = do_import(tmp_path, "street-qa", {"questions.json": ROWS})
    assert (record["id"], record["source"], record["answer"]) == ("street-qa/7", "street-qa", "left")
    assert (report.media is not None) == value.endswith("said_more")


def test_formats_lists_it_and_those_that_cannot_be_imported(install, capsys) -> None:
    install(street_qa="streets_of_others:street_qa", broken="streets_of_others.gone:x")
    with pytest.raises(SystemExit, match="0"):
        main(["data", "formats"])
    printed = capsys.readouterr()
    assert "street-qa" in printed.out
    assert "see streets" in printed.out
    assert "importer 'broken' of streets cannot be imported (ModuleNotFoundError" in printed.err


@pytest.mark.parametrize(
    ("entries", "name", "message"),
    [
        ({"broken": "streets_of_others:gone"}, "broken", "importer 'broken' of streets cannot be imported"),
        (
            {"three": "streets_of_others:nothing"},
            "three",
            "importer 'three' of streets must be a function of",
        ),
        (
            {"street_qa": "streets_of_others:street_qa"},
            "street_qaa",
            "no format 'street_qaa': did you mean 'st",
        ),
        (
            {"table": "streets_of_others:street_qa"},
            "table",
            "streets has an importer 'table', a name that is",
        ),
    ],
)
def test_one_that_cannot_be_used_is_told(
    tmp_path: Path, install, entries: dict, name: str, message: str
) -> None:
    install(**entries)
    with pytest.raises(ConfigError, match=f"^{message}"):
        do_import(tmp_path, name, {"questions.json": ROWS})


def test_a_broken_importer_disturbs_no_other(tmp_path: Path, install) -> None:
    install(broken="streets_of_others:gone")
    assert len(do_import(tmp_path, "table", {"t.csv": "file,label\na.wav,x\n"})[0]) == 1


def test_own_importers_are_there_without_any_entry_point() -> None:
    assert list(IMPORTERS) == [name for name in all_importers() if name in IMPORTERS]
