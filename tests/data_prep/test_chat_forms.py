"""The chat forms of peers: LLaVA, ShareGPT and LLaMA-Factory, ms-swift, Alpaca, each told from its fields."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm import chat
from mllm.errors import RecordError
from tests.data_prep.test_importers import do_import, folder


def parts(record: dict, turn: int = 0) -> list[tuple[str, str]]:
    """(type, text or file name) of a turn."""
    return [
        (part["type"], part["text"] if part["type"] == "text" else Path(part[part["type"]]).name)
        for part in record["messages"][turn]["content"]
    ]


def chats(tmp_path: Path, *rows: dict) -> list[dict]:
    media = folder(tmp_path, "a.mp4", "a.wav", "b.jpg", "frames/1.png", "frames/2.png")
    return do_import(tmp_path, "chats", {"rows.json": list(rows)}, media)[0]


def test_llava(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<video>\nWhat is seen?"}, {"from": "gpt", "value": "A cat."}]
    (record,) = chats(tmp_path, {"id": "7", "video": "a.mp4", "conversations": turns})
    assert record["id"] == "chats/7"
    assert parts(record) == [("video", "a.mp4"), ("text", "What is seen?")]
    assert parts(record, 1) == [("text", "A cat.")]


def test_llama_factory_with_video_and_sound(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "<video><audio>What is it?"},
        {"role": "assistant", "content": "A song."},
        {"role": "user", "content": "And this?<image>"},
        {"role": "assistant", "content": "A face."},
    ]
    row = {"messages": messages, "videos": ["a.mp4"], "audios": ["a.wav"], "images": ["b.jpg"]}
    (record,) = chats(tmp_path, row)
    assert parts(record, 1) == [("video", "a.mp4"), ("audio", "a.wav"), ("text", "What is it?")]
    assert parts(record, 3) == [("text", "And this?"), ("image", "b.jpg")]
    assert record["task"] == "chat"


def test_content_lists(tmp_path: Path) -> None:
    content = [{"type": "image_url", "value": "b.jpg"}, {"type": "text", "value": "Who?"}]
    url = [{"type": "image_url", "image_url": {"url": "b.jpg"}}, {"type": "text", "text": "Who?"}]
    answer = {"role": "assistant", "content": [{"type": "text", "value": "She."}]}
    first, second = chats(
        tmp_path,
        {"messages": [{"role": "user", "content": content}, answer]},
        {"messages": [{"role": "user", "content": url}, answer]},
    )
    assert parts(first) == parts(second) == [("image", "b.jpg"), ("text", "Who?")]


def test_ms_swift_turns_without_loss_are_not_trained(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "No.", "loss": False},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Yes."},
    ]
    (record,) = chats(tmp_path, {"messages": messages})
    assert record["messages"][1]["loss"] is False
    trained = [segment.text for segment in chat.render(record["messages"]) if segment.trained]
    assert trained == ["Yes.", chat.END_TOKEN]


def test_ms_swift_lists_of_frames(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "<video>What?"}, {"role": "assistant", "content": "It."}]
    (record,) = chats(tmp_path, {"messages": messages, "videos": [["frames/1.png", "frames/2.png"]]})
    assert parts(record)[0] == ("video", "frames")
    with pytest.raises(
        RecordError, match="1 frames of .*frames, which holds 2: a folder of frames is read whole"
    ):
        chats(tmp_path, {"messages": messages, "videos": [["frames/1.png"]]})


def test_alpaca_and_query_response(tmp_path: Path) -> None:
    first, second = chats(
        tmp_path,
        {"instruction": "Translate.", "input": "Haus", "output": "house"},
        {"query": "And now?", "response": "Night.", "history": [["Hi", "Hello"]], "system": "Be brief."},
    )
    assert parts(first) == [("text", "Translate.\nHaus")]
    assert [message["role"] for message in second["messages"]] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip


def test_conversations_with_tool_calls_are_left_out_and_counted(tmp_path: Path) -> None:
    tool = [{"from": "human", "value": "?"}, {"from": "function_call", "value": "{}"}]
    plain = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "x"}]
    records, report = do_import(
        tmp_path, "sharegpt", {"r.json": [{"conversations": tool}, {"conversations": plain}]}
    )
    assert len(records) == 1
    assert report.left_out == {"tool calls": 1}


def test_a_tag_in_a_conversation_without_media_is_text(tmp_path: Path) -> None:
    (record,) = chats(tmp_path, {"query": "What does <video> do in HTML?", "response": "It plays."})
    assert parts(record) == [("text", "What does <video> do in HTML?")]


def test_llavas_video_rows_say_image(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "It."}]
    (record,) = chats(tmp_path, {"conversations": turns, "video": "a.mp4"})
    assert parts(record) == [("video", "a.mp4"), ("text", "What?")]


def test_ms_swifts_media_with_a_path(tmp_path: Path) -> None:
    (record,) = chats(
        tmp_path, {"query": "<image>?", "response": "x", "images": [{"path": "a.png", "bytes": None}]}
    )
    assert parts(record) == [("image", "a.png"), ("text", "?")]


def test_media_without_a_tag_come_first(tmp_path: Path) -> None:
    (record,) = chats(tmp_path, {"query": "What?", "response": "It.", "videos": ["a.mp4"]})
    assert parts(record) == [("video", "a.mp4"), ("text", "What?")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"query": "<video><video>?", "response": "x", "videos": ["a.mp4"]},
            "more <video> tags than video files",
        ),
        (
            {"query": "<video>?", "response": "x", "videos": ["a.mp4"], "audios": ["a.wav"]},
            "1 audio file.s. more",
        ),
        ({"text": "?"}, "none of the known forms .it has text."),
        ({"messages": [{"role": "narrator", "content": "x"}]}, "a turn of 'narrator': known are human"),
        ({"query": "?", "response": "x", "videos": [["data:image/png;base64,AA"]]}, "frames must be files"),
        ({"messages": "x"}, "messages must be a list of objects"),
        ({"messages": [{"role": "user", "content": 3}]}, "a turn's text must be a string, not int"),
        ({"query": "?", "response": "x", "videos": [3]}, "a video must be a path, not int"),
        (
            {"query": "?", "response": "x", "videos": [["a/1.png", "b/2.png"]]},
            "the frames of a video must lie in one folder, not in 2",
        ),
    ],
)
def test_bad_rows(tmp_path: Path, row: dict, message: str) -> None:
    with pytest.raises(RecordError, match=f"rows.json row 1: {message}"):
        chats(tmp_path, row)


def test_a_conversation_that_ends_with_a_question_is_counted(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "?"}]}, {"query": "?", "response": "x"}]
    _, report = do_import(tmp_path, "chats", {"rows.json": rows})
    assert report.left_out == {"no answer at the end": 1}
