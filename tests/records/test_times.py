"""Timed transcripts and moment queries: what their records must hold, and how they are asked and answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mllm.errors import RecordError
from mllm.records.record import read_records, validate_record
from mllm.records.templates import fill, paraphrase
from mllm.records.times import span_text

SAID = {"task": "transcript", "words": [[0.7, 0.93, "bin"], [0.93, 1.12, "blue"]]}
MOMENT = {"task": "moments", "query": "a bell rings", "spans": [[24.3, 30], [41, 43.5]]}


def record(**more) -> dict:
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "yes"}]
    return {"id": "1", "messages": messages, **more}


def test_times_are_read_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(record(**more)) + "\n" for more in (SAID, MOMENT)))
    said, moment = read_records(path)
    assert said["words"] == SAID["words"]
    assert (moment["query"], moment["spans"]) == (MOMENT["query"], MOMENT["spans"])


@pytest.mark.parametrize(
    "more",
    [
        {"words": None},
        {"words": []},
        {"words": [[1, 1, "a"]]},  # as short as the clock's step
        {"task": "transcript"},  # without times
        {"task": "moments", "query": "a bell", "answer": None},  # kept back
        {"spans": [[3, 4], [1, 2]]},
    ],
)
def test_what_may_be_there(more: dict) -> None:
    validate_record(record(**more), "r.jsonl row 1")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"words": "bin blue"}, r"'words' must be a list of \[start, end, text\], not str"),
        ({"words": [["bin", 0.7, 0.9]]}, "words 1: start and end must be seconds, not 'bin' and 0.7"),
        ({"words": [[0, 1, "a"], [1, 2]]}, r"words 2 must be \[start, end, text\], not \[1, 2\]"),
        ({"words": [{"word": "bin", "start": 0.7, "end": 0.9}]}, r"words 1 must be \[start, end, text\]"),
        ({"words": [[0, 1, " "]]}, "words 1 has no text: write what is said, or drop it"),
        ({"words": [[0, 1, 7]]}, "words 1 has no text"),
        ({"words": [[2, 1, "a"]]}, "words 1 lasts from 2 to 1 s: it must begin at 0 or later, and end after"),
        ({"spans": [[-1, 1]]}, "spans 1 lasts from -1 to 1 s"),
        ({"spans": [[1, 1]]}, "spans 1 lasts from 1 to 1 s"),
        ({"spans": [[0, float("nan")]]}, "spans 1: start and end must be seconds, not 0 and nan"),
        ({"spans": [[0, True]]}, "spans 1: start and end must be seconds"),
        ({"spans": [1.0, 2.0]}, r"spans 1 must be \[start, end\], not 1.0"),
        ({"spans": [["00:01", "00:02"]]}, "spans 1: start and end must be seconds, not '00:01' and '00:02'"),
        ({"spans": {"start": 1}}, r"'spans' must be a list of \[start, end\], not dict"),
        (MOMENT | {"query": " "}, "a record of task 'moments' needs 'query'"),
        (MOMENT | {"query": None}, "a record of task 'moments' needs 'query'"),
        (MOMENT | {"query": 7}, "'query' must be a string"),
        (MOMENT | {"spans": []}, "a record of task 'moments' needs 'spans'"),
        (
            {"task": "moments", "query": "a bell", "answer": "00:01 to 00:02"},
            "a record of task 'moments' needs 'spans'",
        ),
    ],
)
def test_what_is_wrong_is_named(more: dict, message: str) -> None:
    with pytest.raises(RecordError, match=f"^r.jsonl row 1: {message}"):
        validate_record(record(**more), "r.jsonl row 1")


def test_spans_are_answered_like_time_marks() -> None:
    assert span_text([[24.3, 30], [59.96, 289]]) == "00:24.3 to 00:30, 01:00 to 04:49"


def test_moment_queries_have_several_phrasings() -> None:
    asked = {fill("moments", str(id), query="a bell rings") for id in range(50)}
    assert len(asked) == 4
    for text in asked:
        again = {paraphrase("moments", text, str(id)) for id in range(50)}
        assert again == asked
