"""The chat forms of peers: LLaVA, ShareGPT and LLaMA-Factory, ms-swift, Alpaca, each told from its fields."""

from __future__ import annotations

from pathlib import Path

import pytest

from mllm.errors import RecordError
from mllm.records import chat
from mllm.records.chat_form import render
from tests.data_prep.test_importers import do_import, folder

ANSWER = {"role": "assistant", "content": "x"}
FLAGGED = {"type": "text", "text": "x", "loss": False}


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
    trained = [segment.text for segment in render(record["messages"]) if segment.trained]
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
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]},
            "a part of type 'image' more than image files: name its file in it, or in the row's 'images'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "point", "point": 1}]}, ANSWER]},
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


EXCHANGE = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "x"}]


@pytest.mark.parametrize(
    "row",
    [
        {"query": "?", "response": "x", "label": False},
        {"conversations": EXCHANGE, "kto_tag": False},
        {"instruction": "?", "output": "x", "rejected": True},
        {"prompt": "?", "completion": "x", "label": False},
        {"prompt": "?", "completion": "x", "label": 0},
        {"prompt": [{"role": "user", "content": "?"}], "completion": [ANSWER], "label": "False"},
        {"messages": [{"role": "user", "content": "?"}, ANSWER], "weight": 0},
        {"messages": [{"role": "user", "content": "?"}, ANSWER | {"weight": 0}]},
        {"conversations": EXCHANGE, "mask": "gpt"},
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": [FLAGGED]}]},
    ],
)
def test_rows_that_are_not_to_be_learned_are_left_out_and_counted(tmp_path: Path, row: dict) -> None:
    good = {"query": "Who?", "response": "She.", "label": True}
    masked = {"conversations": EXCHANGE, "mask": "human"}
    records, report = do_import(tmp_path, "chats", {"r.json": [good, masked, row]})
    assert len(records) == 2
    ((reason, count),) = report.left_out.items()
    assert (count, reason[:19]) == (1, "not to be learned (")


@pytest.mark.parametrize(
    "flag",
    [{"weight": 0}, {"train": False}, {"mask": True}, {"loss_scale": 0}, {"rejected": True}, {"learn": "no"}],
)
@pytest.mark.parametrize("field", ["messages", "conversations"])
def test_turns_that_are_not_to_be_learned_are_context(tmp_path: Path, flag: dict, field: str) -> None:
    role, text = ("role", "content") if field == "messages" else ("from", "value")
    said = [("user", "One?"), ("assistant", "No."), ("user", "Two?"), ("assistant", "Yes.")]
    turns = [{role: who, text: what} for who, what in said]
    turns[1] |= flag
    (record,) = chats(tmp_path, {field: turns})
    assert [turn.get("loss") for turn in record["messages"]] == [None, False, None, None]


def test_of_two_answers_the_chosen_one_is_learned(tmp_path: Path) -> None:
    question, worse = {"role": "user", "content": "?"}, {"role": "assistant", "content": "worse"}
    rows = [
        {"prompt": "?", "chosen": "x", "rejected": "worse"},
        {"prompt": [question], "chosen": [ANSWER], "rejected": [worse]},
        {"chosen": [question, ANSWER], "rejected": [question, worse]},
        {"prompt": "?", "chosen": [question, ANSWER], "rejected": [question, worse]},
        {"conversations": EXCHANGE[:1], "chosen": EXCHANGE[1], "rejected": {"from": "gpt", "value": "worse"}},
        {"instruction": "?", "chosen": "x", "rejected": "worse"},
        {"query": "?", "response": "x", "rejected_response": "worse"},
        {"input": {"messages": [question]}, "preferred_output": [ANSWER], "non_preferred_output": [worse]},
    ]
    records, _ = do_import(tmp_path, "chats", {"r.json": [row | {"id": i} for i, row in enumerate(rows)]})
    assert [parts(record) + parts(record, 1) for record in records] == [[("text", "?"), ("text", "x")]] * 8


@pytest.mark.parametrize(
    "history",
    [
        [["Hi", "Hello"]],
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
        [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]],
        [{"query": "Hi", "response": "Hello"}],
        [{"human": "Hi", "assistant": "Hello"}],
        '[["Hi", "Hello"]]',
    ],
)
def test_history_in_every_form(tmp_path: Path, history: object) -> None:
    (record,) = chats(tmp_path, {"query": "And now?", "response": "Night.", "history": history})
    said = [turn["content"][0]["text"] for turn in record["messages"]]
    assert said == ["Hi", "Hello", "And now?", "Night."]


@pytest.mark.parametrize(
    "history", [["ab"], ["Hi", "Yes"], [["Hi"]], [[1, 2]], "Hi", [{"a": "Hi", "b": "x"}]]
)
def test_history_that_is_none_is_refused(tmp_path: Path, history: object) -> None:
    with pytest.raises(
        RecordError, match="rows.json row 1: (history must be|an object of history with a, b)"
    ):
        chats(tmp_path, {"query": "?", "response": "x", "history": history})


def test_history_keeps_what_is_not_to_be_learned(tmp_path: Path) -> None:
    history = [{"query": "Hi", "response": "Hello", "loss": False}, {"role": "user", "content": "So?"}]
    history += [{"role": "assistant", "content": "So.", "weight": 0}]
    (record,) = chats(tmp_path, {"query": "And now?", "response": "Night.", "history": history})
    assert [turn.get("loss") for turn in record["messages"]] == [None, False, None, False, None, None]


@pytest.mark.parametrize("said", ["Write <image>.", "<video> and <image_1>", "</video>", "<|image_pad|>"])
def test_answers_are_untouched(tmp_path: Path, said: str) -> None:
    row = {"query": "<image>What?", "response": said, "videos": ["a.mp4"], "history": [["Hi", said]]}
    (record,) = chats(tmp_path, row)
    assert [parts(record, turn) for turn in (1, 3)] == [[("text", said)]] * 2
    assert parts(record, 2) == [("video", "a.mp4"), ("text", "What?")]
    (record,) = chats(tmp_path, {"query": "What?", "response": said, "videos": ["a.mp4"]})
    assert parts(record) == [("video", "a.mp4"), ("text", "What?")]


@pytest.mark.parametrize(
    "asked",
    [
        "<image_1>What?<image_2>",
        "<image0>What?<image1>",
        "<|image_1|>What?<|image 2|>",
        "<IMAGE>What?<Image>",
    ],
)
def test_numbered_placeholders_stand_for_the_rows_files(tmp_path: Path, asked: str) -> None:
    (record,) = chats(tmp_path, {"query": asked, "response": "x", "images": ["b.jpg", "frames/1.png"]})
    assert parts(record) == [("image", "b.jpg"), ("text", "What?"), ("image", "1.png")]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("<image_2>What?<image_1>", "placeholders <image_N> out of order, or twice"),
        ("<video>a.mp4</video>?", "</video> in a question is another model's"),
        ("<|vision_start|><|image_pad|><|vision_end|>?", "<|vision_start|> in a question is another model's"),
        ("<image><ImageHere>?", "<ImageHere> in a question is another model's"),
        ("[IMG]?", "[IMG] in a question is another model's"),
        ("[image]?", "[image] in a question is another model's"),
        ("[Image 2]?", "[Image 2] in a question is another model's"),
        ("{{image}}?", "{{image}} in a question is another model's"),
        ("<frame>?", "<frame> in a question is another model's"),
        (
            [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "<image>"}],
            "more <image> tags than",
        ),
    ],
)
def test_placeholders_of_one_model_are_no_text(tmp_path: Path, asked: object, told: str) -> None:
    row = {"messages": [{"role": "user", "content": asked}, ANSWER], "images": ["b.jpg", "frames/1.png"]}
    good = {"query": "?", "response": "x"}
    records, report = do_import(tmp_path, "chats", {"rows.json": [good, row]})
    assert len(records) == 1
    assert next(iter(report.left_out)).startswith(told)


def test_what_looks_like_a_placeholder_without_a_recording_is_told(tmp_path: Path) -> None:
    tags = ("<video>", "<image_1>", "</video>")
    rows = [{"query": f"What does {tag} mean?", "response": "x"} for tag in tags]
    records, report = do_import(tmp_path, "chats", {"rows.json": rows})
    assert parts(records[1]) == [("text", "What does <image_1> mean?")]
    assert report.noted == {f"{tag} in a row that names no recording: kept as text": 1 for tag in tags}
