"""Tables as people save them: the delimiter is found by the header, whatever the file is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.importers.tables import Row, read_text, rows_of
from mllm.errors import RecordError

ROWS = [
    {"gif_name": "a", "question": "what, and why; or | where ?", "answer": "dance"},
    {"gif_name": "b", "question": 'who says "hi" ?', "answer": "man, old"},
]


def rows(path: Path, content: str, encoding: str = "utf-8", columns: list[str] | None = None) -> list[Row]:
    path.write_bytes(content.encode(encoding))
    return list(rows_of(path, read_text(path)[0], columns))


def written(delimiter: str, end: str = "\n") -> str:
    """A table whose values hold the other delimiters, quoted as RFC 4180 says."""
    quoted = [[f'"{value.replace(chr(34), chr(34) * 2)}"' for value in row.values()] for row in ROWS]
    return end.join(delimiter.join(line) for line in [list(ROWS[0]), *quoted]) + end


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_the_delimiter_is_that_of_the_header_and_not_of_the_name(
    tmp_path: Path, delimiter: str, suffix: str
) -> None:
    assert rows(tmp_path / f"t{suffix}", written(delimiter)) == ROWS
    assert rows(tmp_path / f"t{suffix}", written(delimiter, "\r\n"), "utf-8-sig") == ROWS


def test_tgif_qa_as_it_is_published(tmp_path: Path) -> None:
    text = (
        "gif_name\tquestion\ta1\ta2\tanswer\tvid_name\tkey\n"
        "tumblr_no73q2fm0I1uuf348o1_250\twhat does the man do 3 times, fast ?\tlaugh\tspin\t1\tACTION4\t4\n"
        'tumblr_nk172bbdPI1u1lr18o1_250\twhat does the "man" do ?\t"hop\tspin\t0\tACTION5\t5\n'
    )
    first, second = rows(tmp_path / "Test_action_question.csv", text)
    assert first["gif_name"] == "tumblr_no73q2fm0I1uuf348o1_250"
    assert (second["question"], second["a1"]) == ('what does the "man" do ?', '"hop')


def test_a_quotation_mark_that_stands_for_itself_joins_no_rows(tmp_path: Path) -> None:
    text = 'path\tsentence\na.mp3\t"Yes\nb.mp3\t"No, he said.\n'  # as Common Voice writes
    assert rows(tmp_path / "validated.tsv", text) == [
        {"path": "a.mp3", "sentence": '"Yes'},
        {"path": "b.mp3", "sentence": '"No, he said.'},
    ]
    with pytest.raises(RecordError, match=r"t.csv line \d: not CSV .*: write a quotation mark"):
        rows(tmp_path / "t.csv", text.replace("\t", ","))


def test_a_header_with_as_many_commas_as_semicolons_is_settled_by_the_rows(tmp_path: Path) -> None:
    text = "file;start, s;end, s\na.wav;1,5;2,5\nb.wav;0;1\n"
    assert rows(tmp_path / "t.csv", text)[0] == {"file": "a.wav", "start, s": "1,5", "end, s": "2,5"}


def test_excel_says_the_delimiter_in_a_line_of_its_own(tmp_path: Path) -> None:
    (row,) = rows(tmp_path / "t.csv", 'sep=;\nfile;answer\na.wav;"a;b"\n', "utf-8-sig")
    assert row == {"file": "a.wav", "answer": "a;b"}
    assert row.where == "t.csv line 3"


def test_a_table_without_a_header_is_told_by_the_number_of_its_columns(tmp_path: Path) -> None:
    (row,) = rows(tmp_path / "v.csv", "abc\t1\tpeople marching, singing, more\ttest\n", columns=list("abcd"))
    assert row["c"] == "people marching, singing, more"


def test_one_column_needs_no_delimiter(tmp_path: Path) -> None:
    assert rows(tmp_path / "MSRVTT_train.9k.csv", "video_id\nvideo1\nvideo7\n") == [
        {"video_id": "video1"},
        {"video_id": "video7"},
    ]


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("a\tb\n1\t2\t3\n", "t.csv line 2: 3 columns where 2 were announced: put quotation marks .* tabs"),
        ("a;b;c\n1;2\n", "t.csv line 2: 2 columns where 3 were announced: write empty ones, too"),
    ],
)
def test_a_row_of_another_width_is_told(tmp_path: Path, text: str, remedy: str) -> None:
    with pytest.raises(RecordError, match=remedy):
        rows(tmp_path / "t.csv", text)


def test_a_line_separator_inside_a_value_ends_no_row(tmp_path: Path) -> None:
    (row,) = rows(tmp_path / "t.csv", 'a,b\n"one\u2028two\nthree",x\n')
    assert row["a"] == "one\u2028two\nthree"


def test_two_columns_of_one_name_are_told(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="^t.csv: two columns are called 'label': rename or drop one"):
        rows(tmp_path / "t.csv", "file,label, label\na.wav,dog,cat\n")
    assert len(rows(tmp_path / "t.csv", ",file,\n0,a.wav,\n")) == 1  # pandas' index, a comma too many


def test_empty_lines_before_a_header_are_passed_over(tmp_path: Path) -> None:
    (row,) = rows(tmp_path / "t.csv", "\r\n\r\na;b\r\n1;2\r\n")
    assert (row["b"], row.where) == ("2", "t.csv line 4")
