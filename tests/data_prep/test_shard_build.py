"""Shards: what training reads from them is what it would read from the recordings themselves."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import threading
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from data_prep.shard_build import Storage, build, build_shard, make_plan
from mllm.command import bench, cli
from mllm.errors import ConfigError, MediaError, MllmError, RecordError
from mllm.files import alone_in
from mllm.media.windows import WindowSpec, load_windows
from mllm.models.checkpoint import load_processor
from mllm.records.jsonl import JsonlSource
from mllm.records.record import write_records
from mllm.records.shards import ShardSource, require_windows, write_shard
from mllm.records.source import open_source
from tests.media_files import clicks, frame_folder, make, tone
from tests.tiny import SETTINGS
from train.data import QuestionCollator

SPEC = WindowSpec(window_seconds=1.0, frames_per_window=2, max_windows=3, image_size=32)
EXACT = Storage(SPEC, "uint8")


def row(number: int, part: dict, answer: str = "a bell") -> dict:
    user = [part, {"type": "text", "text": f"question {number}"}]
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    return {"id": f"r{number}", "messages": messages, "task": "qa", "captions": {"video": ["a bell rings"]}}


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    """Six records about five recordings: whole, a span of it, mute, sound alone, frames with sound."""
    folder = tmp_path_factory.mktemp("media")
    film = make(folder / "film.mp4", seconds=5, sounds=[clicks(5, 44_100)])
    make(folder / "mute.mp4", seconds=2)
    make(folder / "sound.wav", codec=None, sounds=[tone(2, 16_000)], sound_codec="pcm_s16le", rate=16_000)
    frame_folder(folder / "frames")
    rows = [
        row(0, {"type": "video", "video": str(film)}),
        row(1, {"type": "video", "video": str(film)}, "nothing"),
        row(2, {"type": "video", "video": str(film), "start": 1.0, "end": 2.5}),
        row(3, {"type": "video", "video": str(folder / "mute.mp4")}),
        row(4, {"type": "audio", "audio": str(folder / "sound.wav")}),
        row(5, {"type": "video", "video": str(folder / "frames"), "audio": str(folder / "sound.wav")}),
    ]
    write_records(folder / "rows.jsonl", rows)
    return folder / "rows.jsonl"


def parts(source: JsonlSource) -> list[dict]:
    return [
        record["messages"][0]["content"][0]
        for scene in range(len(source))
        for record in source.conversations(scene)
    ]


def cut(part: dict):
    options = {
        key: value for key, value in part.items() if key in ("start", "end", "audio") and key != part["type"]
    }
    return load_windows(part[part["type"]], SPEC, want_video=part["type"] == "video", **options)


def test_windows_from_shards_are_those_of_the_recordings(records: Path, tmp_path: Path) -> None:
    decoded = build(make_plan(records, EXACT, shard_size=2), "rows", tmp_path / "built", workers=1)
    assert decoded == 5
    shards, files = open_source(str(tmp_path / "built")), JsonlSource(records)
    assert isinstance(shards, ShardSource)
    assert len(shards) == len(files)
    for built, original in zip(parts(shards), parts(files), strict=True):
        (windows, seen), (expected, also_seen) = cut(built), cut(original)
        assert seen == also_seen
        for window, other in zip(windows, expected, strict=True):
            assert (window.frames is None) == (other.frames is None)
            assert window.frames is None or np.array_equal(window.frames, other.frames)
            assert (window.waveform is None) == (other.waveform is None)
            assert (
                window.waveform is None
                or np.abs(window.waveform - np.clip(other.waveform, -1, 1)).max() < 2e-5
            )
    first, second = (record["messages"][0]["content"][0]["video"] for record in shards.conversations(0))
    assert first is second, "records on one recording share it"
    assert shards.pair(0)["captions"] == files.pair(0)["captions"]


def test_jpeg_is_smaller_and_near(records: Path, tmp_path: Path) -> None:
    sizes = {}
    for name, form in (("uint8", EXACT), ("jpeg", Storage(SPEC, "jpeg", 95))):
        build(make_plan(records, form, 8), "rows", tmp_path / name, workers=1)
        sizes[name] = (tmp_path / name / "shard-00000.arrow").stat().st_size
    exact, near = (ShardSource(tmp_path / name).clip(0).frames for name in ("uint8", "jpeg"))
    assert np.abs(exact.astype(int) - near).mean() < 8
    assert sizes["jpeg"] < sizes["uint8"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_is_missing_is_made_again_and_nothing_else(records: Path, tmp_path: Path) -> None:
    plan = make_plan(records, EXACT, shard_size=2)
    build(plan, "rows", tmp_path / "whole", workers=2)
    build(plan, "rows", tmp_path / "killed", workers=1)
    (tmp_path / "killed" / "records.jsonl").unlink()
    (tmp_path / "killed" / "shard-00001.arrow").rename(tmp_path / "killed" / "shard-00001.arrow.part")
    with pytest.raises(RecordError, match="built in part only: the same `mllm data build` goes on"):
        open_source(str(tmp_path / "killed"))
    assert build(plan, "rows", tmp_path / "killed", workers=1) == 2
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert build(plan, "rows", tmp_path / "killed") == 0


def test_another_form_needs_another_folder(records: Path, tmp_path: Path) -> None:
    out = tmp_path / "built"
    build(make_plan(records, EXACT, 8), "rows", out, workers=1)
    with pytest.raises(ConfigError, match=r"built from something else \(frames, quality differ\)"):
        build(make_plan(records, Storage(SPEC), 8), "rows", out)
    build(make_plan(records, Storage(SPEC), 8), "rows", out, workers=1, restart=True)
    assert ShardSource(out).frames == "jpeg"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    (tmp_path / "mine" / "download.mp4.part").touch()
    with pytest.raises(ConfigError, match="holds something else"):
        build(make_plan(records, EXACT, 8), "rows", tmp_path / "mine", restart=True)
    assert len(list((tmp_path / "mine").iterdir())) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_recording_that_cannot_be_read_stops_the_build_with_its_name(
    tmp_path: Path, workers: int, monkeypatch
) -> None:
    monkeypatch.setattr("data_prep.shard_build.SAMPLED", 1)  # the estimate does not meet it
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    make(tmp_path / "good.mp4")
    rows = [
        row(number, {"type": "video", "video": str(tmp_path / name)})
        for number, name in enumerate(["good.mp4", "bad.mp4"])
    ]
    write_records(tmp_path / "rows.jsonl", rows)
    with pytest.raises(MediaError, match=r"bad.mp4: .*; `mllm data check rows --fix` finds all such"):
        build(make_plan(tmp_path / "rows.jsonl", EXACT, 1), "rows", tmp_path / "built", workers=workers)
    assert not list((tmp_path / "built").glob("*.part"))


def test_missing_recordings_name_the_command_that_leaves_them_out(tmp_path: Path) -> None:
    rows = [row(number, {"type": "video", "video": f"{number}.mp4"}) for number in range(2)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    make(tmp_path / "0.mp4")
    with pytest.raises(
        RecordError, match=r"row 2: there is no '1.mp4' in .*`mllm data check --fix` writes a file"
    ):
        make_plan(tmp_path / "rows.jsonl", EXACT, 8)


@pytest.mark.parametrize("damage", ["cut", "cut between rows", "gone"])
def test_a_damaged_shard_is_named_and_made_again(records: Path, tmp_path: Path, damage: str) -> None:
    plan = make_plan(records, EXACT, 2)
    build(plan, "rows", tmp_path / "whole", workers=1)
    build(plan, "rows", tmp_path / "built", workers=1)
    shard = tmp_path / "built" / "shard-00001.arrow"
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-3000])
    elif damage == "cut between rows":
        rows = pa.ipc.open_stream(shard.read_bytes()).read_all().to_batches()
        write_shard(shard, rows[:1])
    else:
        shard.unlink()
    with pytest.raises(RecordError, match="shard-00001.arrow: missing or cut off: `mllm data build` makes"):
        ShardSource(tmp_path / "built").clip(0)
    assert build(plan, "rows", tmp_path / "built", workers=1) == 2
    assert contents(tmp_path / "built") == contents(tmp_path / "whole")


def test_two_builds_in_one_folder_do_not_meet(records: Path, tmp_path: Path) -> None:
    with (
        alone_in(tmp_path / "built", "mllm data build"),
        pytest.raises(MllmError, match="`mllm data build` works there already: wait, or give another --out"),
    ):
        build(make_plan(records, EXACT, 2), "rows", tmp_path / "built", workers=1)
    assert build(make_plan(records, EXACT, 2), "rows", tmp_path / "built", workers=1) == 5


def test_a_worker_that_outlives_its_build_spoils_nothing(records: Path, tmp_path: Path) -> None:
    """What it renames at last is what the next build makes, too; and its half file has a name of its own."""
    plan = make_plan(records, EXACT, 2)
    build(plan, "rows", tmp_path / "whole", workers=1)
    stretch, shard = plan.stretches[0], tmp_path / "built" / "shard-00000.arrow"
    shard.parent.mkdir()
    (tmp_path / "built" / "build.json").write_bytes((tmp_path / "whole" / "build.json").read_bytes())

    def outlive() -> None:
        with suppress(MllmError):  # its half file may go
            build_shard(shard, stretch, EXACT)

    left = threading.Thread(target=outlive)
    left.start()
    build(plan, "rows", tmp_path / "built", workers=1)
    left.join()
    build(plan, "rows", tmp_path / "built", workers=1)
    assert contents(tmp_path / "built") == contents(tmp_path / "whole")


def test_a_recording_that_was_changed_is_another_one(records: Path, tmp_path: Path) -> None:
    folder = tmp_path / "media"
    shutil.copytree(records.parent, folder)
    rows = [row(0, {"type": "video", "video": str(folder / "film.mp4")})]
    rows.append(
        row(1, {"type": "video", "video": str(folder / "frames"), "audio": str(folder / "sound.wav")})
    )
    write_records(tmp_path / "rows.jsonl", rows)

    def again() -> int:
        return build(
            make_plan(tmp_path / "rows.jsonl", EXACT, 8), "another name", tmp_path / "out", workers=1
        )

    assert again() == 2
    assert again() == 0
    for changed in (folder / "film.mp4", folder / "sound.wav", next((folder / "frames").glob("*.png"))):
        before = changed.stat()
        os.utime(changed)
        with pytest.raises(ConfigError, match=r"built from something else \(listed differ\)"):
            again()
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert again() == 0


def test_a_restart_takes_away_its_own_files_and_none_else(records: Path, tmp_path: Path) -> None:
    plan = make_plan(records, EXACT, 2)
    build(plan, "rows", tmp_path / "built", workers=1)
    (tmp_path / "built" / "notes").mkdir()
    (tmp_path / "built" / "build.json.elsewhere.1.part").touch()
    assert build(plan, "rows", tmp_path / "built", workers=1, restart=True) == 5
    assert (tmp_path / "built" / "notes").is_dir()


def test_a_damaged_jpeg_is_named(records: Path, tmp_path: Path) -> None:
    build(make_plan(records, Storage(SPEC), 8), "rows", tmp_path / "built", workers=1)
    shard = tmp_path / "built" / "shard-00000.arrow"
    shard.write_bytes(shard.read_bytes().replace(b"\xff\xd8\xff", b"\0\0\0", 1))
    with pytest.raises(RecordError, match="recording 0 is damaged .*: build it afresh with --restart"):
        ShardSource(tmp_path / "built").clip(0)


def test_a_worker_whose_build_was_killed_puts_nothing_in_place_with_a_mocked_parent(
    records: Path, tmp_path: Path, monkeypatch
) -> None:
    gone = type("Gone", (), {"is_alive": lambda self: False})()
    monkeypatch.setattr("data_prep.shard_build.parent_process", lambda: gone)
    with pytest.raises(MllmError, match="its build was killed"):
        build_shard(tmp_path / "shard-00000.arrow", make_plan(records, EXACT, 8).stretches[0], EXACT)
    assert not list(tmp_path.iterdir())


def test_shards_for_another_model_are_refused(records: Path, tmp_path: Path) -> None:
    build(make_plan(records, EXACT, 8), "rows", tmp_path / "built", workers=1)
    source = open_source(str(tmp_path / "built"))
    require_windows(source, SPEC)
    require_windows(open_source(str(records)), replace(SPEC, image_size=64))
    with pytest.raises(ConfigError, match=r"built for another model \(image_size 32, not 64\)"):
        require_windows(source, replace(SPEC, image_size=64))
    with pytest.raises(ConfigError, match="built for another model"):
        QuestionCollator(source, load_processor("nano"), 0, 1)


def test_a_small_build_has_shards_enough_to_share(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.wav" for number in range(600)]
    for path in paths:
        path.touch()
    rows = [row(number, {"type": "audio", "audio": str(path)}) for number, path in enumerate(paths)]
    write_records(tmp_path / "rows.jsonl", rows)
    sizes = [len(stretch) for stretch in make_plan(tmp_path / "rows.jsonl", EXACT, 256).stretches]
    assert sizes == [19] * 31 + [11]


@pytest.mark.parametrize("out", ["file.txt/built", "file.txt"])
def test_a_folder_that_cannot_be_made_is_named(records: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "file.txt").touch()
    with pytest.raises(MllmError, match=r"file.txt.*: cannot be written \(.*\): give another folder"):
        build(make_plan(records, EXACT, 8), "rows", tmp_path / out, workers=1)


def test_a_disk_that_is_too_small_is_told_before_with_a_mocked_disk(
    records: Path, tmp_path: Path, monkeypatch
) -> None:
    from data_prep import shard_build as module

    free = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: free)
    with pytest.raises(
        ConfigError, match="5 recordings need about .* MB, 0.0 MB are free: give another --out"
    ):
        build(make_plan(records, EXACT, 8), "rows", tmp_path / "built")


def test_a_shard_that_cannot_be_written_leaves_no_half(records: Path, tmp_path: Path) -> None:
    import resource
    import signal

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(MllmError, match=r"shard-00000.arrow: cannot be written \(File too large\)"):
            build(make_plan(records, EXACT, 8), "rows", tmp_path / "built", workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in (tmp_path / "built").iterdir()] == ["build.json"]


def test_data_workers_open_shards_for_themselves(records: Path, tmp_path: Path) -> None:
    build(make_plan(records, EXACT, 8), "rows", tmp_path / "built", workers=1)
    source = ShardSource(tmp_path / "built")
    source.clip(0)
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copy.clip(0).frames, source.clip(0).frames)


@pytest.mark.slow
def test_bench_data_compares_building_reading_and_epochs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("data_prep.bench.REALISTIC", SETTINGS)
    command = [
        "data",
        "--recordings",
        "8",
        "--size",
        "32",
        "--cached",
        "1",
        "--json",
        str(tmp_path / "n.json"),
    ]
    result = CliRunner().invoke(bench.app, command, catch_exceptions=False)
    assert "epoch with kept features" in result.output
    numbers = json.loads((tmp_path / "n.json").read_text())
    assert all(value > 0 for name, value in numbers.items() if not name.startswith("grown"))


def test_recordings_are_built_for_the_checkpoint_that_an_experiment_starts_from(
    records: Path, tmp_path: Path, capsys
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(f"start: nano\ndata: {{train: {records}}}\n")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["data", "build", str(config), "--out", str(tmp_path / "built")])
    assert not stopped.value.code
    windows = ShardSource(tmp_path / "built" / records.stem).manifest["windows"]
    assert windows["image_size"] == 64
    assert windows == asdict(load_processor("nano").spec)
