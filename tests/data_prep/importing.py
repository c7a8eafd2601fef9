"""What the tests of importers share: annotation files written, imported, and read again."""

from __future__ import annotations

import json
from pathlib import Path

from data_prep.importers.write import import_records

QUESTION = {"question": "who opens a box?", "answer": "man"}
MUSIC = {
    "video_id": "00000086", "question_id": 28, "type": "[\"Audio-Visual\", \"Existential\"]",
    "question_content": "Is the <Object> in the video always playing?", "templ_values": "[\"violin\"]",
    "question_deleted": 0, "anser": "no",
}  # fmt: skip
TVQA = {
    "a0": "A martini glass", "a1": "Nachos", "a2": "Her purse", "a3": "A book", "a4": "A beer bottle",
    "answer_idx": 4, "q": "What is Robin holding?", "qid": 7, "ts": "1.21-8.49",
    "vid_name": "met_s06e22_seg01_clip_02", "show_name": "How I Met Your Mother",
}  # fmt: skip
SUBTITLES = {
    "vid_name": "met_s06e22_seg01_clip_02",
    "sub": [
        {"text": "( Robin :) Hi.", "start": 0.4, "end": 1.0},
        {"text": "Look!", "start": 5.2, "end": 6.0},
    ],
}
IEMOCAP = """% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]

[6.2901 - 8.2357]\tSes01F_impro01_F000\tneu\t[2.5000, 2.5000, 2.5000]
C-E2:\tNeutral;\t()
[10.0100 - 11.3925]\tSes05M_impro01_M001\texc\t[2.5000, 2.5000, 2.5000]
[14.8872 - 18.0175]\tSes01F_impro01_F002\txxx\t[2.5000, 2.5000, 2.5000]
"""


def do_import(tmp_path: Path, name: str, files: dict[str, object], media: Path | None = None, **options):
    """Writes annotation files, imports them, and returns (records, report); text is written as it is."""
    paths = []
    for file, content in files.items():
        path = tmp_path / file
        if not isinstance(content, str):
            lines = path.suffix == ".jsonl"
            content = "\n".join(map(json.dumps, content)) if lines else json.dumps(content)
        path.write_text(content, encoding="utf-8")
        paths.append(path)
    report = import_records(name, paths, media, tmp_path / "out", **options)
    return read(tmp_path / "out" / "records.jsonl"), report


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def asked(record: dict) -> str:
    return "".join(part.get("text", "") for part in record["messages"][0]["content"])


def medium(record: dict) -> dict:
    return record["messages"][0]["content"][0]


def folder(tmp_path: Path, *names: str) -> Path:
    media = tmp_path / "media"
    for name in names:
        (media / name).parent.mkdir(parents=True, exist_ok=True)
        (media / name).write_bytes(b"x")
    return media
