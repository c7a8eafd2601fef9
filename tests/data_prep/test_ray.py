"""--engine ray: a local cluster of two workers writes what this machine's processes write."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import diskcache
import pytest

from data_prep import check, features, shard_build, transcribe
from data_prep.check_report import write_json
from mllm.errors import MediaError
from mllm.media.windows import WindowSpec
from mllm.models.checkpoint import save
from mllm.records.record import write_records
from tests.data_prep.test_check import odd
from tests.media_files import make, tone
from tests.tiny import tiny

pytestmark = pytest.mark.slow
FORM = shard_build.Storage(WindowSpec(1.0, 2, 3, 32))


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def records(tmp_path: Path) -> Path:
    rows = []
    for number in range(12):
        path = tmp_path / f"{number}.mp4"
        make(path, seconds=1 + number % 2, sounds=[tone(1, 44_100)] if number % 3 else ())
        user = [{"type": "video", "video": str(path)}, {"type": "text", "text": "What?"}]
        rows.append({"id": str(number), "messages": [{"role": "user", "content": user}], "answer": "a star"})
    write_records(tmp_path / "rows.jsonl", rows)
    return tmp_path / "rows.jsonl"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_check_finds_the_same(cluster, records: Path, tmp_path: Path) -> None:
    (tmp_path / "3.mp4").write_bytes(b"nothing")
    for engine in ("local", "ray"):
        found = check.check([records], workers=2, engine=engine)
        assert [(finding.row, finding.kind) for finding in found.findings] == [(4, "cannot be read")]
        write_json(found, tmp_path / f"{engine}.json")
    assert (tmp_path / "local.json").read_bytes() == (tmp_path / "ray.json").read_bytes()


def test_a_recording_that_hangs_or_crashes_costs_one_worker_with_a_mocked_decoder(cluster, capfd) -> None:
    media = {name: ("video", name, {}) for name in ("a", "crashes", "b", "hangs", "raises", "c")}
    facts = dict(check.look_at_all(media, workers=2, timeout=4, engine="ray", look=odd))
    assert "crashed the decoder" in facts["crashes"].error
    assert "decoding hung for 4 s" in facts["hangs"].error
    assert "it fails (ValueError: of some library)" in facts["raises"].error
    assert {name for name, found in facts.items() if found.error is None} == {"a", "b", "c"}
    told = capfd.readouterr().err
    assert "INFO" not in told
    assert "deprecated" not in told


def test_build_writes_the_same_bytes(cluster, records: Path, tmp_path: Path) -> None:
    plan = shard_build.make_plan(records, FORM, 3)
    for engine in ("local", "ray"):
        assert shard_build.build(plan, "rows", tmp_path / engine, workers=2, engine=engine) == 12
    assert contents(tmp_path / "local") == contents(tmp_path / "ray")


def test_build_names_a_bad_recording(cluster, records: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(shard_build, "SAMPLED", 1)
    (tmp_path / "3.mp4").write_bytes(b"nothing")
    plan = partial(shard_build.make_plan, records, FORM, 3)
    with pytest.raises(MediaError, match="3.mp4"):
        shard_build.build(plan(), "rows", tmp_path / "ray", workers=2, engine="ray")


def test_transcripts_are_the_same(cluster, records: Path, tmp_path: Path, tiny_whisper: Path) -> None:
    ears = transcribe.Whisper(str(tiny_whisper), "en")
    for engine in ("local", "ray"):
        counts = transcribe.transcribe(records, ears, tmp_path / engine, engine, workers=2)
        assert counts == (12, 0)
    assert contents(tmp_path / "local") == contents(tmp_path / "ray")


def test_features_are_the_same(cluster, records: Path, tmp_path: Path, monkeypatch) -> None:
    save(*tiny(), tmp_path / "model")
    monkeypatch.setattr(features, "SCENES", 4)
    model, source = str(tmp_path / "model"), str(records)
    new, old = features.fill(model, source, tmp_path / "cache", 1.0, "ray", workers=2)
    assert new > 0
    assert features.fill(model, source, tmp_path / "cache", 1.0) == (0, new + old)
    features.fill(model, source, tmp_path / "local", 1.0)
    kept = [diskcache.Cache(str(tmp_path / name)) for name in ("cache", "local")]
    ray, local = ({key: cache[key] for key in cache.iterkeys()} for cache in kept)
    assert ray == local
