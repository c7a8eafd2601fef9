"""Any import: files and recordings found, rows left out and counted, errors that name file and row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.importers import IMPORTERS
from data_prep.importers.write import import_records, parse_held_out
from mllm.command.cli import main
from mllm.errors import ConfigError, MllmError, RecordError
from mllm.records.record import read_records
from tests.data_prep.importing import (
    IEMOCAP,
    MUSIC,
    QUESTION,
    SUBTITLES,
    TVQA,
    asked,
    do_import,
    folder,
    medium,
    read,
)


def test_a_folder_of_annotations_is_all_the_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "labels" / "more").mkdir(parents=True)
    for name in ("one", "more/two"):
        row = {"id": name, "instruction": f"{name}?", "output": "yes"}
        (tmp_path / "labels" / f"{name}.json").write_text(json.dumps([row]))
    (tmp_path / "labels" / "notes.md").write_text("not an annotation")
    report = import_records("alpaca", [tmp_path / "labels"], None, tmp_path / "out")
    assert report.records == 2


def test_another_question_under_the_same_id_is_kept_and_numbered(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "instruction": text, "output": answer}
        for text, answer in [("who?", "I"), ("when?", "now"), ("who?", "you"), ("where?", "here")]
    ]
    records, report = do_import(tmp_path, "chats", {"rows.json": rows})
    assert [record["id"] for record in records] == ["chats/1", "chats/1-2", "chats/1-3"]
    assert report.left_out == {"id and question came before": 1}
    assert report.noted == {"id came before with another question: numbered": 2}


def test_held_out_by_label(tmp_path: Path) -> None:
    media = folder(tmp_path, *(f"03-01-06-01-02-01-{actor:02}.wav" for actor in (1, 2, 17, 20)))
    held_out = parse_held_out(["actor=17-20"])
    records, report = do_import(tmp_path, "ravdess", {}, media, held_out=held_out)
    apart = read(tmp_path / "out" / "held_out.jsonl")
    assert [record["labels"]["actor"] for record in records] == ["1", "2"]
    assert [record["labels"]["actor"] for record in apart] == ["17", "20"]
    assert (report.records, report.held_out) == (2, 2)
    with pytest.raises(ConfigError, match="--held-out actor=99 takes none of the records"):
        do_import(tmp_path, "ravdess", {}, media, held_out=parse_held_out(["actor=99"]))
    with pytest.raises(ConfigError, match="has no such label"):
        do_import(tmp_path, "ravdess", {}, media, held_out=parse_held_out(["speaker=1"]))
    with pytest.raises(ConfigError, match="write LABEL=VALUES"):
        parse_held_out(["17-20"])
    assert parse_held_out(["actor=08-10"]) == {"actor": {"08", "09", "10"}}


def test_records_held_out_before_go_and_a_file_of_ones_own_stays(tmp_path: Path) -> None:
    media = folder(tmp_path, "7_jackson_32.wav", "7_theo_1.wav")
    out = tmp_path / "out"
    import_records("fsdd", [], media, out, held_out=parse_held_out(["actor=theo"]))
    import_records("fsdd", [], media, out)
    assert not (out / "held_out.jsonl").exists()
    (out / "held_out.jsonl").write_text("mine")
    import_records("fsdd", [], media, out)
    assert (out / "held_out.jsonl").read_text() == "mine"


def test_what_is_not_found_is_named_and_written_all_the_same(tmp_path: Path) -> None:
    media = folder(tmp_path, "b.wav")
    csv = "audiocap_id,youtube_id,start_time,caption\n1,a,0,one\n2,b,0,two\n"
    records, report = do_import(tmp_path, "audiocaps", {"t.csv": csv}, media)
    assert report.missing == ["a.wav"]
    assert len(records) == 2
    assert json.loads((tmp_path / "out" / "import.json").read_text())["missing"] == ["a.wav"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"q.json": [{"q": "?"}]}, r"q.json row 1: no field 'question_id' \(it has q\): is this the format"),
        ({"q.json": "[{]"}, "q.json: not JSON .*: write one array, or an object in each line"),
        ({"q.jsonl": "{nonsense}\nnonsense"}, "q.jsonl: not JSON"),
        ({"q.json": [3]}, "q.json row 1: a row must be an object, not int"),
        (
            {"q.xml": "<a/>"},
            ".*q.xml: annotations are read from .json, .jsonl, .csv, .tsv, .parquet, .txt and subtitle files",
        ),
        ({}, "msrvtt-qa: no records: give --annotations its files, or --media its recordings .*"),
        ({"q.json": " "}, "msrvtt-qa: no records in q.json: give .*"),
        ({"q.csv": "question,answer,video_id\n"}, "msrvtt-qa: no records in q.csv: give .*"),
        (
            {"q.json": json.dumps({"questions": [QUESTION]}, indent=1)},
            r"q.json \(one object, not rows\): no field 'question_id' \(it has questions\): is this .*",
        ),
        (
            {"val.jsonl": [QUESTION | {"video_id": 1}], "train_ans2label.json": '{"yes": 0, "no": 1}'},
            r"train_ans2label.json row 1: no field 'question_id' \(it has yes, no\): is this .*",
        ),
        (
            {"q.json": [QUESTION | {"question": None, "video_id": 1}] * 2},
            "q.json row 1: question must be text, not None: mend or drop the row",
        ),
        (
            {"q.json": [QUESTION | {"video_id": 1, "answer": ["a", "b"]}]},
            r"q.json row 1: answer must be text.*",
        ),
    ],
)
def test_bad_annotations_are_named_with_file_and_row(tmp_path: Path, files: dict, message: str) -> None:
    with pytest.raises(MllmError, match=f"^{message}"):
        do_import(tmp_path, "msrvtt-qa", files)
    assert not (tmp_path / "out" / "records.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("music-avqa", {"q.json": [MUSIC | {"templ_values": "['a']"}]}, "q.json row 1: not as music-avqa .*"),
        ("howto100m", {"h.json": {"v": {"start": [0], "end": ["x"], "text": ["a"]}}}, "h.json v: not as .*"),
        (
            "tvqa",
            {"v.jsonl": [TVQA | {"a1": None}], "subs.jsonl": [SUBTITLES]},
            "v.jsonl row 1: a1 must be text, not None: mend or drop the row",
        ),
        (
            "tvqa",
            {"v.jsonl": [TVQA], "subs.jsonl": [{"vid_name": "b", "sub": [{"text": "a"}]}]},
            "subs.jsonl row 1: not as tvqa .*",
        ),
        (
            "audiocaps",
            {"q.csv": "audiocap_id,youtube_id,start_time,caption\n1,a,0\n"},
            "q.csv line 2: 3 columns where 4 were announced: write empty ones, too",
        ),
        ("crema-d", {}, "crema-d is read from file names: give --media the folder of audio recordings"),
        (
            "msrvtt-captions",
            {"i.json": {"sentences": [{"video_id": "video1", "caption": None}]}},
            "i.json sentences row 1: caption must be text, not None: mend or drop the row",
        ),
    ],
)
def test_what_an_importer_stumbles_over_is_named(
    tmp_path: Path, name: str, files: dict, message: str
) -> None:
    with pytest.raises(RecordError, match=f"^{message}$"):
        do_import(tmp_path, name, files)


def test_odd_rows_are_left_out_and_counted_the_others_imported(tmp_path: Path) -> None:
    rows = [QUESTION | {"id": 1, "video_id": 1}, QUESTION | {"id": 2, "video_id": 1, "answer": " "}]
    half = json.dumps(rows[0] | {"id": 3, "question": "a\ud83d"})
    (record,), report = do_import(
        tmp_path, "msrvtt-qa", {"q.jsonl": "\n".join([*map(json.dumps, rows), half])}
    )
    assert record["id"] == "msrvtt-qa/1"
    assert report.left_out == {"empty question or answer": 1, "half a character in its text": 1}
    (_,), report = do_import(tmp_path, "webvid", {"r.csv": "videoid,page_dir,name\n1,,a\n2,,\n  \n"})
    assert report.left_out == {"empty question or answer": 1}


def test_missing_answers_are_no_answers(tmp_path: Path) -> None:
    rows = [QUESTION | {"id": number, "video_id": 1} for number in range(3)]
    rows[1]["answer"], rows[2]["answer"] = None, float("nan")
    records, report = do_import(tmp_path, "msrvtt-qa", {"q.json": rows})
    assert [record["answer"] for record in records] == ["man", None, None]
    assert report.noted == {"no answer given": 2}
    said = {"start": [0, 1], "end": [1, 2], "text": [float("nan"), "x"]}
    (record,), report = do_import(tmp_path, "howto100m", {"c.json": {"v": said}})
    assert (record["answer"], report.left_out) == ("x", {"empty span or text": 1})


def test_ids_join_as_number_and_as_text(tmp_path: Path) -> None:
    files = {
        "test_q.json": [{"video_name": "video1", "question": "q", "question_id": 1}],
        "test_a.json": [{"answer": "x", "question_id": "1"}],
    }
    (record,), report = do_import(tmp_path, "msrvtt-qa", files)
    assert (record["answer"], report.noted) == ("x", {})


def test_json_is_told_by_its_content(tmp_path: Path) -> None:
    rows = [QUESTION | {"id": number, "video_id": 1} for number in range(2)]
    for name, text in [("q.jsonl", json.dumps(rows, indent=1)), ("q.json", "\n".join(map(json.dumps, rows)))]:
        assert len(do_import(tmp_path, "msrvtt-qa", {name: text})[0]) == 2
    (record,), _ = do_import(tmp_path, "msrvtt-qa", {"one.json": json.dumps(rows[0], indent=1)})
    assert record["answer"] == "man"


def test_files_that_an_importer_does_not_read_are_not_passed_over(tmp_path: Path) -> None:
    info = {"sentences": [{"caption": "a", "video_id": f"video{number}"} for number in (1, 2)]}
    files = {"info.json": info, "train_list.txt": "video1\n"}
    (record,), _ = do_import(tmp_path, "msrvtt-captions", files)
    assert record["id"] == "msrvtt-captions/video1"
    with pytest.raises(RecordError, match=r"^.*x.jsonl: msrvtt-captions reads no such file: leave it out"):
        do_import(tmp_path, "msrvtt-captions", {"info.json": info, "x.jsonl": []})
    (tmp_path / "labels").mkdir()
    files = {"labels/info.json": info, "labels/x.jsonl": []}
    with pytest.raises(RecordError, match=r"^.*list.txt line 1: must be the name of one video"):
        do_import(tmp_path, "msrvtt-captions", files | {"list.txt": "These are the videos."})
    report = import_records("msrvtt-captions", [tmp_path / "labels"], None, tmp_path / "out")
    assert report.noted == {"file that msrvtt-captions does not read, such as x.jsonl": 1}
    media = folder(tmp_path, "03-01-06-01-02-01-12.wav")
    with pytest.raises(RecordError, match=r"^.*nope.csv: there is no such annotation file: check its path$"):
        import_records("ravdess", [tmp_path / "nope.csv"], media, tmp_path / "out")


def test_what_macos_leaves_beside_files_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "Ses01F_impro01.TXT").write_text(IEMOCAP)
    (tmp_path / "labels" / "._Ses01F_impro01.txt").write_bytes(b"\x00\x05\x16\x07\x81\xff")
    media = folder(tmp_path, "Ses01F_impro01_F000.wav", "._Ses01F_impro01_F000.wav")
    report = import_records("iemocap", [tmp_path / "labels"], media, tmp_path / "out")
    assert report.records == 2
    _, report = do_import(tmp_path, "fsdd", {}, folder(tmp_path, "7_jackson_32.wav", "._7_jackson_32.wav"))
    assert report.left_out == {"file names not like fsdd's, such as Ses01F_impro01_F000.wav": 1}


def test_a_wrong_folder_of_recordings_is_one_short_line(tmp_path: Path) -> None:
    media = folder(tmp_path, *(f"0_george_{number}.wav" for number in range(300)))
    with pytest.raises(RecordError) as caught:
        do_import(tmp_path, "ravdess", {}, media)
    assert str(caught.value).startswith(
        "ravdess: no records; 300 file names not like ravdess's, such as 0_george_0.wav: give "
    )
    assert len(str(caught.value)) < 200


WEBVID = "videoid,page_dir,name\n1,000001_000050,cap\n"


def test_recordings_are_found_behind_links_and_in_other_folders(tmp_path: Path) -> None:
    real = folder(tmp_path / "elsewhere", "000001_000050/1.mp4")
    media = folder(tmp_path, "2.mp4")
    (media / "link").symlink_to(real)
    (media / "link" / "back").symlink_to(media)
    (record,), report = do_import(tmp_path, "webvid", {"r.csv": WEBVID}, media)
    assert (medium(record)["video"], report.noted) == ("../media/link/000001_000050/1.mp4", {})
    table = WEBVID + "2,000001_000050,flat\n"
    records, report = do_import(tmp_path, "webvid", {"r.csv": table}, media)
    assert medium(records[1])["video"] == "../media/2.mp4"
    assert report.noted == {"recording found in another folder than the one named": 1}
    media = folder(tmp_path, "a/2.mp4")  # two of the name, neither in the folder that is named
    assert do_import(tmp_path, "webvid", {"r.csv": table}, media)[1].missing == ["000001_000050/2.mp4"]


def test_recordings_are_found_under_other_spellings(tmp_path: Path) -> None:
    table = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    names = ["K\u00e4tzchen.wav", "f\\1.wav", "talk.mp4"]
    table += "".join(f"{name},a,b,c,d,e\n" for name in names)
    records, _ = do_import(tmp_path, "clotho", {"c.csv": table})
    assert [medium(record)["audio"] for record in records] == ["K\u00e4tzchen.wav", "f/1.wav", "talk.mp4"]
    media = folder(
        tmp_path, "deep/Ka\u0308tzchen.wav", "f/1.wav", "g/1.wav", "deep/talk.mp4", "deep/talk.webm"
    )
    _, report = do_import(tmp_path, "clotho", {"c.csv": table}, media)
    assert report.missing == []
    _, report = do_import(tmp_path, "clotho", {"c.csv": table.replace("talk", "a" * 300)}, media)
    ((reason, count),) = report.left_out.items()
    assert (count, reason[:4], reason[-21:]) == (1, "'aaa", "(first: c.csv line 4)")


def test_records_and_recordings_can_be_moved_together(tmp_path: Path, monkeypatch) -> None:
    project = tmp_path / "project"
    folder(project, "7_jackson_32.wav")
    (project / "deep" / "data").mkdir(parents=True)
    (project / "data").symlink_to(project / "deep" / "data")  # out/../.. leads to where the link leads
    monkeypatch.chdir(project / "deep")
    import_records("fsdd", [], Path("../media"), Path("../data/out"))
    (project / "deep" / "data" / "out" / "records.jsonl").stat()
    moved = project.rename(tmp_path / "moved")
    (record,) = read_records(moved / "deep" / "data" / "out" / "records.jsonl")
    assert medium(record)["audio"] == str(moved / "media" / "7_jackson_32.wav")
    inside = folder(tmp_path / "out", "7_jackson_32.wav")
    linked = tmp_path / "out2" / "media"
    linked.parent.mkdir()
    linked.symlink_to(inside)
    import_records("fsdd", [], linked, linked.parent)
    assert medium(read(linked.parent / "records.jsonl")[0])["audio"] == "media/7_jackson_32.wav"


def test_a_line_separator_inside_a_text_ends_no_row(tmp_path: Path) -> None:
    line = json.dumps({"instruction": "one\u2028two", "output": "x"}, ensure_ascii=False)
    (record,), _ = do_import(tmp_path, "alpaca", {"rows.jsonl": line})
    assert asked(record) == "one\u2028two"


def test_unknown_names_tell_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no format 'msrvtt': did you mean 'msrvtt-qa'"):
        import_records("msrvtt", [], None, tmp_path)
    for name, meant in [("TVQA", "tvqa"), ("RAVDESS", "ravdess"), ("MSRVTT_QA", "msrvtt-qa")]:
        with pytest.raises(ConfigError, match=f"did you mean '{meant}'"):
            import_records(name, [], None, tmp_path)
    with pytest.raises(RecordError, match="^.*none.json: there is no such annotation file: check its path$"):
        import_records("msrvtt-qa", [tmp_path / "none.json"], None, tmp_path)
    with pytest.raises(RecordError, match="is not a folder"):
        import_records("fsdd", [], tmp_path / "none", tmp_path)


def test_every_importer_says_what_it_needs() -> None:
    for name, importer in IMPORTERS.items():
        assert importer.fields, name
        assert importer.about.endswith((".", "said")), name


def test_the_command_says_what_was_left_out_and_not_found(tmp_path: Path, capsys) -> None:
    def printed(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(["data", *arguments])
        assert stopped.value.code == 0
        return " ".join(capsys.readouterr().out.split())

    media = folder(tmp_path, "03-01-06-01-02-01-12.wav", "notes.wav")
    out = printed("import", "ravdess", "--media", str(media), "--out", str(tmp_path / "out"))
    assert "1 records in" in out
    assert "left out: 1 × file names not like ravdess's, such as notes.wav" in out
    (tmp_path / "test.csv").write_text("audiocap_id,youtube_id,start_time,caption\n1,a,0,one\n")
    command = ["import", "audiocaps", "--annotations", str(tmp_path / "test.csv"), "--out", str(tmp_path)]
    assert "not found in" in printed(*command, "--media", str(media))
    assert "recordings were not looked for" in printed(*command)
    assert "[start - end] turn emotion" in printed("formats")
