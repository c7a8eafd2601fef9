"""Batches whose shapes come again: what is added changes no result."""

from __future__ import annotations

import torch

from mllm.search.embedder import text_inputs
from train.data import PairCollator, QuestionCollator, TextCollator
from train.run import prepare_model
from train.shapes import ROWS, TOKENS, pad_rows
from train.stages.instruct import InstructStage


def test_added_rows_change_no_result_and_no_gradient():
    torch.manual_seed(0)
    plain, padded = torch.nn.Linear(6, 4), torch.nn.Linear(6, 4)
    padded.load_state_dict(plain.state_dict())
    pad_rows(padded)
    rows = torch.randn(ROWS + 3, 5, 6)
    for layer in (plain, padded):
        layer(rows).square().sum().backward()
    torch.testing.assert_close(padded(rows), plain(rows))
    torch.testing.assert_close(padded.weight.grad, plain.weight.grad)


def test_towers_of_a_prepared_model_compute_multiples_and_answer_as_before(experiment, tiny, world):
    model, processor = tiny
    batch = QuestionCollator(world, processor, 0, 4)([{"number": number} for number in range(6)])
    seen = []
    model.model.video_tower.encoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    plain = model(**batch).loss
    prepare_model(model, InstructStage().open(experiment))
    torch.testing.assert_close(model(**batch).loss, plain)
    half = len(seen) // 2
    assert any(rows > ROWS and rows % ROWS for rows in seen[:half])
    assert not any(rows > ROWS and rows % ROWS for rows in seen[half:])
    assert [rows for rows in seen[half:] if rows < ROWS] == [rows for rows in seen[:half] if rows < ROWS]


def test_every_stage_pads_to_multiples(tiny, world):
    _, processor = tiny
    rows = [{"number": number} for number in range(5)]
    for collator in (
        TextCollator(world, processor, 0),
        PairCollator(world, processor, 0, 64),
        QuestionCollator(world, processor, 0, 4, text_tokens=64),
    ):
        batch = collator(rows)
        assert {batch[name].shape[1] % TOKENS for name in ("input_ids", "labels", "position_ids")} == {0}
        if "space" in batch:
            assert batch["space"]["text_ids"].shape[1] % ROWS == 0


def test_captions_are_not_padded_past_what_the_text_tower_reads(tiny):
    _, processor = tiny
    long = text_inputs(processor, ["a red star " * 20], 20, pad_to_multiple_of=16)
    assert long["input_ids"].shape == (1, 20)
