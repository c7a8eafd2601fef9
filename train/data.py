"""Collators, which make the batches of a stage from a data source on the fly.

A stage trains on the numbers 0 … `steps × batch` − 1 in order; inside the data workers a collator turns each
number into its example. So step n sees the same batch no matter how often the run was interrupted, a
resumed run skips examples without generating them, and nothing is stored on disk.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from mllm.errors import RecordError
from mllm.experiment import Augment
from mllm.media.clip import Clip
from mllm.media.recording import load_clip
from mllm.models.encoded import Encoded, MediaFeatures, collate_media
from mllm.models.processor import MllmProcessor
from mllm.records import chat
from mllm.records.conversation import Conversation, MediaPart, TextPart
from mllm.records.record import Record, answered
from mllm.records.shards import require_windows
from mllm.records.source import DataSource, open_source
from mllm.records.templates import paraphrase
from train.augment import augment, drop_words, permute_frames
from train.conversations import (
    Messages,
    by_prefix,
    caption_conversations,
    one_of,
    part_values,
)
from train.order import Order, Place, Weights, answer_weights, caption_weights
from train.packing import join, pack
from train.pairs import space_batch
from train.sections import Chat, Curriculum
from train.shapes import TOKENS

VIEWS, WORDS, PERMUTED = 1, 2, 3  # purposes of an example's random generators
PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))


def number_dataset(steps: int, batch: int):
    """A datasets.Dataset of the numbers of all examples, over all processes of a distributed run."""
    from datasets import Dataset

    return Dataset.from_dict({"number": np.arange(steps * batch * PROCESSES)})


def easy_start(curriculum: Curriculum | None, batch: int) -> tuple[DataSource | None, int]:
    """The arguments `easy` and `easy_clips` of `Collator` for a curriculum."""
    if curriculum is None:
        return None, 0
    return open_source(curriculum.source), curriculum.steps * batch * PROCESSES


class Collator:
    """Maps numbers to scenes of the source, in an order that depends on the seed and the epoch alone.

    Args:
        easy, easy_clips: another source for the first `easy_clips` scenes of the run.
    """

    text_tokens: int | None = None  # maximum caption length for the shared space

    def __init__(
        self,
        source: DataSource,
        processor: MllmProcessor,
        seed: int,
        augmentation: Augment | None = None,
        easy: DataSource | None = None,
        easy_clips: int = 0,
    ):
        require_windows(source, processor.spec)
        self.source = source
        self.easy = easy
        self.easy_clips = easy_clips if easy is not None else 0
        self.processor = processor
        self.seed = seed
        self.augmentation = augmentation
        self.order = Order(source, seed)
        self.captioned = Order(source, seed, caption_weights(source))

    def place(self, number: int, order: Order) -> Place:
        """The source and the scene of the run's `number`-th example, from `order` after an easy start."""
        if self.easy is not None and number < self.easy_clips:
            turn, scene = divmod(number, len(self.easy))
            return Place(self.easy, scene, turn)
        return order(number)

    def pair(self, number: int) -> dict[str, Any]:
        """The run's `number`-th clip with captions, which change every epoch."""
        source, scene, turn = self.place(number, self.captioned)
        return source.pair(scene + turn * len(source))

    def views(
        self,
        conversations: Sequence[Messages],
        number: int,
        captions: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[Conversation]:
        """Conversations of the run's `number`-th example, with each distinct recording augmented once.

        Args:
            captions: further texts about the recordings, which augmentation must not make false.
        """
        checked = [chat.validate_messages(messages) for messages in conversations]
        if self.augmentation is None:
            return checked
        texts = [text for conversation in checked for text in conversation.texts]
        texts += [
            text for told in captions.values() if told for text in ([told] if isinstance(told, str) else told)
        ]
        rng = np.random.default_rng((self.seed, number, VIEWS))
        clips: dict[tuple, Clip] = {}
        for part in (part for conversation in checked for part in conversation.media):
            if part_values(part) not in clips:
                clips[part_values(part)] = augment(self._read(part), self.augmentation, rng, texts)
        return [
            conversation.with_media(lambda part: part.of(clips[part_values(part)]))
            for conversation in checked
        ]

    def phrased(self, record: Record, number: int) -> Conversation:
        """`answered(record)`, with its last question rephrased for the run's `number`-th example."""
        messages = answered(record)
        if self.augmentation is None or not self.augmentation.paraphrase:
            return messages
        *before, question, answer = messages
        *others, last = question.parts
        if not isinstance(last, TextPart) or not record.get("task"):
            return messages
        text = paraphrase(record["task"], last.text, f"{record['id']} {self.seed} {number}")
        return Conversation(
            [*before, question.with_parts([*others, TextPart(type="text", text=text)]), answer]
        )

    def _read(self, part: MediaPart) -> Clip:
        spec = self.processor.spec
        return load_clip(
            part.source,
            size=spec.image_size,
            choose=lambda duration: spec.frame_times(duration).ravel(),
            **self.processor.wanted(part.modality) | part.options,
        )

    def space(
        self,
        media: Sequence[MediaFeatures],
        captions: Sequence[dict[str, Any]],
        paraphrases: Sequence[dict[str, Any]],
        numbers: Sequence[int],
    ) -> dict[str, torch.Tensor]:
        """`space_batch` of recordings and their captions, with word dropout if configured.

        Args:
            numbers: number of the example of each recording.
        """
        share = self.augmentation.word_dropout if self.augmentation else 0.0

        def say(caption: str, clip: int) -> str:
            rng = np.random.default_rng((self.seed, numbers[clip], WORDS))
            return drop_words(caption, share, rng) if share else caption

        assert self.text_tokens is not None
        return space_batch(media, captions, self.processor, self.text_tokens, say, paraphrases)

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        raise NotImplementedError


class TextCollator(Collator):
    """Stage 0: questions about a text that describes the recording, after one copy of that text.

    The text and all answers are trained on; the questions, whose phrasing is random, are not.
    """

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        encoded = []
        for row in rows:
            conversations = self.source.text(self.order(row["number"]).scene)
            if conversations:
                example = self.processor.encode_group(conversations)
                told = example.segment_ids or [0] * len(example.input_ids)
                example.labels = [
                    token if segment == 0 else label
                    for token, segment, label in zip(example.input_ids, told, example.labels, strict=True)
                ]
                encoded.append(example)
        if not encoded:
            raise RecordError(
                f"{self.source.name} has no conversations without media: set text.steps=0 and "
                "contrastive.text_batch=0"
            )
        return self.processor.collate(encoded, pad_to_multiple_of=TOKENS)


class PairCollator(Collator):
    """Stage 1: clips with captions, as pairs for the shared space and as answers for the decoder.

    Args:
        text_tokens: maximum caption length for the text tower.
        text_batch: stage-0 scenes in every batch, so that the decoder does not forget them.
        answers: whether captions are also encoded for the decoder.
        weights: by which scenes are drawn.
    """

    def __init__(
        self,
        source: DataSource,
        processor: MllmProcessor,
        seed: int,
        text_tokens: int,
        easy: DataSource | None = None,
        easy_clips: int = 0,
        text_batch: int = 0,
        augmentation: Augment | None = None,
        answers: bool = True,
        weights: Mapping[str, float] = MappingProxyType({}),
    ):
        super().__init__(source, processor, seed, augmentation, easy, easy_clips)
        self.captioned = Order(source, seed, caption_weights(source, Weights(weights)))
        self.text_tokens = text_tokens
        self.text_batch = text_batch
        self.answers = answers
        self.texts = TextCollator(source, processor, seed)

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        pairs = [self.pair(row["number"]) for row in rows]
        asked = [
            self.views(caption_conversations(pair, row["number"]), row["number"], pair["captions"])
            for pair, row in zip(pairs, rows, strict=True)
        ]
        batch: dict[str, Any]
        if self.answers:
            encoded = [self.processor.encode_group(conversations) for conversations in asked]
            media = [example.media[0] for example in encoded]
            batch = self.processor.collate(encoded, pad_to_multiple_of=TOKENS)
        else:
            parts = [conversations[0].media[0] for conversations in asked]
            media = [self.processor.media(part.source, part.modality, **part.options) for part in parts]
            batch = {**collate_media(media)}
        captions = [pair["captions"] for pair in pairs]
        paraphrases = [pair.get("paraphrases", {}) for pair in pairs]
        numbers = [row["number"] for row in rows]
        space = self.space(media, captions, paraphrases, numbers)
        if self.augmentation and self.augmentation.frame_permutation:
            space |= self._permuted(media, numbers)
        batch |= {"space": space}
        return batch | {"text": self.texts(rows[: self.text_batch])} if self.text_batch else batch

    def _permuted(self, media: Sequence[MediaFeatures], numbers: Sequence[int]) -> dict[str, torch.Tensor]:
        """Videos with shuffled frames, [windows, …], and the number of their windows for each clip."""
        shuffled = [
            permute_frames(item.pixel_values, np.random.default_rng((self.seed, number, PERMUTED)))
            if item.modality == "video" and item.pixel_values is not None
            else None
            for item, number in zip(media, numbers, strict=True)
        ]
        size = self.processor.image_size
        none = torch.zeros(0, self.processor.frames_per_window, 3, size, size, dtype=torch.uint8)
        return {
            "permuted_pixels": torch.cat([none, *(item for item in shuffled if item is not None)]),
            "permuted_windows": torch.tensor([0 if item is None else len(item) for item in shuffled]),
        }


class QuestionCollator(Collator):
    """Stage 2: sampled conversations of scenes; those about the same recordings share one media prefix.

    Args:
        questions: conversations per scene.
        text_tokens: maximum caption length for the contrastive loss; None omits that loss. It uses the scenes
            whose records have `captions`; if there are none, pairs are added, half as many as rows.
        weights: by which scenes, and conversations of a scene, are drawn.
        chat: a source without recordings that takes a share of the examples.
    """

    def __init__(
        self,
        source: DataSource,
        processor: MllmProcessor,
        seed: int,
        questions: int,
        text_tokens: int | None = None,
        augmentation: Augment | None = None,
        easy: DataSource | None = None,
        easy_clips: int = 0,
        weights: Mapping[str, float] = MappingProxyType({}),
        chat: Chat | None = None,
    ):
        super().__init__(source, processor, seed, augmentation, easy, easy_clips)
        self.questions = questions
        self.text_tokens = text_tokens
        self.weights = Weights(weights)
        self.order = Order(source, seed, answer_weights(source, self.weights))
        self.chat = None if chat is None else Order(open_source(chat.source), seed)
        self.chat_share = 0.0 if chat is None else chat.share

    def example(self, number: int) -> Place:
        """Where the run's `number`-th example comes from: chat every so often, else the data in its order."""
        chats = int(number * self.chat_share)  # before this one
        if self.chat is not None and int((number + 1) * self.chat_share) > chats:
            return self.chat(chats)
        return self.place(number - chats, self.order)

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        examples: list[Example] = []
        for row in rows:
            number = row["number"]
            source, scene, turn = self.example(number)
            records = source.conversations(scene)
            rng = np.random.default_rng((self.seed, number))
            chosen = self.weights.choose(records, self.questions, rng)
            told: dict[str, Any] = next((r["captions"] for r in records if r.get("captions")), {})
            said = {kind: one_of(texts, turn) for kind, texts in told.items()}
            asked = [self.phrased(records[i], number) for i in chosen]
            for group in by_prefix(self.views(asked, number, told)):
                encoded = self.processor.encode_group(group)
                captions = (said, told) if len(encoded.media) == 1 else ({}, {})
                examples.append(Example(encoded, number, *captions))
        if not examples:
            raise RecordError(
                f"{self.source.name}: no answers to learn in a whole batch: leave such rows out"
            )
        if self.text_tokens is not None and not any(example.captions for example in examples):
            for row in rows[: max(len(rows) // 2, 1)]:
                number, pair = row["number"], self.pair(row["number"])
                views = self.views(caption_conversations(pair, number), number, pair["captions"])
                encoded = self.processor.encode_group(views)
                examples.append(Example(encoded, number, pair["captions"], pair.get("paraphrases", {})))
        # Chat has rows of its own, since it may learn from a teacher that has seen no recording.
        lengths = [len(example.encoded.input_ids) for example in examples]
        kinds = [bool(example.encoded.media) for example in examples]
        packed = [[examples[i] for i in row] for row in pack(lengths, kinds)]
        batch = self.processor.collate(
            [join([example.encoded for example in row]) for row in packed], pad_to_multiple_of=TOKENS
        )
        if self.text_tokens is None:
            return batch
        # In the order of the recordings in the batch.
        shown = [(item, example) for row in packed for example in row for item in example.encoded.media]
        space = self.space(
            [item for item, _ in shown],
            [example.captions for _, example in shown],
            [example.paraphrases for _, example in shown],
            [example.number for _, example in shown],
        )
        return batch | {"space": space}


class Example(NamedTuple):
    """Questions about one recording, or about several or none.

    Attributes:
        number: of the run's example that they belong to.
        captions, paraphrases: of the recording, if it is one; see `space_batch`.
    """

    encoded: Encoded
    number: int
    captions: dict[str, Any]
    paraphrases: dict[str, Any]
