"""Packing the examples of a batch into rows, so that less of it is padding."""

import numpy as np
import pytest
import soundfile
import torch

from mllm.models.encoded import IGNORE
from mllm.records.record import write_records
from mllm.records.source import open_source
from tests.tiny import ask, clip, tiny
from train.data import QuestionCollator
from train.packing import LONGEST, join, pack


def test_examples_share_rows_of_one_length():
    assert pack([100, 60, 90, 70], kinds=[True] * 4) == [[0, 1], [2, 3]]


def test_examples_of_different_kinds_do_not_share_a_row():
    rows = pack([40, 40, 40, 40], kinds=[True, False, True, False])
    assert rows == [[0, 2], [1, 3]]


def test_one_long_example_sets_the_length():
    assert pack([900, 300, 500], kinds=[True] * 3) == [[0], [1, 2]]


@pytest.mark.parametrize("seed", range(5))
def test_every_example_is_in_one_row_and_no_row_is_too_long(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 200, size=16).tolist()
    rows = pack(lengths, kinds=rng.integers(2, size=16).tolist())
    assert sorted(i for row in rows for i in row) == list(range(16))
    assert max(sum(lengths[i] for i in row) for row in rows) <= LONGEST


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_examples_in_a_row_cost_what_they_cost_alone(attention):
    model, processor = tiny()
    model.set_attn_implementation(attention)
    recording = clip(4)
    examples = [
        processor.encode_group([ask(recording, f"question {i}?", answer="yes") for i in range(3)]),
        processor.encode(ask(clip(2, seed=1), "what colour?", answer="red")),
        processor.encode_group([ask(clip(2, seed=2), f"which {i}?", answer="a star") for i in range(2)]),
    ]
    row = processor.collate([join(examples)])
    assert len(row["input_ids"]) == 1
    alone = [processor.collate([example]) for example in examples]
    counts = [int((batch["labels"] != IGNORE).sum()) for batch in alone]
    losses = [model(**batch).loss.item() for batch in alone]
    expected = np.average(losses, weights=counts)
    assert model(**row).loss.item() == pytest.approx(expected, abs=1e-5)


def test_captions_stay_with_their_recordings(tmp_path):
    _, processor = tiny()
    rows = []
    for seconds in (2, 6, 4):
        path = tmp_path / f"{seconds}.wav"
        soundfile.write(path, np.zeros(16_000 * seconds, np.float32), 16_000)
        question = [{"type": "audio", "audio": str(path)}, {"type": "text", "text": "how long?"}]
        messages = [{"role": "user", "content": question}]
        rows.append({"id": path.stem, "messages": messages, "answer": path.stem, "captions": [path.stem]})
    write_records(tmp_path / "sounds.jsonl", rows)
    source = open_source(str(tmp_path / "sounds.jsonl"))
    space = QuestionCollator(source, processor, 0, 1, 8)([{"number": n} for n in range(3)])["space"]
    told = map(processor.tokenizer.decode, space["text_ids"][space["captions"][:, 1], :1])
    windows = dict(zip(told, space["audio_windows"].tolist(), strict=True))
    assert windows == {"2": 1, "4": 2, "6": 3}
