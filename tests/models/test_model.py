"""The model: features land on their placeholders, gradients reach every part, generation equals forward."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mllm.models.adapters import EmbeddingHead, QFormer
from mllm.models.config import MllmConfig
from mllm.models.encoded import collate_media
from tests.tiny import SETTINGS, ask, clip, still, tiny

CONVERSATIONS = [
    ask(clip(4), "what colour?", answer="red"),
    ask(clip(2, 1, picture=False), "how many beeps?", answer="three"),
    ask(still(), "what is it?", answer="a star"),
    ask("hello", answer="hello"),
]


@pytest.fixture(scope="module")
def model_and_processor():
    return tiny()


def test_queries_start_distinct():
    queries = QFormer(8, 64, 1, 4, 32).queries[0]
    cosine = torch.nn.functional.cosine_similarity(queries[:, None], queries[None], dim=-1)
    assert cosine.fill_diagonal_(0).abs().max() < 0.6


def test_media_change_the_answer(model_and_processor):
    model, processor = model_and_processor
    logits = []
    for seed in (1, 2):
        batch = processor.batch([ask(clip(2, seed), "what?")])
        logits.append(model(**batch).logits[0, -1])
    assert not torch.allclose(logits[0], logits[1])


def test_sound_alone_changes_the_answer(model_and_processor):
    model, processor = model_and_processor
    noise, tone = clip(2, 1), clip(2, 1)
    tone.waveform = np.sin(np.arange(32000) * 0.2).astype(np.float32)
    logits = [model(**processor.batch([ask(item, "what?")])).logits[0, -1] for item in (noise, tone)]
    assert not torch.allclose(*logits)


@torch.no_grad()
def test_a_batch_gives_what_each_example_gives_alone(model_and_processor):
    model, processor = model_and_processor
    encoded = [processor.encode(messages) for messages in CONVERSATIONS]
    together = model(**processor.collate(encoded)).logits
    for row, example in enumerate(encoded):
        alone = model(**processor.collate([example])).logits[0]
        torch.testing.assert_close(together[row, : len(example.input_ids)], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_group_gives_the_logits_of_its_questions_alone(attention):
    model, processor = tiny()
    model.set_attn_implementation(attention)
    recording = clip(4)
    questions = [ask(recording, f"question {i}?", answer="yes") for i in range(3)]
    packed = processor.encode_group(questions)
    logits = model(**processor.collate([packed, processor.encode_group(questions[:2])])).logits[0]
    for number, question in enumerate(questions, start=1):
        alone = model(**processor.collate([processor.encode(question)])).logits[0]
        where = [i for i, segment in enumerate(packed.segment_ids) if segment == number]
        torch.testing.assert_close(logits[where], alone[-len(where) :], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_generate_continues_as_repeated_forward_passes_do(model_and_processor):
    model, processor = model_and_processor
    batch = processor.batch([ask(clip(4), "what colour?")])
    generated = model.generate(**batch, max_new_tokens=6, do_sample=False, eos_token_id=None)
    length = batch["input_ids"].shape[1]
    media = {k: v for k, v in batch.items() if k not in ("input_ids", "attention_mask")}
    for end in range(length, length + 6):
        logits = model(input_ids=generated[:, :end], **media).logits[0, -1]
        assert logits.argmax() == generated[0, end]


@torch.no_grad()
def test_towers_run_once_for_several_questions(model_and_processor):
    model, processor = model_and_processor
    batch = processor.batch([ask(clip(4), "what colour?")])
    media = {k: batch[k] for k in ("pixel_values", "input_features", "window_counts")}
    queries = model.model.query_outputs(**media)
    again = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], media_queries=queries
    ).logits
    torch.testing.assert_close(again, model(**batch).logits)


def test_a_wrong_count_of_placeholders_names_both(model_and_processor):
    model, processor = model_and_processor
    batch = processor.batch([ask(clip(4), "what?")])
    with pytest.raises(ValueError, match="found 6 video placeholders for 3 video tokens"):
        model(**batch | {"pixel_values": batch["pixel_values"][:1]})


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_trainable_parameter_gets_a_gradient(checkpointing):
    model, processor = tiny()
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        assert model.model.video_qformer.gradient_checkpointing
    batch = processor.collate([processor.encode(messages) for messages in CONVERSATIONS])
    model(**batch, use_cache=False).loss.backward()
    without = {
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    }
    assert not {name for name in without if not name.startswith("model.space.") and "k_proj.bias" not in name}


@torch.no_grad()
def test_bfloat16_stays_close_to_float32():
    model, processor = tiny()
    batch = processor.batch([ask(clip(4), "what colour?")])
    exact = model(**batch).logits
    rough = model.bfloat16()(**batch).logits
    assert rough.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(exact.flatten(), rough.float().flatten(), dim=0) > 0.99


@torch.no_grad()
def test_thirty_second_chunks_are_sliced_by_window():
    """Whisper's own case: one chunk of the tower holds many windows."""
    model, processor = tiny(audio=_Hashable(SETTINGS["audio"] | {"max_source_positions": 300}))
    batch = processor.batch([ask(clip(8, picture=False), "what?")])
    assert batch["input_features"].shape == (2, 16, 600)
    queries = model.model.query_outputs(
        input_features=batch["input_features"], window_counts=batch["window_counts"]
    )["audio"]
    assert queries.shape == (4, 2, 32)
    assert model(**batch).logits.isfinite().all()


@torch.no_grad()
def test_a_clips_vector_is_a_unit_vector_that_knows_the_order_of_its_windows():
    torch.manual_seed(0)
    head = EmbeddingHead(queries=3, width=8, embedding_dim=16, max_windows=4)
    windows = torch.randn(3, 3, 8)
    forward, backward, single = head(
        torch.cat([windows[:2], windows[:2].flip(0), windows[2:]]), torch.tensor([2, 2, 1])
    )
    torch.testing.assert_close(forward.norm(), torch.tensor(1.0))
    assert not torch.allclose(forward, backward, atol=1e-3)
    torch.testing.assert_close(single, head(windows[2:], torch.tensor([1]))[0])


@torch.no_grad()
def test_a_clip_without_windows_has_a_zero_vector():
    head = EmbeddingHead(queries=3, width=8, embedding_dim=16, max_windows=4)
    vectors = head(torch.randn(1, 3, 8), torch.tensor([0, 1]))
    assert vectors[0].abs().sum() == 0


def test_a_frame_count_that_the_tower_does_not_take_is_refused():
    tower = {"model_type": "timesformer", "num_frames": 4}
    with pytest.raises(ValueError, match="frames_per_window is 8 but the video tower takes 4 frames"):
        MllmConfig(sides={"video": {"tower": tower, "queries": 2}}, frames_per_window=8)


def test_windows_longer_than_the_audio_towers_chunk_are_refused():
    with pytest.raises(ValueError, match="window_seconds is 40"):
        MllmConfig(window_seconds=40.0)


class _Hashable(dict):
    """Settings that can be part of a cache key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(repr(sorted(self.items())))


def test_media_tokens_begin_as_long_as_words():
    model, processor = tiny()
    words = model.get_input_embeddings().weight
    with torch.no_grad():
        words.mul_(7)
        model.model.match_projectors()
        queries = model.model.query_outputs(**collate_media([processor.media(clip(), "video")]))
        for side in ("video", "audio"):
            lengths = model.model.projector(side)(queries[side]).square().mean(-1).sqrt()
            torch.testing.assert_close(
                lengths, words.square().mean().sqrt().expand_as(lengths), rtol=0.05, atol=0
            )
