"""The loss that brings media tokens close to words."""

import pytest
import torch
from torch.nn import functional

from train.objectives.words import word_loss, word_rarity

EMBEDDINGS = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) + 0.5


def test_tokens_that_are_the_words_of_their_captions_cost_little():
    words = torch.tensor([[3, 4], [5, -1]])
    tokens = EMBEDDINGS[[4, 3, 5, 5]]
    of_token = torch.tensor([0, 0, 1, 1])
    right = word_loss(tokens, of_token, words, EMBEDDINGS)
    assert right.item() == pytest.approx(2 / 3 * torch.tensor(2.0).log(), abs=0.05)  # two words share a clip
    assert word_loss(tokens, 1 - of_token, words, EMBEDDINGS) > right + 3


def test_the_probability_of_a_word_is_the_mean_over_the_tokens_of_a_recording():
    tokens = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    words, of_token = torch.tensor([[7], [9]]), torch.tensor([0, 0, 1])
    common = EMBEDDINGS.mean(0)
    cosines = functional.cosine_similarity((tokens - common)[:, None], (EMBEDDINGS - common)[None], dim=2)
    odds = (20 * cosines).softmax(1)
    expected = -(odds[:2, 7].mean().log() + odds[2, 9].log()) / 2
    assert word_loss(tokens, of_token, words, EMBEDDINGS).item() == pytest.approx(expected.item(), rel=1e-4)


def test_words_count_by_their_rarity_once_for_each_caption():
    words = torch.tensor([[1, 2, 2], [1, 3, -1], [-1, -1, -1]])
    rare = torch.tensor(2.0).log()
    assert torch.allclose(word_rarity(words, 50), torch.tensor([[0, rare, 0], [0, rare, 0], [0, 0, 0]]))


def test_without_a_caption_or_a_recording_there_is_nothing_to_learn():
    none = torch.full((2, 1), -1)
    tokens = EMBEDDINGS[:2].clone().requires_grad_()
    loss = word_loss(tokens, torch.tensor([0, 1]), none, EMBEDDINGS)
    loss.backward()
    assert loss == 0
    assert not tokens.grad.any()
    # The second caption is of a recording that has no such side.
    alone = word_loss(EMBEDDINGS[3:4], torch.tensor([0]), torch.tensor([[3], [4]]), EMBEDDINGS)
    assert alone < 0.05
