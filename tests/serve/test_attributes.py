"""Attributes of recordings from the command line and from a table beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm.errors import ConfigError
from mllm.search.items import Item
from serve.attributes import Attributes

CSV = """\ufefffile,name,speaker,year,code,live,note
a.mp4,Ann's talk,ann,2020,7,true,"two
lines, one cell"
deep/b.mp4,,"Doe, Bob",2021.5,007,false,
ü.mp4,,,,,,2020
"""

JSONL = """
{"file": "a.mp4", "name": "Ann's talk", "speaker": "ann", "year": 2020, "live": true, "note": null}
{"file": "../elsewhere/b.mp4", "code": "007"}
"""


def test_a_csv_table_types_its_columns(tmp_path):
    (tmp_path / "t.csv").write_text(CSV, encoding="utf-8")
    item = Attributes(tmp_path / "t.csv").item
    a = {"speaker": "ann", "year": 2020, "code": "7", "live": True, "note": "two\nlines, one cell"}
    b = {"speaker": "Doe, Bob", "year": 2021.5, "code": "007", "live": False}
    assert item(tmp_path / "a.mp4") == Item(tmp_path / "a.mp4", "Ann's talk", a)
    assert item(tmp_path / "deep/b.mp4") == Item(tmp_path / "deep/b.mp4", None, b)
    assert item(tmp_path / "ü.mp4").attributes == {"note": "2020"}


def test_a_jsonl_table_has_the_types_it_has(tmp_path):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/t.jsonl").write_text(JSONL, encoding="utf-8")
    table = Attributes(tmp_path / "lists/t.jsonl")
    b = tmp_path / "elsewhere/b.mp4"
    assert table.item(b) == Item(b, None, {"code": "007"})
    assert table.unused() == [str(tmp_path / "lists/a.mp4")]


def test_a_description_is_no_attribute(tmp_path):
    (tmp_path / "t.csv").write_text("file,description,year\na.mp4,2020,2020\nb.mp4,,2021\n")
    item = Attributes(tmp_path / "t.csv").item
    a, b = tmp_path / "a.mp4", tmp_path / "b.mp4"
    assert item(a) == Item(a, attributes={"year": 2020}, description="2020")
    assert item(b) == Item(b, attributes={"year": 2021})


def test_common_attributes_and_recordings_without_a_row(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"file": "a.mp4", "year": 2021}\n')
    table = Attributes(tmp_path / "t.jsonl", ["year=2020", "place = Bern = BE", "live=true"])
    assert table.item(tmp_path / "a.mp4").attributes == {"year": 2021, "place": "Bern = BE", "live": True}
    assert table.item(tmp_path / "b.mp4").attributes == {"year": 2020, "place": "Bern = BE", "live": True}
    # Nothing is said of a file: it keeps the attributes that it has in the index.
    assert Attributes(tmp_path / "t.jsonl").item(tmp_path / "b.mp4").attributes is None


@pytest.mark.parametrize(
    ("file", "text", "error"),
    [
        ("t.csv", "path,year\na.mp4,1\n", "t.csv has no column 'file', but 'path', 'year'"),
        ("t.csv", "", "t.csv has no column 'file', but no header"),
        ("t.csv", "file,a,a\nb.mp4,1,2\n", "t.csv has two columns of one name"),
        ("t.csv", "file,a\nb.mp4,1,2\n", "t.csv row 2 has more cells than the header"),
        ("t.csv", 'file,a\nb.mp4,"1\n', "t.csv line 2 is not CSV"),
        ("t.csv", "file,a\n,1\n", "t.csv row 2: a row names its recording in 'file'"),
        ("t.csv", "file,a\nb.mp4,1\n./b.mp4,2\n", "t.csv row 3: ./b.mp4 has a row already"),
        ("t.jsonl", "file,a\n", "t.jsonl row 1 is not JSON: .*; a table in CSV is named .csv"),
        ("t.jsonl", "\n[1]\n", "t.jsonl row 2 is no object"),
        ("t.jsonl", '{"file": 1}', "t.jsonl row 1: a row names its recording in 'file'"),
        ("t.jsonl", '{"file": "a", "name": 1}', "t.jsonl row 1: the name 1 is not text"),
        ("t.jsonl", '{"file": "a", "description": 1}', "t.jsonl row 1: the description 1 is not text"),
        (
            "t.jsonl",
            '{"file": "a", "tags": ["x"]}',
            "t.jsonl row 1: attribute 'tags' is .*: give a string, number",
        ),
        ("t.jsonl", '{"file": "a", "x": NaN}', "t.jsonl row 1: attribute 'x' is nan"),
    ],
)
def test_wrong_tables_name_their_row(tmp_path, file, text, error):
    (tmp_path / file).write_text(text)
    with pytest.raises(ConfigError, match=error) as caught:
        Attributes(tmp_path / file)
    assert "\n" not in str(caught.value)


def test_wrong_words(tmp_path):
    for word in ("year", "=2020", " = "):
        with pytest.raises(ConfigError, match="--attribute '.*' is no attribute: write key=value"):
            Attributes(None, [word])
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(ConfigError, match=f"cannot read --attributes {path}: "):
            Attributes(path)
    (tmp_path / "latin.csv").write_bytes("file,é\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot read --attributes"):
        Attributes(Path(tmp_path / "latin.csv"))
