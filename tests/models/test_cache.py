"""The feature cache: from disk the same numbers as from the tower, and never those of another one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.features import fill, untrained
from mllm.command.cli import main
from mllm.errors import ConfigError
from mllm.experiment import Model
from mllm.models.build import build_model
from mllm.models.checkpoint import save
from mllm.models.encoded import collate_media
from mllm.models.feature_cache import FeatureCache, freeze_and_keep, keep_features, tower_digest
from mllm.records.record import write_records
from mllm.search.embedder import Embedder
from tests.media_files import make, tone
from tests.models.test_towers import LITE, built
from tests.pretrained import base_folders
from tests.tiny import SETTINGS, TEXTS, ask, clip, tiny


@pytest.fixture
def pair():
    """(model, processor)"""
    return tiny()


def towers(model):
    return tuple(model.model.towers.values())


def keep(model, folder: Path, **options) -> FeatureCache:
    cache = FeatureCache(folder, **options)
    freeze_and_keep(model, cache)
    return cache


def count_runs(model) -> list[int]:
    """Windows and chunks that a tower really sees from now on."""
    seen: list[int] = []
    for tower in towers(model):
        tower.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


def queries(model, processor, *clips):
    with torch.no_grad():
        return model.model.query_outputs(**collate_media([processor.media(clip, "video") for clip in clips]))


def test_a_second_look_runs_no_tower_and_gives_the_same(pair, tmp_path: Path) -> None:
    model, processor = pair
    plain = queries(model, processor, clip())
    cache = keep(model, tmp_path)
    first = queries(model, processor, clip())
    runs = count_runs(model)
    again = queries(model, processor, clip())
    assert runs == []
    assert cache.hits == cache.misses > 0
    for name in plain:
        assert torch.equal(first[name], again[name])
        torch.testing.assert_close(first[name], plain[name], atol=0.02, rtol=0.02)  # bfloat16 on disk


def test_a_batch_with_a_new_window_is_run_whole_to_the_same_bits(pair, tmp_path: Path) -> None:
    model, processor = pair
    keep(model, tmp_path)
    queries(model, processor, clip(4.0, picture=True, sound=False))
    runs = count_runs(model)
    cache = keep(model, tmp_path)
    queries(model, processor, clip(4.0, sound=False), clip(2.0, seed=1, sound=False))
    assert runs == [3]
    assert (cache.hits, cache.misses) == (2, 1)


def test_dropout_is_not_kept(tmp_path: Path) -> None:
    audio = SETTINGS["audio"] | {"dropout": 0.5}
    model, processor = build_model(Model.model_validate(SETTINGS | {"audio": audio}), list(TEXTS))
    keep(model, tmp_path)
    first = queries(model.train(), processor, clip())
    again = queries(model.eval(), processor, clip())
    assert torch.equal(first["audio"], again["audio"])
    assert model.train().model.audio_tower.training


def test_another_process_finds_it_too(pair, tmp_path: Path) -> None:
    model, processor = pair
    keep(model, tmp_path)
    first = queries(model, processor, clip())
    other, _ = tiny()
    cache = keep(other, tmp_path)
    again = queries(other, processor, clip())
    assert cache.misses == 0
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_changed_tower_or_size_finds_nothing(pair, tmp_path: Path) -> None:
    model, processor = pair
    keep(model, tmp_path)
    queries(model, processor, clip())
    changed, _ = tiny()
    with torch.no_grad():
        for tower in towers(changed):
            next(tower.parameters()).view(-1)[0] += 1e-3
    cache = keep(changed, tmp_path)
    queries(changed, processor, clip())
    assert cache.hits == 0
    settings = SETTINGS | {"video": SETTINGS["video"] | {"image_size": 48}}
    larger, its_processor = build_model(Model.model_validate(settings), list(TEXTS))
    cache = keep(larger, tmp_path)
    queries(larger, its_processor, clip(sound=False))
    assert cache.hits == 0


def test_a_mixer_trains_on_kept_features(tmp_path: Path) -> None:
    model, processor = built(video=LITE)
    tower = model.model.video_tower
    model.requires_grad_(False)
    tower.mixer.requires_grad_(True)
    cache = FeatureCache(tmp_path)
    keep_features(tower, cache)
    batch = processor.collate([processor.encode(ask(clip(4.0, sound=False), "what?", answer="red"))])
    for _ in range(2):
        model(**batch, use_cache=False).loss.backward()
    assert (cache.hits, cache.misses) == (2, 2)
    assert all(weight.grad.any() for weight in tower.mixer.parameters())

    def digest_with(**changes) -> str:
        return tower_digest(built(video=LITE | changes)[0].model.video_tower)

    assert digest_with() == digest_with(mixer_layers=2) == tower_digest(tower)
    assert digest_with(grid=1) != tower_digest(tower)


def test_a_tower_that_trains_is_refused(tmp_path: Path) -> None:
    model, _ = tiny()
    with pytest.raises(ConfigError, match="of a tower that trains cannot be kept: take the tower out"):
        keep_features(model.model.video_tower, FeatureCache(tmp_path))


def test_a_fingerprint_is_of_the_weights_alone(pair) -> None:
    video, audio = towers(pair[0])
    assert tower_digest(video) == tower_digest(towers(tiny()[0])[0])
    assert tower_digest(video) != tower_digest(audio)


def test_a_setting_without_weights_changes_the_fingerprint_and_how_it_is_computed_does_not(
    pair, monkeypatch
) -> None:
    video, _ = towers(pair[0])
    before = tower_digest(video)
    monkeypatch.setattr(video.encoder.config, "_attn_implementation_internal", "eager")
    assert tower_digest(video) == before
    monkeypatch.setattr(video.encoder.config, "num_attention_heads", 1)
    assert tower_digest(video) != before


def test_the_cap_evicts_what_was_not_used(pair, tmp_path: Path) -> None:
    model, processor = pair
    cache = keep(model, tmp_path, max_gb=1e-4)
    for seed in range(300):
        queries(model, processor, clip(2.0, seed, sound=False))
    assert 0 < len(cache.store) < 300


def test_a_cap_stays_as_it_is_unless_another_is_given(tmp_path: Path) -> None:
    limits = [FeatureCache(tmp_path, max_gb).store.size_limit / 1e9 for max_gb in (400.0, None, 0.5, None)]
    assert limits == [400.0, 400.0, 0.5, 0.5]
    assert FeatureCache(tmp_path / "new").store.size_limit == 20e9


def test_autocast_changes_nothing_of_what_is_kept(pair, tmp_path: Path) -> None:
    model, processor = pair
    batch = collate_media([processor.media(clip(), "video")])
    first = keep(model, tmp_path / "one")
    model.model.query_outputs(**batch)
    second = keep(model, tmp_path / "two")
    with torch.autocast("cpu", torch.bfloat16):
        model.model.query_outputs(**batch)
    kept = [{key: cache.store[key] for key in cache.store.iterkeys()} for cache in (first, second)]
    assert kept[0] == kept[1]


def test_a_value_cut_off_by_a_power_failure_is_made_again(pair, tmp_path: Path) -> None:
    model, processor = pair
    cache = keep(model, tmp_path)
    first = queries(model, processor, clip())
    key = next(cache.store.iterkeys())
    cache.store[key] = cache.store[key][:-10]
    assert torch.equal(queries(model, processor, clip())["audio"], first["audio"])
    assert cache.misses == cache.hits + 2  # all of the first time, one of the second


def test_a_damaged_store_says_that_it_may_be_deleted(tmp_path: Path) -> None:
    (tmp_path / "cache.db").write_bytes(b"not a database, " * 100)
    with pytest.raises(ConfigError, match="may be deleted, it is made again"):
        _ = FeatureCache(tmp_path).store


def write_some(folder: str, seed: int) -> None:
    torch.set_num_threads(1)
    model, processor = tiny()
    keep(model, Path(folder))
    for number in range(8):
        queries(model, processor, clip(2.0, seed + number, sound=False))


def test_writers_side_by_side_lose_nothing(pair, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_some, args=(str(tmp_path), seed)) for seed in (0, 4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    model, processor = pair
    cache = keep(model, tmp_path)
    queries(model, processor, *(clip(2.0, seed, sound=False) for seed in range(12)))
    assert (cache.hits, cache.misses) == (12, 0)


def test_features_are_filled_for_a_record_file_and_only_once(tmp_path: Path, capsys) -> None:
    model, processor = tiny()
    save(model, processor, tmp_path / "model")
    make(tmp_path / "a.mp4", seconds=3, sounds=[tone(3, 44_100)])
    part = {"type": "video", "video": str(tmp_path / "a.mp4")}
    rows = [
        {"id": str(number), "messages": [{"role": "user", "content": [part, question]}], "answer": "a star"}
        for number, question in enumerate(["What?", "Who?"])
    ]
    write_records(tmp_path / "rows.jsonl", rows)
    (tmp_path / "e.yaml").write_text(f"name: e\ndata: {{train: {tmp_path / 'rows.jsonl'}, val: world:val}}\n")

    def fill() -> str:
        folder = f"data.cache.folder={tmp_path / 'features'}"
        with pytest.raises(SystemExit) as stopped:
            main(["data", "features", str(tmp_path / "e.yaml"), folder, "--model", str(tmp_path / "model")])
        assert not stopped.value.code
        return capsys.readouterr().out

    assert "4 windows and chunks computed, 0 were there" in fill()
    assert "0 windows and chunks computed, 4 were there" in fill()


def test_recordings_with_captions_alone_are_filled_too(tmp_path: Path) -> None:
    save(*tiny(), tmp_path / "model")
    make(tmp_path / "a.mp4", seconds=1)
    user = [{"type": "video", "video": str(tmp_path / "a.mp4")}]
    row = {"id": "1", "messages": [{"role": "user", "content": user}], "captions": ["a star"]}
    write_records(tmp_path / "rows.jsonl", [row])
    assert fill(str(tmp_path / "model"), str(tmp_path / "rows.jsonl"), tmp_path / "features", 1.0) == (1, 0)


def test_where_filling_fails_its_progress_bar_is_closed_at_once(tmp_path: Path) -> None:
    """And not by Python as it ends: there a bar of rich may wait for ever for its own thread."""
    save(*tiny(), tmp_path / "model")
    make(tmp_path / "a.mp4", seconds=1)
    user = [{"type": "video", "video": str(tmp_path / "a.mp4")}]
    row = {"id": "1", "messages": [{"role": "user", "content": user}], "captions": ["a star"]}
    write_records(tmp_path / "rows.jsonl", [row])
    rows, features = str(tmp_path / "rows.jsonl"), tmp_path / "features"
    features.write_text("no folder")
    closed = []

    def progress(items: Iterable[Any], total: int) -> Iterator[Any]:
        try:
            yield from items
        finally:
            closed.append(total)

    with pytest.raises(ConfigError, match="no cache can be kept there") as caught:
        fill(str(tmp_path / "model"), rows, features, 1.0, progress=progress)
    assert closed == [1], caught  # while the error, and so its traceback, is alive


def test_windows_of_the_index_are_those_of_a_prompt(tmp_path: Path) -> None:
    """Several windows in one chunk of the audio tower: the index asks the cache for the same chunks."""
    audio = SETTINGS["audio"] | {"max_source_positions": 300}  # 6 s, 3 windows
    model, processor = build_model(Model.model_validate(SETTINGS | {"audio": audio}), list(TEXTS))
    cache = keep(model.eval(), tmp_path)
    recording = clip(8.0)
    queries(model, processor, recording)
    before = cache.misses
    rows = list(Embedder(model, processor, batch_windows=4).windows(recording))
    assert cache.misses == before
    assert [row.modality for row in rows] == ["video", "audio", "both"] * 4


def test_the_index_finds_what_training_has_kept(tmp_path: Path) -> None:
    model, processor = tiny()
    save(model, processor, tmp_path / "model")
    make(tmp_path / "a.mp4", seconds=3, sounds=[tone(3, 44_100)])
    plain = Embedder.from_pretrained(tmp_path / "model").embed_clips([tmp_path / "a.mp4"])
    first = Embedder.from_pretrained(tmp_path / "model", features=tmp_path / "features")
    vectors = first.embed_clips([tmp_path / "a.mp4"])
    again = Embedder.from_pretrained(tmp_path / "model", features=tmp_path / "features")
    runs = count_runs(again.model)
    assert np.array_equal(again.embed_clips([tmp_path / "a.mp4"]), vectors)
    assert runs == []
    np.testing.assert_allclose(vectors, plain, atol=0.02)


def test_towers_of_bases_are_filled_without_a_checkpoint(tmp_path: Path) -> None:
    settings = Model.model_validate(SETTINGS | base_folders(tmp_path))
    make(tmp_path / "a.mp4", seconds=1)
    user = [{"type": "video", "video": str(tmp_path / "a.mp4")}]
    write_records(
        tmp_path / "rows.jsonl",
        [{"messages": [{"role": "user", "content": user}], "captions": ["a star"]}],
    )
    with untrained(settings) as frozen:
        assert fill(frozen, str(tmp_path / "rows.jsonl"), tmp_path / "features", 1.0) == (1, 0)
    model, processor = build_model(settings)  # as training does
    cache = keep(model, tmp_path / "features")
    queries(model, processor, str(tmp_path / "a.mp4"))
    assert (cache.hits, cache.misses) == (1, 0)
    random = settings.model_copy(update={"audio": SETTINGS["audio"]})
    with pytest.raises(ConfigError, match=r"model\.audio begins with random weights"), untrained(random):
        pass
