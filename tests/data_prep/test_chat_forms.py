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


def test_lists_of_frames_are_folders_found_or_not(tmp_path: Path) -> None:
    row = {"query": "<video>?", "response": "x", "videos": [["f/2.png", "f/10.png"]]}
    (record,), _ = do_import(tmp_path, "chats", {"rows.json": [row]})
    assert record["messages"][0]["content"][0]["video"] == "f"
    (record,), report = do_import(tmp_path, "chats", {"rows.json": [row]}, folder(tmp_path, "a.mp4"))
    assert report.missing == ["f"]
    media = folder(tmp_path, "f/2.png", "f/10.png", "f.wav")
    (record,), _ = do_import(tmp_path, "chats", {"rows.json": [row]}, media)
    assert record["messages"][0]["content"][0] == {
        "type": "video", "video": "../media/f", "audio": "../media/f.wav",
    }  # fmt: skip
    row["videos"] = [["1.png", "2.png"]]
    media = folder(tmp_path / "flat", "1.png", "2.png")
    (record,), _ = do_import(tmp_path, "chats", {"rows.json": [row]}, media)
    assert record["messages"][0]["content"][0]["video"] == "../flat/media"


def test_alpaca_and_query_response(tmp_path: Path) -> None:
    first, second, third = chats(
        tmp_path,
        {"instruction": "Translate.", "input": "Haus", "output": "house"},
        {"query": "And now?", "response": "Night.", "history": [["Hi", "Hello"]], "system": "Be brief."},
        {"instruction": "And then?", "output": "Day.", "history": [["Hi", "Hello"]]},
    )
    assert parts(first) == [("text", "Translate.\nHaus")]
    assert [message["role"] for message in second["messages"]] == [
        "system", "user", "assistant", "user", "assistant",
    ]  # fmt: skip
    assert parts(third) == [("text", "Hi")]
    assert parts(third, 2) == [("text", "And then?")]


def test_conversations_with_tool_calls_are_left_out_and_counted(tmp_path: Path) -> None:
    tool = [{"from": "human", "value": "?"}, {"from": "function_call", "value": "{}"}]
    plain = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "x"}]
    openai = [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [{}]}]
    rows = [{"conversations": tool}, {"conversations": plain}, {"messages": openai}]
    records, report = do_import(tmp_path, "sharegpt", {"r.json": rows})
    assert len(records) == 1
    assert report.left_out == {"tool calls": 2}


def test_odd_conversations_are_left_out_and_counted(tmp_path: Path) -> None:
    user, gpt, system = ({"from": role, "value": role} for role in ("human", "gpt", "system"))
    empty = {"from": "gpt", "value": None}
    odd = [[gpt, user, gpt], [user, user, gpt], [system, system, user, gpt], [user, empty], [user, gpt]]
    (record,), report = do_import(
        tmp_path, "sharegpt", {"r.json": [{"conversations": turns} for turns in odd]}
    )
    assert record["id"] == "sharegpt/5"
    assert report.left_out == {"turns that do not alternate": 3, "empty question or answer": 1}


def test_grounding_is_left_out_and_counted(tmp_path: Path) -> None:
    objects = {"ref": ["cat"], "bbox": [[1, 2, 3, 4]]}
    row = {"query": "<image>find <ref-object>", "response": "<bbox>", "images": ["b.jpg"], "objects": objects}
    html = {"query": "What is <bbox>?", "response": "A tag."}
    records, report = do_import(tmp_path, "ms-swift", {"r.json": [row, html]})
    assert len(records) == 1
    assert report.left_out == {"grounding (objects)": 1}


@pytest.mark.parametrize("loss", [False, 0])
def test_sharegpt_turns_without_loss_are_not_trained(tmp_path: Path, loss: object) -> None:
    turns = [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "No.", "loss": loss}]
    turns += [{"from": "human", "value": "Two?"}, {"from": "gpt", "value": "Yes."}]
    (record,) = chats(tmp_path, {"conversations": turns})
    assert [turn.get("loss") for turn in record["messages"]] == [None, False, None, None]


def test_parts_that_the_row_names_the_files_of(tmp_path: Path) -> None:
    def content(*media: dict, **columns: object) -> list[tuple[str, str]]:
        asked = {"role": "user", "content": [*media, {"type": "text", "text": "?"}]}
        row = {"messages": [asked, {"role": "assistant", "content": "x"}]} | columns
        return parts(chats(tmp_path, row)[0])

    assert content({"type": "image"}, images=["b.jpg"]) == [("image", "b.jpg"), ("text", "?")]
    frames = ["frames/1.png", "frames/2.png"]
    assert content({"type": "video", "video": frames}) == [("video", "frames"), ("text", "?")]
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    assert content(sound)[0][0] == "audio"
    cut = {"type": "video", "video": "a.mp4", "start": 1.0, "end": 2.5}
    (record,) = chats(
        tmp_path, {"messages": [{"role": "user", "content": [cut]}, {"role": "assistant", "content": "x"}]}
    )
    assert record["messages"][0]["content"][0] == cut | {"video": "../media/a.mp4"}


def test_empty_names_of_media_are_none(tmp_path: Path) -> None:
    first, second = chats(
        tmp_path,
        {"query": "<video>?", "response": "x", "videos": None, "video": "a.mp4"},
        {"query": "What?", "response": "x", "video": ""},
    )
    assert parts(first) == [("video", "a.mp4"), ("text", "?")]
    assert parts(second) == [("text", "What?")]


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
        ({"query": "?", "response": "x", "videos": [3]}, "a video must be a path, not 3"),
        ({"query": "?", "response": "x", "videos": [""]}, "a video must be a path, not empty"),
        (
            {"query": "?", "response": "x", "videos": [["frames/2.png", "frames/1.png"]]},
            "frames out of order, or twice",
        ),
        (
            {"query": "?", "response": "x", "videos": [["frames/1.png", "frames/2.png", "frames/2.png"]]},
            "frames out of order, or twice",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "a part of type 'image' more than image files: name its file in it, or in the row's 'images'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "point", "point": 1}]}]},
            "a part of type 'point': give text, video, audio or image",
        ),
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
