"""Annotations and subtitles in other encodings: told where it is certain, asked for where it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep.importers.encodings import decoded
from data_prep.importers.write import import_records
from mllm.errors import ConfigError, RecordError
from tests.data_prep.importing import TVQA, asked, read

CHINESE = [
    ("视频里的人在做什么？", "他在厨房里切菜，然后把菜放进锅里，最后加了一点盐。"),
    ("这段录音里能听到什么声音？", "可以听到雨声和远处的雷声，还有一个女人在说话。"),
]
RUSSIAN = [
    ("Что делает человек на видео?", "Он режет овощи на кухне и кладёт их в большую кастрюлю с водой."),
    ("Какие звуки слышны?", "Слышны дождь, далёкий гром и голос женщины, которая говорит о погоде."),
    ("Какого цвета машина?", "Справа стоит красная машина, рядом с ней двое детей играют в мяч."),
]
JAPANESE = [
    (
        "この動画では何が聞こえますか？",
        "雨の音と遠くの雷の音が聞こえます。女の人が話しています。",
    ),
    ("画面の右には何がありますか？", "赤い車が止まっていて、そのそばで二人の子供がボールで遊んでいます。"),
]


def chats(pairs: list[tuple[str, str]], encoding: str) -> bytes:
    rows = [{"query": question, "response": answer} for question, answer in pairs]
    return json.dumps(rows, ensure_ascii=False).encode(encoding)


@pytest.mark.parametrize(
    ("pairs", "encoding", "told"),
    [(CHINESE, "gbk", "gb18030"), (RUSSIAN, "cp1251", "cp1251"), (JAPANESE, "cp932", "cp932")],
)
def test_enough_text_tells_its_encoding(tmp_path: Path, pairs: list, encoding: str, told: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(chats(pairs, encoding))
    report = import_records("chats", [path], None, tmp_path / "out")
    record = read(tmp_path / "out" / "records.jsonl")[0]
    assert (asked(record), record["messages"][1]["content"][0]["text"]) == pairs[0]
    assert report.noted == {f"file read as {told}, not UTF-8: check its texts": 1}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("你好", "gbk"),
        ("你好，世界", "gbk"),
        ("it’s a dog’s life", "cp1252"),
        ("crème brûlée – “naïve…”", "cp1252"),
        ("비가 온다. 빗소리", "cp949"),
        ("źdźbło żółć", "cp1250"),
        ("Was hört man? Vögel.", "cp1252"),
    ],
)
def test_a_few_characters_are_asked_about_and_never_guessed(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(chats([(text, "x")], encoding))
    with pytest.raises(RecordError, match=r"r.json: is not text in UTF-8, .* cannot be told.*--encoding"):
        import_records("chats", [path], None, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = import_records("chats", [path], None, tmp_path / "out", encoding=encoding)
    assert asked(read(tmp_path / "out" / "records.jsonl")[0]) == text
    assert report.noted == {f"file read as {encoding}": 1}


def test_files_in_utf8_stay_so_beside_others(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(chats([("你好", "x")], "gbk"))
    (tmp_path / "b.json").write_bytes(chats([("世界", "x")], "utf-8"))
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    import_records("chats", paths, None, tmp_path / "out", encoding="gbk")
    assert [asked(record) for record in read(tmp_path / "out" / "records.jsonl")] == ["你好", "世界"]


def test_damaged_utf8_is_no_other_encoding_and_costs_its_rows(tmp_path: Path) -> None:
    rows = [{"query": question, "response": answer} for question, answer in CHINESE * 3]
    lines = [json.dumps(row | {"id": number}, ensure_ascii=False).encode() for number, row in enumerate(rows)]
    lines[2] = lines[2].replace("他".encode(), "他".encode()[:2])
    (tmp_path / "r.jsonl").write_bytes(b"\n".join(lines))
    report = import_records("chats", [tmp_path / "r.jsonl"], None, tmp_path / "out")
    assert (report.records, report.left_out) == (5, {"half a character in its text": 1})
    assert report.noted == {"file with damaged characters: rows that have them are left out": 1}
    assert asked(read(tmp_path / "out" / "records.jsonl")[0]) == CHINESE[0][0]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_tells(encoding: str) -> None:
    assert decoded("你好".encode(encoding), "r.csv")[0] == "你好"


def test_a_wrong_name_of_an_encoding_is_told(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(chats(RUSSIAN, "cp1251"))
    with pytest.raises(RecordError, match=r"r.json: is not text in ascii \(byte 12\): give another"):
        import_records("chats", [path], None, tmp_path / "out", encoding="ascii")
    for name in ("gb999", "base64"):
        with pytest.raises(ConfigError, match=f"--encoding {name}: there is none of that name: write"):
            import_records("chats", [path], None, tmp_path / "out", encoding=name)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x1f\x8b\x08\0", "is compressed: unpack it first"),
        (b"PK\x03\x04\0", "is an archive, or a spreadsheet: unpack it, or save it as CSV"),
        (b"a\0b", "is not text in UTF-8: save it as UTF-8, or give --encoding utf-16-le"),
    ],
)
def test_what_is_no_text_is_called_what_it_is(data: bytes, what: str) -> None:
    with pytest.raises(RecordError, match=f"^x.csv: {what}"):
        decoded(data, "x.csv")


def test_subtitles_are_told_and_asked_about_likewise(tmp_path: Path) -> None:
    def subtitled(line: str, encoding: str, named: str | None = None) -> tuple[str, dict]:
        srt = tmp_path / f"{TVQA['vid_name']}.srt"
        srt.write_bytes(f"1\n00:00:01,000 --> 00:00:02,000\n{line}\n".encode(encoding))
        report = import_records("tvqa", [tmp_path / "v.jsonl", srt], None, tmp_path / "out", encoding=named)
        return asked(read(tmp_path / "out" / "records.jsonl")[0]), report.noted

    (tmp_path / "v.jsonl").write_text(json.dumps(TVQA))
    long = "".join(answer for _, answer in CHINESE)
    text, noted = subtitled(long, "gbk")
    assert f"[00:01] {long}" in text
    assert noted == {"file read as gb18030, not UTF-8: check its texts": 1}
    with pytest.raises(RecordError, match=r"\.srt: is not text in UTF-8, .* cannot be told.*--encoding"):
        subtitled("你好", "gbk")
    assert "[00:01] 你好" in subtitled("你好", "gbk", "gb18030")[0]
    assert "[00:01] At the café over there" in subtitled("At the café over there", "iso-8859-1")[0]


def test_seven_bits_are_no_ascii() -> None:
    """ISO-2022 and UTF-7 look like ASCII: nobody would see what their texts became."""
    text = "今日は天気がいいです"
    with pytest.raises(RecordError, match="^a.srt: is in ISO-2022: give --encoding iso2022_jp"):
        decoded(text.encode("iso2022_jp"), "a.srt")
    for encoding in ("iso2022_jp", "utf-7"):
        assert decoded(text.encode(encoding), "a.srt", named=encoding) == (text, encoding)
        assert decoded(text.encode(), "a.srt", named=encoding) == (text, "utf-8")
