"""A loss that brings media tokens close to the embeddings of words, without running the decoder.

SuperClass (Huang et al. 2024, arXiv:2411.03313) trains a vision encoder by classification alone: the labels
of a picture are the tokens of its caption, each weighted by how rare it is. Here the classifier is the
decoder's own table of word embeddings, and every query token makes a guess of its own. A decoder that is
then trained on such tokens reads words that it knows, rather than learning each thing from nothing.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from mllm.models.model import SIDE_OF, MediaQueries, MllmModel
from train.objectives.space import AUDIO, VIDEO

SHARPNESS = 20.0  # what a cosine is multiplied by; the nearest other words have cosines of .7
LEAST = 1e-30  # a probability, so that its logarithm is finite


def words_of_captions(model: MllmModel, queries: MediaQueries, space: dict[str, Tensor]) -> Tensor:
    """`word_loss` of pictures and of sounds: the mean of those that the batch has.

    Args:
        queries: Q-Former outputs of the batch.
        space: from `pairs.space_batch`.
    """
    losses = []
    for side, column in (("video", VIDEO), ("audio", AUDIO)):
        rows = space["captions"][:, column]
        words = torch.where((rows >= 0)[:, None], space["words"][rows.clamp(min=0)], -1)
        there = [(kind, found) for kind, found in queries.items() if SIDE_OF[kind] == side]
        if not there or not (words >= 0).any():
            continue
        tokens = model.projector(side)(torch.cat([cast(Tensor, found) for _, found in there]))
        clips = [torch.repeat_interleave(space[f"{kind}_windows"]) for kind, _ in there]
        of_token = torch.cat(clips).repeat_interleave(tokens.shape[1])
        losses.append(word_loss(tokens.flatten(0, 1), of_token, words, model.word_embeddings()))
    return torch.stack(losses).mean() if losses else space["captions"].new_zeros((), dtype=torch.float32)


def word_loss(tokens: Tensor, clip_of_token: Tensor, words: Tensor, embeddings: Tensor) -> Tensor:
    """How surprising the words of captions are, given the media tokens of their recordings; a scalar.

    The probability of a word is the mean over a recording's tokens of a softmax over the vocabulary, by the
    cosine with each word's embedding, less what all words have in common. So each token can be one word.

    Args:
        tokens: [tokens, hidden], projected query outputs of one side.
        clip_of_token: int64 [tokens].
        words: int64 [clips, words], tokens of each caption, -1 for padding and where there is no caption.
        embeddings: [vocabulary, hidden], of the decoder's words.
    """
    rarity = word_rarity(words, len(embeddings))
    if not len(tokens) or not rarity.sum():
        return tokens.sum() * 0.0
    common = embeddings.mean(0)
    table = functional.normalize(embeddings - common, dim=-1)
    logits = SHARPNESS * functional.linear(functional.normalize(tokens - common, dim=-1), table)
    asked = words[clip_of_token].clamp(min=0)
    odds = logits.gather(1, asked).float() - logits.float().logsumexp(1, keepdim=True)
    summed = odds.new_zeros(words.shape).index_add(0, clip_of_token, odds.exp())
    count = torch.bincount(clip_of_token, minlength=len(words))[:, None].clamp(min=1)
    surprise = -(summed / count).clamp(min=LEAST).log()
    heard = rarity * (torch.bincount(clip_of_token, minlength=len(words)) > 0)[:, None]
    return (heard * surprise).sum() / heard.sum().clamp(min=LEAST)


def word_rarity(words: Tensor, vocabulary: int) -> Tensor:
    """float32 [clips, words]: log(captions / captions with the word) in the batch, 0 for padding.

    A word that all captions have says nothing; one that a caption has twice counts once.
    """
    there = torch.zeros(len(words), vocabulary + 1, dtype=torch.bool, device=words.device)
    there.scatter_(1, torch.where(words < 0, vocabulary, words), True)
    captions = (words >= 0).any(1).sum().clamp(min=1)
    rarity = (captions / there.sum(0).clamp(min=1)).log()[words.clamp(min=0)]
    earlier = (words[:, :, None] == words[:, None, :]).tril(-1).any(2)
    return torch.where((words < 0) | earlier, 0.0, rarity)
