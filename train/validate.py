"""Quick scores between stages: retrieval of 256 clips, answers about 64 as texts or recordings.

`mllm eval` is the full evaluation.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from mllm.answerer import Answerer
from mllm.errors import MediaError
from mllm.records.answers import Generation, Unread
from mllm.records.chat import validate_messages
from mllm.records.conversation import Conversation
from mllm.records.record import Record
from mllm.records.source import DataSource, Outlined
from mllm.scores import exact_match, recall_at_k
from train.order import caption_weights

if TYPE_CHECKING:
    from mllm.models.model import MllmForConditionalGeneration
    from mllm.models.processor import MllmProcessor

PAIRED = ("video", "audio")
LONGEST_ANSWER = 48  # tokens


def retrieval(
    model: MllmForConditionalGeneration, processor: MllmProcessor, source: DataSource, clips: int = 256
) -> dict[str, float]:
    """R@1 in both directions between text and picture and text and sound, over the first `clips` of each.

    Scenes without captions are passed over, as in training; {} if records have none at all.
    """
    from mllm.search.embedder import Embedder

    embedder = Embedder(model, processor)
    clips_of: dict[str, list[Any]] = {kind: [] for kind in PAIRED}
    texts_of: dict[str, list[str]] = {kind: [] for kind in PAIRED}
    captioned = caption_weights(source)
    if captioned is None and isinstance(source, Outlined):
        return {}
    for index in range(min(len(source), 4 * clips)):
        if min(map(len, texts_of.values())) >= clips:
            break
        if captioned is not None and not captioned[index]:
            continue
        pair = source.pair(index)
        for kind in PAIRED:
            caption = pair["captions"].get(kind)
            if caption and len(texts_of[kind]) < clips and not getattr(pair["clip"], "is_image", False):
                clips_of[kind].append(pair["clip"])
                texts_of[kind].append(caption)
    scores = {}
    for kind in PAIRED:
        if not texts_of[kind]:
            continue
        media = embedder.embed_clips(clips_of[kind], kind)  # type: ignore[arg-type]
        text = embedder.embed_text(texts_of[kind])
        labels = texts_of[kind]
        scores[f"{kind} to text"] = recall_at_k(media @ text.T, labels, labels)["R@1"]
        scores[f"text to {kind}"] = recall_at_k(text @ media.T, labels, labels)["R@1"]
    return scores


def answers(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    source: DataSource,
    clips: int = 64,
    batch: int = 64,
) -> dict[str, float]:
    """Exact match of greedy answers, per task and over `all`, on the first `clips`."""
    scenes = range(min(len(source), clips))
    return _right(model, processor, [r for index in scenes for r in source.conversations(index)], batch)


def text_answers(
    model: MllmForConditionalGeneration,
    processor: MllmProcessor,
    source: DataSource,
    scenes: int = 64,
    batch: int = 64,
) -> dict[str, float]:
    """The same with texts in place of recordings, which tests the decoder alone."""
    texts = [messages for index in range(min(len(source), scenes)) for messages in source.text(index)]
    return _right(model, processor, [{"messages": messages} for messages in texts], batch)


def _right(
    model: MllmForConditionalGeneration, processor: MllmProcessor, records: list[Record], batch: int
) -> dict[str, float]:
    questions = [(record.get("task"), *question_of(record)) for record in records]
    answerer = Answerer(model, processor, generation=Generation(max_tokens=LONGEST_ANSWER), batch=batch)
    answers = answerer.answer([messages for _, messages, _ in questions])
    right: dict[str, list[bool]] = defaultdict(list)
    for (task, _, truth), answer in zip(questions, answers, strict=True):
        if isinstance(answer, Unread):
            raise MediaError(answer.cause)
        for name in filter(None, (task, "all")):
            right[name].append(exact_match(answer, truth))
    return {name: sum(values) / len(values) for name, values in sorted(right.items())}


def question_of(record: Record) -> tuple[Conversation, str]:
    """Returns (messages up to the last question, correct answer) of a record."""
    messages = validate_messages(record["messages"])
    if messages[-1].role != "assistant":
        return messages, record["answer"]
    return messages.question, record.get("answer") or messages[-1].text
