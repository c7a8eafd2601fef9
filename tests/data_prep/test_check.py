"""mllm data check: it names what is wrong, all of it, and nothing else."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from data_prep.check import check, look_at_all
from data_prep.check_fix import fix
from data_prep.check_media import MediaFacts
from data_prep.check_report import write_json
from data_prep.check_rows import Checked, record_files
from mllm.command.cli import main
from mllm.errors import RecordError
from mllm.records.record import read_records
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


def test_the_name_of_a_picture_beside_its_sound_is_no_other_form(media: Path) -> None:
    rows = [row(1, "sound.m4a", "audio", image="1.jpg")]
    assert check([write(media, "rows.jsonl", rows)], workers=1).findings == []


OTHER_FORMS = [{"videos": ["a.mp4"]}, {"images": ["a.jpg"]}, {"audio": "a.wav"}, {"conversations": [{}]}]


@pytest.mark.parametrize("media", OTHER_FORMS)
def test_media_where_other_forms_put_them_are_an_error(media: dict[str, Any], tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": "A star."}]
    rows = [{"id": "1", "messages": messages} | media, {"id": "2", "messages": messages, "videos": []}]
    checked = check([write(tmp_path, "rows.jsonl", rows)], workers=1)
    found = [(finding.row, finding.severity, finding.kind) for finding in checked.findings]
    assert found == [(1, "error", "media not read"), (2, "warning", "tag in a text")]
    assert "`mllm data import chats`" in checked.findings[0].what


def test_addresses_are_no_files_and_data_uris_are_looked_at(media: Path, tmp_path: Path) -> None:
    def uri(name: str) -> str:
        return "data:video/mp4;base64," + base64.b64encode((media / name).read_bytes()).decode()

    places = ["https://example.org/a.mp4", uri("good.mp4"), uri("garbage.mp4")]
    checked = check([write(tmp_path, "rows.jsonl", [row(n, at) for n, at in enumerate(places)])], workers=1)
    assert kinds(checked) == [(1, "not a file"), (3, "cannot be read")]
    assert "download it first" in checked.findings[0].what
    assert all(len(key) < 60 for key in checked.facts)
    write_json(checked, tmp_path / "check.json")
    assert (tmp_path / "check.json").stat().st_size < 3000


def nonsense(change: str) -> bytes:
    record = row(1, "good.mp4")
    video = record["messages"][0]["content"][0]
    if change == "role":
        record["messages"][0]["role"] = ["user"]
    elif change == "type":
        video["type"] = ["video"]
    elif change == "start":
        video["start"] = 10**400
    elif change == "folder":
        video["video"] = "a" * 300 + "/b.mp4"
    elif change == "path":
        video["video"] = "a/" * 2500 + "b.mp4"
    elif change == "address":
        video["video"] = "file://[/b.mp4"
    else:
        record[change] = "\ud800"
    return json.dumps(record).encode()


NONSENSE = ["role", "type", "start", "folder", "path", "address", "id", "task", "extra"]


@pytest.mark.parametrize(
    "line",
    [b"[" * 200_000, b'{"id": ' + b"1" * 5000 + b"}", *map(nonsense, NONSENSE)],
    ids=["deep", "number", *NONSENSE],
)
def test_nonsense_is_an_error_of_its_row_and_stops_nothing(line: bytes, media: Path, tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", [line, row(2, str(media / "good.mp4"))])
    checked = check([path], workers=1)
    ((number, kind),) = kinds(checked)
    assert number == 1
    assert kind in ("not JSON", "not a record")
    assert len(checked.findings[0].what) < 250
    write_json(checked, tmp_path / "check.json")
    fix(checked)
    with pytest.raises(RecordError, match="rows.jsonl row 1: "):
        list(read_records(path))


def test_a_lone_carriage_return_ends_no_row(media: Path, tmp_path: Path) -> None:
    line = json.dumps(row(1, str(media / "good.mp4")), indent=1).replace("\n", "\r").encode()
    path = write(tmp_path, "rows.jsonl", [line, line + b"\r"])
    assert len(list(read_records(path))) == 2
    assert kinds(check([path], workers=1)) == [(2, "id twice")]


def test_what_may_not_be_read_is_named(media: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("root may read everything, and there is no setpriv to give that up")
    for name in ("a.mp4", "b.mp4", "inside.mp4"):
        shutil.copy(media / "good.mp4", tmp_path / name)
    (tmp_path / "closed").mkdir()
    (tmp_path / "inside.mp4").rename(tmp_path / "closed" / "inside.mp4")
    write(tmp_path, "train.jsonl", [row(1, "a.mp4"), row(2, "closed/inside.mp4")])
    write(tmp_path, "test.jsonl", [row(1, "b.mp4")])
    (tmp_path / "locked").mkdir()
    (tmp_path / "b.mp4").chmod(0)
    (tmp_path / "closed").chmod(0)
    (tmp_path / "locked").chmod(0o500)
    mortal = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    mllm = [sys.executable, "-m", "mllm.command.cli", "data", "check", str(tmp_path), "--workers", "1"]
    out = ["--out", str(tmp_path / "locked")]
    try:
        done = subprocess.run([*mortal, *mllm, *out], capture_output=True, text=True)
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert "Traceback" not in done.stderr
    assert "3 rows, 3 recordings" in done.stdout
    assert "2 errors" in done.stdout, "told before the files are written"
    assert "check.json: cannot be written (Permission denied)" in done.stderr


def test_a_label_outside_of_its_set_is_named(media: Path) -> None:
    closed = {"task": "emotion", "answer": "sad", "said": "sad", "options": ["happy", "sad"]}
    rows = [row(1, labels={"emotion": "sad"}, **closed), row(2, labels={"emotion": "sadd"}, **closed)]
    checked = check([write(media, "labels.jsonl", rows)], workers=1)
    (finding,) = checked.findings
    assert (finding.row, finding.kind) == (2, "label not in the set")
    assert "'sadd' is not among the options: ['happy', 'sad']" in finding.what


def question(number: int, task: str, options: list[str], answer: str, **more: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": answer}]
    return {"id": str(number), "messages": turns, "task": task, "options": options, "answer": answer} | more


def test_labels_are_compared_only_where_they_are_the_answers(tmp_path: Path) -> None:
    mood, letters = ["happy", "sad"], ["A. happy", "B. sad"]
    good = [
        question(1, "emotion", letters, "B. sad", labels={"emotion": "sad"}),  # as its letter shows it
        question(2, "emotion", ["good", "bad"], "bad", labels={"emotion": "sad"}),  # asks about another thing
        question(3, "choice", ["yes", "no"], "yes", labels={"choice": "round 2"}),
        question(4, "qa", ["yes", "no"], "no", labels={"qa": 4, "emotion": "sadd"}),
        question(5, "emotion", mood, "sad", labels={"emotion": "sad"}),
        question(6, "emotion", mood, "sad", labels={"actor": "emotion"}),
    ]
    bad = question(7, "emotion", mood, "sad", labels={"emotion": "sadd"})
    checked = check([write(tmp_path, "rows.jsonl", [*good, bad])], workers=1)
    assert kinds(checked) == [(7, "label not in the set")]
    assert checked.count("error") == 0, "so that --fix keeps it"


def test_answers_are_compared_with_options_as_scores_compare_them(tmp_path: Path) -> None:
    rows = [question(1, "qa", ["Yes", "No"], "yes."), question(2, "qa", ["A. a cat", "B. a dog"], "b. A dog")]
    spoken = question(3, "qa", ["Yes", "No"], "it is: YES!")
    del spoken["answer"]
    rows.append(spoken)
    rows += [question(4, "qa", ["Yes", "No"], "perhaps"), question(5, "qa", ["Yes", "No"], "Nothing")]
    rows += [
        question(6, "qa", ["猫", "狗"], "这是猫的声音"),
        question(7, "qa", ["Yes", "No"], "No, it isn't."),
    ]
    for said in rows[4:]:
        del said["answer"]
    found = kinds(check([write(tmp_path, "rows.jsonl", rows)], workers=1))
    assert found == [(4, "answer not an option"), (5, "answer not an option")]


@pytest.mark.parametrize("truth", ["…", "?", " - ", "**", "()", "", "\u200b", "<|end|>"])
def test_truths_that_can_never_be_right_are_told(tmp_path: Path, truth: str) -> None:
    asked = {"id": "1", "messages": [{"role": "user", "content": "What?"}], "task": "qa", "answer": truth}
    checked = check([write(tmp_path, "rows.jsonl", [asked, asked | {"id": "2", "answer": "C#"}])], workers=1)
    ((row, kind),) = kinds(checked)
    assert (row, kind, checked.count("error")) == (1, "never right", 1)
    assert "exact match calls every answer to it wrong" in checked.findings[0].what


def test_options_that_say_the_same_are_told(tmp_path: Path) -> None:
    rows = [
        question(1, "choice", ["A. A book", "B. Her purse", "C. a book."], "B. Her purse"),
        question(2, "choice", ["(yes)", "**yes**"], "(yes)"),
        question(3, "choice", ["A. a", "B. b"], "B. b"),
        question(4, "choice", ["-5", "5"], "5"),
    ]
    checked = check([write(tmp_path, "rows.jsonl", rows)], workers=1)
    assert kinds(checked) == [(1, "options alike"), (2, "options alike")]
    assert "'A. A book' and 'C. a book.' say the same" in checked.findings[0].what


def test_placeholders_of_other_models_are_told(tmp_path: Path) -> None:
    texts = ["<image_1>?", "What is in </video>?", "<|image_pad|>?", "[IMG] Who?", "What is <b>?"]
    rows = [
        {"id": str(number), "messages": [{"role": "user", "content": text}], "answer": "x"}
        for number, text in enumerate(texts)
    ]
    checked = check([write(tmp_path, "rows.jsonl", rows)], workers=1)
    assert kinds(checked) == [(number, "placeholder in a text") for number in range(1, 5)]


def test_rows_that_are_not_to_be_learned_are_told(tmp_path: Path) -> None:
    row = question(1, "qa", ["x", "y"], "x")
    rows = [row | {"label": False}, row | {"id": "2", "weight": 0}, row | {"id": "3", "label": True}]
    checked = check([write(tmp_path, "rows.jsonl", rows)], workers=1)
    assert kinds(checked) == [(1, "not a record"), (2, "not a record")]
    assert checked.findings[0].what.startswith(
        "'label': False says that it is not to be learned: drop the row"
    )


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


def test_fix_keeps_a_recording_in_the_smallest_of_three_splits_alone(media: Path, tmp_path: Path) -> None:
    sound, spoken = str(media / "sound.m4a"), row(1, str(media / "mute.mp4"))
    spoken["messages"][0]["content"][0]["audio"] = sound
    good, turned = (str(media / name) for name in ("good.mp4", "turned.mp4"))
    splits = {
        "train": [row(1, good), spoken | {"id": "r2"}, row(3, turned, said="x"), row(4, turned)],
        "val": [row(1, good), row(2, sound, "audio")],
        "test": [row(1, good)],
    }
    files = [write(tmp_path, f"{name}.jsonl", rows) for name, rows in splits.items()]
    fixed = list(fix(check(files, workers=1)))
    ids = [[record["id"] for record in read_records(file)] for file in fixed]
    assert ids == [["r3", "r4"], ["r2"], ["r1"]]
    assert check(fixed, workers=1).count("error") == 0


def test_folders_of_the_same_frames_are_one_recording(tmp_path: Path) -> None:
    frame_folder(tmp_path / "frames")
    frame_folder(tmp_path / "copy")
    frame_folder(tmp_path / "others", count=7)
    train = write(tmp_path, "train.jsonl", [row(1, "frames"), row(2, "others")])
    test = write(tmp_path, "test.jsonl", [row(1, "copy")])
    assert kinds(check([train, test], workers=1)) == [(1, "in two splits")]


def test_two_empty_files_are_not_one_recording(media: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").touch()
        write(tmp_path, f"{name}.jsonl", [row(1, f"{name}.mp4")])
    checked = check([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], workers=1)
    assert kinds(checked) == [(1, "cannot be read")] * 2


def odd(path: str, audio: str | None) -> MediaFacts:
    if path == "raises":
        raise ValueError("of some\nlibrary")
    if path == "crashes":
        os._exit(11)
    if path == "hangs":
        time.sleep(600)
    if path == "swells":
        np.empty(6_000_000_000, np.uint8)
    return MediaFacts(info={"duration": 1.0})


def test_a_recording_that_hangs_or_crashes_costs_one_worker_with_a_mocked_decoder() -> None:
    media = {name: ("video", name, {}) for name in ("a", "crashes", "b", "hangs", "swells", "raises", "c")}
    facts = dict(look_at_all(media, workers=1, timeout=4, look=odd))
    assert "crashed the decoder" in facts["crashes"].error
    assert "decoding hung for 4 s" in facts["hangs"].error
    assert "takes too much memory" in facts["swells"].error
    assert "it fails (ValueError: of some library)" in facts["raises"].error
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


def test_fix_repairs_spans_beside_other_media(media: Path, tmp_path: Path) -> None:
    long, data = row(1, str(media / "good.mp4"), end=5000), (media / "good.mp4").read_bytes()
    inline = {"type": "video", "video": "data:video/mp4;base64," + base64.b64encode(data).decode(), "end": 9}
    other = row(2, str(media / "good.mp4"), end=9)
    other["messages"][0]["content"].append(inline)
    checked = check([write(tmp_path, "rows.jsonl", [long, other])], workers=1)
    assert kinds(checked) == [(1, "span too long"), (2, "span too long"), (2, "span too long")]
    fix(checked)
    parts = [
        part
        for record in read_records(tmp_path / "rows.fixed.jsonl")
        for part in record["messages"][0]["content"]
    ]
    assert [part["end"] for part in parts if "end" in part] == pytest.approx([1.0] * 3, abs=0.05)


def test_fix_keeps_each_record_of_an_id_once(media: Path, tmp_path: Path) -> None:
    good, mute = str(media / "good.mp4"), str(media / "mute.mp4")
    rows = [row(1, good, end=9), row(1, good, end=9), row(2, good), row(2, mute), row(2, mute)]
    rows += [row(3, "gone.mp4"), row(3, mute)]
    fix(check([write(tmp_path, "rows.jsonl", rows)], workers=1))
    assert [record["id"] for record in read_records(tmp_path / "rows.fixed.jsonl")] == [
        "r1",
        "r2",
        "r2-2",
        "r3",
    ]


def test_fix_writes_no_empty_file_and_says_so(tmp_path: Path, capsys) -> None:
    path = write(tmp_path, "rows.jsonl", [row(1, "gone.mp4")])
    (tmp_path / "rows.fixed.jsonl").write_text("of an earlier check")
    with pytest.raises(SystemExit):
        main(["data", "check", str(path), "--fix", "--workers", "1"])
    assert "rows.fixed.jsonl: no row is left to write (1 dropped: not there" in capsys.readouterr().err
    assert not (tmp_path / "rows.fixed.jsonl").exists()


def test_what_is_said_must_be_an_option_where_no_answer_is_given(tmp_path: Path) -> None:
    def talk(number: int, said: str, **more: Any) -> dict[str, Any]:
        turns = [{"role": "user", "content": "Cat or dog?"}, {"role": "assistant", "content": said}]
        return {"id": str(number), "messages": turns, "options": ["cat", "dog"]} | more

    rows = [talk(1, "zebra"), talk(2, "It is a dog."), talk(3, "cat"), talk(4, "cat", options=[])]
    found = check([write(tmp_path, "rows.jsonl", rows)], workers=1)
    assert kinds(found) == [(1, "answer not an option"), (4, "no options")]
    assert (found.count("error"), found.count("warning")) == (1, 1)


def test_spans_in_which_the_picture_or_the_sound_is_over(tmp_path: Path) -> None:
    make(tmp_path / "film.mp4", seconds=10, sounds=[tone(2, 44_100)])
    make(tmp_path / "radio.mp4", seconds=2, sounds=[tone(10, 44_100)])
    rows = [
        row(1, "film.mp4", "audio", start=5, end=8),
        row(2, "radio.mp4", start=5, end=8),
        row(3, "film.mp4", start=5, end=8),
        row(4, "radio.mp4", "audio", start=5, end=8),
    ]
    checked = check([write(tmp_path, "rows.jsonl", rows)], workers=1)
    assert kinds(checked) == [(1, "no sound in the span"), (2, "no picture in the span")]
    assert checked.count("error") == 0


def test_words_and_spans_lie_in_the_recording_or_its_cut(tmp_path: Path) -> None:
    make(tmp_path / "film.mp4", seconds=10, sounds=[tone(10, 44_100)])
    moments = {"task": "moments", "query": "a star"}
    rows = [
        row(1, "film.mp4", spans=[[0, 4], [8, 10]], **moments),
        row(2, "film.mp4", spans=[[8, 12]], **moments),
        row(3, "film.mp4", spans=[[0, 4], [11, 12]], **moments),
        row(4, "film.mp4", start=5, end=8, words=[[0, 1, "a"], [2, 3, "star"]]),
        row(5, "film.mp4", start=5, end=8, words=[[5, 6, "a"], [7, 8, "star"]]),
        row(6, "film.mp4", start=11, words=[[0, 1, "a"]]),
    ]
    checked = check([write(tmp_path, "rows.jsonl", rows)], workers=1)
    found = [(finding.row, finding.kind, finding.severity) for finding in checked.findings]
    assert found == [
        (2, "spans outside", "warning"),
        (3, "spans outside", "error"),
        (5, "words outside", "error"),
        (6, "span outside", "error"),  # and no more of it
    ]
    assert "film.mp4: words 1 lasts from 5 to 6 s, the cut 3.00 s: times count" in checked.findings[2].what


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
    assert '<li><a href="#kind0">damaged</a> 1' in page
    assert "<section id=kind0>" in page
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
    made = ["a.fixed.jsonl", "a.subtitled.jsonl", "pairs.jsonl", "transcripts.jsonl"]
    own = ["a.jsonl", "b.jsonl", "msvd_pairs.jsonl"]
    for name in (*own, *made):
        write(tmp_path, name, [row(1)])
    files, passed = record_files([tmp_path])
    assert [path.name for path in files] == own
    assert [path.name for path in passed] == made
    with pytest.raises(RecordError, match="no record file: give a .jsonl file"):
        record_files([tmp_path / "none"])


def test_a_file_that_is_named_twice_is_one_split(media: Path, tmp_path: Path, capsys) -> None:
    write(tmp_path, "test.jsonl", [row(1, str(media / "good.mp4"))])
    write(tmp_path, "test.fixed.jsonl", [row(1, str(media / "good.mp4"))])
    against = tmp_path / ".." / tmp_path.name / "test.jsonl"
    with pytest.raises(SystemExit, match="0"):
        main(["data", "check", str(tmp_path), "--against", str(against), "--workers", "1"])
    out = capsys.readouterr().out
    assert "1 rows, 1 recordings" in out
    assert "not checked: test.fixed.jsonl (" in out
