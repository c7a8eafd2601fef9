"""The embedder at a tiny size with random weights: unit vectors, alone as in a batch, one a window."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mllm.errors import ConfigError, MediaError
from mllm.media import tracks
from mllm.media.recording import SAMPLE_RATE
from mllm.media.windows import cut
from mllm.models.checkpoint import save
from mllm.search.embedder import Embedder, text_inputs
from tests.tiny import clip, still, tiny


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder(*tiny(), name="tiny")


def test_vectors_are_unit_float32(embedder):
    texts = embedder.embed_text(["a red star", "three beeps sound.", ""])
    clips = embedder.embed_clips([clip(2), clip(5, 1)], "both")
    for vectors, rows in ((texts, 3), (clips, 2)):
        assert vectors.shape == (rows, 16)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert embedder.embed_text([]).shape == (0, 16)
    assert embedder.embed_clips([], "video").shape == (0, 16)


@pytest.mark.parametrize("modality", ["video", "audio", "both"])
def test_batch_does_not_change_a_vector(embedder, modality):
    clips = [clip(seconds, seed) for seed, seconds in enumerate((2, 6, 1.5, 8, 4))]
    together = embedder.embed_clips(clips, modality)
    alone = np.concatenate([embedder.embed_clips([one], modality) for one in clips])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    small = Embedder(embedder.model, embedder.processor, batch_windows=1)
    np.testing.assert_allclose(small.embed_clips(clips, modality), alone, atol=1e-5)


def test_text_length_in_a_batch_does_not_change_a_vector(embedder):
    texts = ["three beeps sound.", "a red star moves left while a bell rings. a red star moves left."]
    together = embedder.embed_text(texts)
    alone = np.concatenate([embedder.embed_text([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_both_is_the_unit_sum_and_takes_what_there_is(embedder):
    full = clip(4)
    video, audio, both = (embedder.embed_clips([full], m)[0] for m in ("video", "audio", "both"))
    np.testing.assert_allclose(both, (video + audio) / np.linalg.norm(video + audio), atol=1e-5)
    silent, heard = clip(4, sound=False), clip(4, picture=False)
    mixed = embedder.embed_clips([full, silent, heard], "both")
    np.testing.assert_allclose(mixed[0], both, atol=1e-5)
    np.testing.assert_allclose(mixed[1], embedder.embed_clips([silent], "video")[0], atol=1e-5)
    np.testing.assert_allclose(mixed[2], embedder.embed_clips([heard], "audio")[0], atol=1e-5)


def test_video_does_not_listen_and_audio_does_not_look(embedder):
    clips = [clip(4), clip(4, sound=False)]
    video = embedder.embed_clips(clips, "video")
    assert not np.allclose(video[0], embedder.embed_clips(clips[:1], "both")[0], atol=1e-3)
    clips[1].frames = clips[0].frames
    video = embedder.embed_clips(clips, "video")
    np.testing.assert_allclose(video[0], video[1], atol=1e-6)


def test_missing_modality_is_a_media_error(embedder):
    with pytest.raises(MediaError, match="no sound"):
        embedder.embed_clips([clip(2, sound=False)], "audio")
    with pytest.raises(MediaError, match="no picture"):
        embedder.embed_clips([clip(2, picture=False)], "video")
    with pytest.raises(ValueError, match="choose from"):
        embedder.embed_clips([clip(2)], "smell")  # type: ignore[arg-type]


def test_image_is_embedded(embedder):
    image = still()
    (row,) = embedder.windows(image)
    assert row.modality == "image"
    np.testing.assert_allclose(row.vector, embedder.embed_clips([image], "image")[0], atol=1e-6)


def test_windows_are_clips_of_their_own(embedder):
    full = clip(13)  # 7 windows, more than the prompt's max_windows of 4
    rows = list(embedder.windows(full))
    assert [(row.start, row.end) for row in rows if row.modality == "both"] == [
        (0, 2), (2, 4), (4, 6), (6, 8), (8, 10), (10, 12), (12, 13)
    ]  # fmt: skip
    third = cut(full, embedder.processor.spec)[1]
    third = next(w for w in [third] if w.start == 4)
    for modality in ("video", "audio", "both"):
        (row,) = [row for row in rows if row.start == 4 and row.modality == modality]
        np.testing.assert_allclose(row.vector, embedder.embed_clips([[third]], modality)[0], atol=1e-5)


def test_windows_have_the_rows_they_can_have(embedder):
    kinds = {row.modality for row in embedder.windows(clip(4, sound=False))}
    assert kinds == {"video"}
    assert {row.modality for row in embedder.windows(clip(4, picture=False))} == {"audio"}
    late = clip(6)
    late.waveform = late.waveform[: 2 * SAMPLE_RATE]  # the sound ends before the picture
    assert [row.modality for row in embedder.windows(late) if row.start == 2] == ["video"]


def test_long_file_is_read_in_pieces(embedder, tmp_path, monkeypatch):
    import soundfile

    from mllm.search import embedder as module

    full = clip(39, picture=False)  # 20 windows: two pieces of at least 16
    soundfile.write(tmp_path / "long.wav", full.waveform, SAMPLE_RATE, subtype="FLOAT")
    whole = list(embedder.windows(full))
    monkeypatch.setattr(module, "PIECE_BYTES", 1)
    scans, scan = [], tracks.scan
    monkeypatch.setattr(tracks, "scan", lambda *args: scans.append(args) or scan(*args))
    pieces = list(embedder.windows(tmp_path / "long.wav"))
    assert len(scans) == 1
    assert [(row.start, row.end) for row in pieces] == [(row.start, row.end) for row in whole]
    assert (len(pieces), pieces[-1].end) == (20, 39.0)
    for one, other in zip(pieces, whole, strict=True):
        np.testing.assert_allclose(one.vector, other.vector, atol=1e-4)


def test_text_inputs_are_escaped_cut_and_padded_right(embedder):
    inputs = text_inputs(embedder.processor, ["<|video|> star", "a", "", "beeps " * 100], 32)
    assert inputs["input_ids"].shape == (4, 32)
    assert embedder.processor.token_ids["video"] not in inputs["input_ids"][0].tolist()
    assert inputs["attention_mask"][2].tolist() == [1] + [0] * 31
    assert inputs["attention_mask"][3].sum() == 32
    assert (inputs["attention_mask"].diff(dim=1) <= 0).all()


def test_fingerprint_names_what_decides_a_vector(embedder):
    model, processor = tiny()
    same = Embedder(model, processor, name="another name")
    assert same.fingerprint() == embedder.fingerprint()
    with torch.no_grad():
        model.model.language_model.norm.weight.add_(1)  # the decoder does not count
    assert Embedder(model, processor).fingerprint() == embedder.fingerprint()
    with torch.no_grad():
        model.model.space.video_head.linear_out.weight[0, 0] += 1e-3
    assert Embedder(model, processor).fingerprint() != embedder.fingerprint()
    assert Embedder(*tiny(window_seconds=1.0)).fingerprint() != embedder.fingerprint()


def test_fingerprint_survives_saving_and_bfloat16(embedder, tmp_path):
    folder = save(*tiny(), tmp_path / "tiny", dtype=torch.bfloat16)
    as_float, as_bfloat = (Embedder.from_pretrained(folder, dtype=d) for d in (torch.float32, torch.bfloat16))
    assert as_float.fingerprint() == as_bfloat.fingerprint() != embedder.fingerprint()
    assert as_float.name == str(folder)


def test_model_without_space_is_refused():
    with pytest.raises(ConfigError, match="no shared space"):
        Embedder(*tiny(text=None))
