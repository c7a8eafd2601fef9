"""mllm data check: it names what is wrong, all of it, and nothing else."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from data_prep.check import Checked, check, look_at_all, record_files
from data_prep.check_fix import fix
from data_prep.check_media import MediaFacts
from mllm.cli import main
from mllm.errors import RecordError
from mllm.records import read_records
from tests.media_files import frame_folder, make, tone

SOUND = [tone(1, 44_100)]


def row(number: int, media: str = "good.mp4", kind: str = "video", **more: Any) -> dict[str, Any]:
    span = {key: more.pop(key) for key in ("start", "end") if key in more}
    user = [{"type": kind, kind: media, **span}, {"type": "text", "text": "What is it?"}]
    said = more.pop("said", "a star")
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": said}]
    return {"id": f"r{number}", "messages": messages, "task": "qa", "answer": "a star"} | more


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """A folder of recordings, good ones and bad ones."""
    folder = tmp_path_factory.mktemp("media")
    make(folder / "good.mp4", sounds=SOUND)
    make(folder / "turned.mp4", rotation=90)
    make(folder / "mute.mp4")
    make(folder / "silent.mp4", sounds=[np.zeros(44_100, np.float32)])
    make(folder / "sound.m4a", codec=None, sounds=SOUND, container="mp4")
    (folder / "empty.mp4").touch()
    (folder / "garbage.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "text.mp4").write_text("404 Not Found\n" * 50)
    whole = make(folder / "long.mp4", seconds=8, container_options={"movflags": "faststart"}).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    (folder / "headless.mp4").write_bytes((folder / "good.mp4").read_bytes()[:-600])
    return folder


def write(folder: Path, name: str, rows: list[Any]) -> Path:
    path = folder / name
    lines = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def kinds(checked: Checked) -> list[tuple[int, str]]:
    return [(finding.row, finding.kind) for finding in checked.findings]


def tagged(number: int) -> dict[str, Any]:
    record = row(number)
    record["messages"][0]["content"][1]["text"] = "<video> what?"
    return record


def turned_round(number: int) -> dict[str, Any]:
    record = row(number)
    record["messages"].reverse()
    return record


BAD: list[tuple[str, Any]] = [
    ("not JSON", b'{"id": "x", '),
    ("not text", '{"id": "ü"}'.encode("latin-1")),
    ("not a record", {"id": "b2", "conversations": []}),
    ("not a record", turned_round(203)),
    ("not a record", row(204, said=" ", answer=None)),
    ("not a record", row(205, start=0.5, end=0.2)),
    ("id twice", row(0)),
    ("answer not an option", row(207, options=["a circle", "a square"])),
    ("options alike", row(208, options=["a star", "a star"])),
    ("tag in a text", tagged(209)),
    ("not there", row(210, "gone.mp4")),
    ("cannot be read", row(211, "empty.mp4")),
    ("cannot be read", row(212, "garbage.mp4")),
    ("cannot be read", row(213, "text.mp4")),
    ("cannot be read", row(214, "headless.mp4")),
    ("damaged", row(215, "cut.mp4")),
    ("no sound for audio", row(216, "mute.mp4", "audio")),
    ("no picture for video", row(217, "sound.m4a")),
    ("span outside", row(218, start=3)),
    ("span too long", row(219, start=0.5, end=9)),
]  # fmt: skip


def test_twenty_bad_rows_of_two_hundred_are_named_and_no_other(media: Path) -> None:
    good = [row(number, ("good.mp4", "turned.mp4", "mute.mp4")[number % 3]) for number in range(180)]
    rows: list[Any] = list(good)
    places = np.random.default_rng(0).permutation(np.arange(1, 180))[: len(BAD)]
    for place, (_, bad) in sorted(zip(places.tolist(), BAD, strict=True), reverse=True):
        rows.insert(place, bad)
    bad_rows = {id(bad): kind for kind, bad in BAD}
    expected = {place: bad_rows[id(line)] for place, line in enumerate(rows, 1) if id(line) in bad_rows}
    checked = check([write(media, "rows.jsonl", rows)], workers=2)
    assert dict(kinds(checked)) == expected
    assert len(checked.findings) == len(BAD)
    assert checked.count("warning") == 0
    assert all(finding.what and "\n" not in finding.what for finding in checked.findings)


def test_a_silent_track_is_a_warning(media: Path) -> None:
    checked = check([write(media, "rows.jsonl", [row(1, "silent.mp4")])], workers=1)
    assert [(finding.severity, finding.kind) for finding in checked.findings] == [
        ("warning", "its sound track is silent")
    ]


def test_a_short_span_of_a_long_recording_is_fine_and_all_of_it_is_not(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.flac", np.zeros(3700 * 8000, np.int16), 8000)
    rows = [row(1, "long.flac", "audio", start=10.0, end=15.0), row(2, "long.flac", "audio")]
    assert kinds(check([write(tmp_path, "rows.jsonl", rows)], workers=1)) == [(2, "too long")]


def test_a_file_without_rows_is_no_split(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="empty.jsonl holds no records"):
        check([write(tmp_path, "empty.jsonl", [])], workers=1)


def test_ids_may_come_again_in_another_split(media: Path) -> None:
    train, test = write(media, "a.jsonl", [row(1)]), write(media, "b.jsonl", [row(1, "mute.mp4")])
    assert check([train, test], workers=1).findings == []


def test_a_folder_of_frames_in_two_splits(media: Path, tmp_path: Path) -> None:
    frame_folder(tmp_path / "frames")
    rows = [row(1, str(tmp_path / "frames"))]
    checked = check([write(media, "a.jsonl", rows), write(media, "b.jsonl", rows)], workers=1)
    assert [finding.kind for finding in checked.findings] == ["in two splits"]


def test_what_looks_like_a_tag_in_a_talk_about_html_is_a_warning(tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "What does <video> do?"},
        {"role": "assistant", "content": "<video> plays one."},
    ]
    rows = [{"id": "1", "messages": talk}]
    (finding,) = check([write(tmp_path, "rows.jsonl", rows)], workers=1).findings
    assert (finding.severity, finding.kind) == ("warning", "tag in a text")


def test_fix_gives_a_new_id_that_no_other_row_has(media: Path) -> None:
    rows = [row(1, id="a"), row(1, "mute.mp4", id="a"), row(1, "turned.mp4", id="a-2")]
    fix(check([write(media, "twice.jsonl", rows)], workers=1))
    assert [record["id"] for record in read_records(media / "twice.fixed.jsonl")] == ["a", "a-3", "a-2"]


def test_a_label_outside_of_its_set_is_named(media: Path) -> None:
    closed = {"task": "emotion", "answer": "sad", "said": "sad", "options": ["happy", "sad"]}
    rows = [row(1, labels={"emotion": "sad"}, **closed), row(2, labels={"emotion": "sadd"}, **closed)]
    checked = check([write(media, "labels.jsonl", rows)], workers=1)
    (finding,) = checked.findings
    assert (finding.row, finding.kind) == (2, "label not in the set")
    assert "'sadd' is not among the options: ['happy', 'sad']" in finding.what


def test_recordings_in_two_splits_are_found_by_their_content(media: Path) -> None:
    (media / "copy.mp4").write_bytes((media / "good.mp4").read_bytes())
    train = write(media, "train.jsonl", [row(1), row(2, "mute.mp4"), row(3, "turned.mp4")])
    test = write(media, "test.jsonl", [row(4, "copy.mp4")])
    checked = check([train, test], workers=1)
    (finding,) = checked.findings
    assert (finding.file, finding.row, finding.kind) == (str(test), 1, "in two splits")
    assert "train.jsonl, too (row 1)" in finding.what
    done = fix(checked)
    assert [record["id"] for record in read_records(media / "train.fixed.jsonl")] == ["r2", "r3"]
    assert [record["id"] for record in read_records(media / "test.fixed.jsonl")] == ["r4"]
    assert done[media / "train.fixed.jsonl"] == {"dropped: in two splits": 1, "kept": 2}


def odd(path: str, audio: str | None) -> MediaFacts:
    if path == "crashes":
        os._exit(11)
    if path == "hangs":
        time.sleep(600)
    return MediaFacts(info={"duration": 1.0})


def test_a_recording_that_hangs_or_crashes_costs_one_worker_with_a_mocked_decoder() -> None:
    media = {name: ("video", name, {}) for name in ("a", "crashes", "b", "hangs", "c")}
    facts = dict(look_at_all(media, workers=1, timeout=4, look=odd))
    assert "crashed the decoder" in facts["crashes"].error
    assert "decoding hung for 4 s" in facts["hangs"].error
    assert {name for name, found in facts.items() if found.error is None} == {"a", "b", "c"}


def test_fix_keeps_and_repairs_what_is_safe(media: Path) -> None:
    other = row(1, said="a circle", answer="a circle")
    rows = [row(1), row(1), other, row(2, start=0.5, end=9), row(3, "gone.mp4"), b"nonsense"]
    checked = check([write(media, "rows.jsonl", rows)], workers=1)
    done = fix(checked)
    fixed = media / "rows.fixed.jsonl"
    records = list(read_records(fixed))
    assert [record["id"] for record in records] == ["r1", "r1-2", "r2"]
    assert records[2]["messages"][0]["content"][0]["end"] == pytest.approx(1.0, abs=0.05)
    assert done[fixed] == {
        "dropped: the same record twice": 1,
        "repaired: id twice": 1,
        "repaired: span too long": 1,
        "dropped: not there": 1,
        "dropped: not JSON": 1,
        "kept": 3,
    }
    assert check([fixed], workers=1).findings == []


def test_the_command_writes_a_page_and_exits_by_severity(media: Path, tmp_path: Path, capsys) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["data", "check", *arguments, "--workers", "1", "--out", str(tmp_path)])
        return int(stopped.value.code or 0), capsys.readouterr().out

    bad = write(media, "rows.jsonl", [row(1), row(2, "cut.mp4", id="<b>two</b>")])
    code, out = run(str(bad))
    assert code == 1
    assert re.search(r"2 rows, 2 recordings \(.* 0 rotated, 0.00 h\): 1 errors, 0 warnings", out)
    page = (tmp_path / "check.html").read_text()
    assert "data:image/jpeg;base64," in page
    assert "&lt;b&gt;two" in page
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["summary"]["errors"] == 1
    assert found["findings"][0]["row"] == 2
    assert found["recordings"][str(media / "good.mp4")]["has_audio"] is True
    silent = write(media, "rows.jsonl", [row(1, "silent.mp4")])
    assert run(str(silent))[0] == 0
    assert run(str(silent), "--strict")[0] == 1


def test_files_of_one_name_are_told_apart(media: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    bad = write(tmp_path / "a", "records.jsonl", [row(1, str(media / "cut.mp4"))])
    good = write(tmp_path / "b", "records.jsonl", [row(2, str(media / "mute.mp4"))])
    checked = check([bad, good], workers=1)
    assert [finding.file for finding in checked.findings] == [str(bad)]
    kept = {path.parent.name: counts["kept"] for path, counts in fix(checked).items()}
    assert kept == {"a": 0, "b": 1}


def test_separate_sound_is_listened_to(media: Path, tmp_path: Path) -> None:
    make(tmp_path / "hush.wav", codec=None, sounds=[np.zeros(16_000, np.float32)], sound_codec="pcm_s16le")
    record = row(1, str(media / "mute.mp4"))
    record["messages"][0]["content"][0]["audio"] = str(tmp_path / "hush.wav")
    checked = check([write(tmp_path, "rows.jsonl", [record])], workers=1)
    assert [finding.kind for finding in checked.findings] == ["its sound track is silent"]


def test_a_folder_stands_for_its_splits_not_for_what_was_made_of_them(media: Path, tmp_path: Path) -> None:
    made = ("a.fixed.jsonl", "a.subtitled.jsonl", "transcripts.jsonl", "pairs.jsonl")
    for name in ("b.jsonl", "a.jsonl", *made):
        write(tmp_path, name, [row(1)])
    assert [path.name for path in record_files([tmp_path])] == ["a.jsonl", "b.jsonl"]
    with pytest.raises(RecordError, match="no record file: give a .jsonl file"):
        record_files([tmp_path / "none"])
