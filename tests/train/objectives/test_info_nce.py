"""InfoNCE against numbers worked out by hand, and across processes against one process."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from train.objectives.info_nce import caption_id, info_nce

LEFT = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
RIGHT = torch.tensor([[0.8, 0.6], [0.0, 1.0], [1.0, 0.0]])
DIFFERENT = torch.tensor([[1], [2], [3]])
HERE = torch.tensor([True, True, True])


def test_info_nce_is_the_symmetric_cross_entropy_where_all_captions_differ():
    logits = 2.0 * LEFT @ RIGHT.T
    own = torch.arange(3)
    expected = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(info_nce(LEFT, RIGHT, 2.0, DIFFERENT, HERE), expected)


def test_equal_captions_leave_each_others_denominator():
    # Rows 0 and 2 say the same, so 0 is told from 1 alone, 2 from 1 alone, and 1 from both.
    ids = torch.tensor([[7], [8], [7]])
    rows = [[0.8, 0.0], [0.6, 1.0, 0.0], [0.6, 0.8]]  # left i · the rights that count for it
    columns = [[0.8, 0.6], [0.0, 1.0, 0.8], [0.0, 0.6]]  # right i · the lefts that count for it
    own_row, own_column = [0.8, 1.0, 0.6], [0.8, 1.0, 0.6]
    total = sum(math.log(sum(map(math.exp, row))) - own for row, own in zip(rows, own_row, strict=True))
    total += sum(
        math.log(sum(map(math.exp, row))) - own for row, own in zip(columns, own_column, strict=True)
    )
    assert info_nce(LEFT, RIGHT, 1.0, ids, HERE).item() == pytest.approx(total / 6, abs=1e-6)


def test_any_kind_of_caption_that_is_shared_masks():
    ids = torch.tensor([[1, 9], [2, 9], [3, 8]])
    assert info_nce(LEFT, RIGHT, 1.0, ids, HERE).item() == pytest.approx(
        info_nce(LEFT, RIGHT, 1.0, torch.tensor([[1], [1], [3]]), HERE).item()
    )


def test_rows_without_the_pair_neither_ask_nor_answer():
    present = torch.tensor([True, False, True])
    kept = info_nce(LEFT[[0, 2]], RIGHT[[0, 2]], 3.0, DIFFERENT[[0, 2]], HERE[:2])
    torch.testing.assert_close(info_nce(LEFT, RIGHT, 3.0, DIFFERENT, present), kept)


def test_texts_are_told_from_negatives_as_well():
    negatives = torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.0, 0.0]])  # one, and two rows that have none
    plain = info_nce(LEFT, RIGHT, 2.0, DIFFERENT, HERE)
    forth = functional.cross_entropy(2.0 * LEFT @ RIGHT.T, torch.arange(3))
    offered = torch.cat([RIGHT @ LEFT.T, RIGHT @ negatives[1:2].T], dim=1)
    back = functional.cross_entropy(2.0 * offered, torch.arange(3))
    found = info_nce(LEFT, RIGHT, 2.0, DIFFERENT, HERE, negatives)
    torch.testing.assert_close(found, (forth + back) / 2)
    assert found > plain
    torch.testing.assert_close(info_nce(LEFT, RIGHT, 2.0, DIFFERENT, HERE, torch.zeros(3, 2)), plain)


def test_no_pair_at_all_gives_zero_and_zero_gradients():
    left = LEFT.clone().requires_grad_()
    loss = info_nce(left, RIGHT, 3.0, DIFFERENT, torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert left.grad is not None
    assert not left.grad.any()


def test_caption_ids_depend_on_the_words_alone():
    command = "from train.objectives.info_nce import caption_id; print(caption_id('a red star.'))"
    other = subprocess.run(
        [sys.executable, "-c", command],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert int(other.stdout) == caption_id("a red star.") != caption_id("a red star")


RANKS = """
import sys, torch, torch.distributed as dist
from train.objectives.info_nce import info_nce
rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
left, right = torch.nn.functional.normalize(torch.randn(2, 6, 4), dim=-1)
ids = torch.tensor([[1], [2], [3], [1], [5], [6]])
present = torch.tensor([True, True, True, True, False, True])
mine = slice(0, 4) if rank == 0 else slice(4, 6)
left = left.requires_grad_()
loss = info_nce(left[mine], right[mine], 5.0, ids[mine], present[mine])
loss.backward()
dist.all_reduce(left.grad)
left.grad /= 2
print(loss.item(), *left.grad.flatten().tolist())
"""


@pytest.mark.slow
def test_two_processes_see_each_others_clips(tmp_path):
    store = str(tmp_path / "store")
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANKS, str(rank), store], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    printed = [[float(word) for word in rank.communicate(timeout=120)[0].split()] for rank in ranks]
    torch.manual_seed(0)
    left, right = functional.normalize(torch.randn(2, 6, 4), dim=-1)
    ids = torch.tensor([[1], [2], [3], [1], [5], [6]])
    present = torch.tensor([True, True, True, True, False, True])
    left.requires_grad_()
    whole = info_nce(left, right, 5.0, ids, present)
    whole.backward()
    assert [rank[0] for rank in printed] == pytest.approx([whole.item()] * 2, rel=1e-5)
    # Each process had its own rows' gradient; their average is what one process would have had.
    assert printed[0][1:] == pytest.approx(left.grad.flatten().tolist(), abs=1e-6)
