"""Batches: the same for the same number, aligned with the towers' rows, packed behind shared media."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile
import torch

from mllm.errors import RecordError
from mllm.experiment import Augment
from mllm.media.clip import Clip
from mllm.models.encoded import IGNORE
from mllm.records import chat
from mllm.records.record import answered, write_records
from mllm.records.source import open_source
from train.conversations import by_prefix, caption_conversations
from train.data import PairCollator, QuestionCollator, TextCollator, number_dataset

HELLO = [{"role": "user", "content": "hello?"}]
ROWS = [{"number": number} for number in range(8)]


def test_a_run_counts_its_examples_through():
    numbers = number_dataset(3, 4)
    assert numbers["number"][:] == list(range(12))


def test_every_epoch_shows_every_scene_once_in_another_order(tiny):
    class Ten:
        name = "ten"

        def __len__(self):
            return 10

    collator = TextCollator(Ten(), tiny[1], seed=3)
    epochs = [[collator.order(10 * epoch + i).scene for i in range(10)] for epoch in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]
    assert epochs[0] == [TextCollator(Ten(), tiny[1], seed=3).order(i).scene for i in range(10)]


@pytest.mark.parametrize("kind", ["text", "pair", "question"])
def test_a_batch_depends_on_its_numbers_alone(kind, tiny, world):
    def batch():
        processor = tiny[1]
        if kind == "text":
            return TextCollator(world, processor, 0)(ROWS)
        if kind == "pair":
            return PairCollator(world, processor, 0, 64)(ROWS)
        return QuestionCollator(world, processor, 0, 3, 64)(ROWS)

    first, again = batch(), batch()
    spaces = [b.pop("space", {}) for b in (first, again)]
    for one, two in ((first, again), spaces):
        assert one.keys() == two.keys()
        for name in one:
            assert torch.equal(one[name], two[name]), name


@pytest.mark.parametrize("augmentation", [None, Augment(paraphrase=True, jitter=0.2)])
def test_a_training_step_checks_each_conversation_once(tiny, world, tmp_path, checks, augmentation):
    processor = tiny[1]
    batch = QuestionCollator(world, processor, 0, 3, 64, augmentation)
    asked = sum(min(3, len(world.conversations(batch.order(row["number"]).scene))) for row in ROWS)
    batch(ROWS)
    assert len(checks) == asked

    write_records(tmp_path / "talk.jsonl", [{"messages": HELLO, "answer": str(n)} for n in range(4)])
    source = open_source(str(tmp_path / "talk.jsonl"))
    checks.clear()
    QuestionCollator(source, processor, 0, 3, None, augmentation)(ROWS[:4])
    assert len(checks) == 4, "when the row is read"


def test_text_trains_one_copy_of_what_is_told_and_every_answer(tiny, world):
    _, processor = tiny
    collator = TextCollator(world, processor, 0)
    batch = collator(ROWS)
    for row, ids, labels in zip(ROWS, batch["input_ids"], batch["labels"], strict=True):
        conversations = world.text(collator.order(row["number"]).scene)
        assert processor.tokenizer.decode(ids).count(chat.END_TOKEN) >= 2 * len(conversations)
        trained = processor.tokenizer.decode(labels[labels != IGNORE])
        told = "".join(part["text"] for part in conversations[0][0]["content"][:-1])
        assert told in trained.split(chat.END_TOKEN)[0]
        assert trained.count("[00:00]") == told.count("[00:00]")  # one copy: no answer has the marks
        for messages in conversations:
            assert messages[-1]["content"][0]["text"] + chat.END_TOKEN in trained
            assert messages[0]["content"][-1]["text"] not in trained


@pytest.mark.parametrize("collator", [PairCollator, lambda *a: QuestionCollator(*a[:3], 3, a[3])])
def test_space_rows_are_the_towers_rows(collator, tiny, world):
    model, processor = tiny
    batch = collator(world, processor, 0, 64)(ROWS)
    space = batch["space"]
    names = ("pixel_values", "image_values", "input_features", "window_counts")
    queries = model.model.query_outputs(**{name: batch[name] for name in names if name in batch})
    assert {name: len(rows) for name, rows in queries.items()} == {
        name: total for name in ("video", "image", "audio") if (total := int(space[f"{name}_windows"].sum()))
    }
    told = space["captions"]
    assert told.max() == len(space["text_ids"]) - 1
    # A clip has an audio caption only if it has audio rows, and so on.
    assert (space["audio_windows"][told[:, 1] >= 0] > 0).all()
    assert ((space["video_windows"] + space["image_windows"])[told[:, 0] >= 0] > 0).all()
    # Equal rows in the text table are equal ids, and the other way round.
    same_row = told[:, None, 0] == told[None, :, 0]
    both = (told[:, None, 0] >= 0) & (told[None, :, 0] >= 0)
    same_id = space["caption_ids"][:, None, 0] == space["caption_ids"][None, :, 0]
    assert torch.equal(same_row & both, same_id & both)


def test_captions_that_records_carry_come_before_extra_pairs(tiny, world):
    class Carrying:
        name = "carrying"

        def __len__(self):
            return 100

        def conversations(self, index):
            captions = {"video": ["a red star."], "audio": [], "both": []}
            return [record | {"captions": captions} for record in world.conversations(index)]

        def pair(self, index):
            raise AssertionError("no need for pairs")

    batch = QuestionCollator(Carrying(), tiny[1], 0, 2, 64)(ROWS)
    assert batch["space"]["text_ids"].shape[0] == 1
    assert (batch["space"]["captions"][:, 0] == 0).any()
    assert "space" not in QuestionCollator(Carrying(), tiny[1], 0, 2)(ROWS)


def test_requests_for_captions_cover_both_sides(world):
    pair = next(p for p in map(world.pair, range(50)) if p["captions"]["both"])
    odd, even = caption_conversations(pair, 1), caption_conversations(pair, 2)
    assert [c[1].text for c in odd] == [pair["labels"]["timeline_both"]]
    assert [c[1].text for c in even] == [pair["labels"][f"timeline_{k}"] for k in ("video", "audio")]
    assert all(c.media[0].source is pair["clip"] for c in odd + even)
    silent = next(p for p in map(world.pair, range(200)) if p["labels"]["form"] == "video")
    assert len(caption_conversations(silent, 1)) == 1


def test_captions_without_timelines_take_turns(world):
    clip = world.pair(0)["clip"]
    pair = {"clip": clip, "captions": {"video": ["one.", "two."], "audio": None, "both": []}, "labels": {}}
    said = [caption_conversations(pair, number)[0][1].text for number in range(3)]
    assert said == ["one.", "two.", "one."]


def test_captions_of_a_recording_take_turns_from_epoch_to_epoch(tiny, tmp_path):
    paths = [tmp_path / f"{number}.wav" for number in range(3)]
    for path in paths:
        soundfile.write(path, np.zeros(8000, np.float32), 16_000)
    rows = [
        {
            "id": path.name,
            "messages": [{"role": "user", "content": [{"type": "audio", "audio": str(path)}]}],
            "captions": {"audio": [f"{path.name} {turn}" for turn in range(2)]},
        }
        for path in paths
    ]
    write_records(tmp_path / "rows.jsonl", rows)
    collator = PairCollator(open_source(str(tmp_path / "rows.jsonl")), tiny[1], 0, 64)
    said = [collator.pair(number)["captions"]["audio"] for number in range(9)]
    first, second, third = (set(said[n : n + 3]) for n in (0, 3, 6))
    assert first == third == {f"{path.name} 0" for path in paths}
    assert second == {f"{path.name} 1" for path in paths}


def test_conversations_are_grouped_by_the_recordings_they_begin_with(world):
    one, two = (world.pair(i)["clip"] for i in (0, 1))

    def asks(clip: Clip, text: str):
        part = {"type": "video", "video": clip}
        return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]

    groups = by_prefix([asks(one, "a?"), asks(two, "b?"), asks(one, "c?"), asks(one, "c?")])
    assert [len(group) for group in groups] == [3, 1]


def test_a_record_without_the_assistants_words_gets_its_answer():
    record = {"messages": [{"role": "user", "content": "hi?"}], "answer": "hello."}
    answer = answered(record)[-1]
    assert (answer.role, answer.text) == ("assistant", "hello.")
    assert chat.validate_messages(answered(record))


def test_a_source_without_texts_says_what_to_do(tiny):
    class Mute:
        name = "mute"

        def __len__(self):
            return 5

        def text(self, index):
            return []

    with pytest.raises(RecordError, match="mute has no conversations without media"):
        TextCollator(Mute(), tiny[1], 0)(ROWS)
