"""The world as media files."""

import json

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from data_prep.cli import app
from data_prep.world import render, sound
from data_prep.world.scene import sample_episode
from data_prep.world.source import open_world
from data_prep.world.write import write_media, write_world
from mllm.errors import MllmError
from mllm.media.windows import cut, load_windows
from mllm.records.record import read_records
from mllm.records.source import open_source


def decode(path):
    """(frame times, frames, waveform, its first sample's time) of an mp4."""
    with av.open(str(path)) as container:
        pictures = [(float(f.time), f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return [t for t, _ in pictures], np.stack([p for _, p in pictures]), None, 0.0
        pieces = [(float(f.time), f.to_ndarray()[0]) for f in container.decode(audio=0)]
    wave = np.concatenate([piece for _, piece in pieces])
    return [t for t, _ in pictures], np.stack([p for _, p in pictures]), wave, pieces[0][0]


def test_mp4_shows_and_sounds_what_the_scene_says(tmp_path):
    for index in range(6):
        (scene,) = sample_episode("val", 0, index, forms={"both": 1.0}).scenes
        path = tmp_path / f"{index}.mp4"
        write_media(scene, path)
        times, frames, wave, begins = decode(path)
        assert times == [i / 8 for i in range(round(scene.duration * 8))]
        assert frames.shape[1:] == (128, 128, 3)
        drawn = render.render(scene, np.array(times), 128)
        assert np.abs(frames.astype(int) - drawn).mean() < 6
        for shape in scene.shapes:
            for i, time in enumerate(times):
                if shape.appear <= time < shape.vanish:
                    done = (time - shape.appear) / (shape.vanish - shape.appear)
                    x, y = 2 * (np.array(shape.begin) * (1 - done) + np.array(shape.end) * done)
                    colour = frames[i, int(y), int(x)].astype(int)
                    away = {name: np.abs(colour - paint).sum() for name, paint in render.PALETTE.items()}
                    assert min(away, key=away.get) == shape.colour
        played = sound.play(scene)
        for event in scene.sounds:
            # The delay that fits best, within a tenth of a second around the event.
            start = round(event.start * 16000)
            piece = played[start : start + 8000]
            shifts = range(-1600, 1601, 40)
            first = start - round(begins * 16000)
            fits = [wave[max(first + s, 0) :][: len(piece)] for s in shifts]
            scores = [float(f @ piece[: len(f)]) for f in fits]
            assert abs(shifts[int(np.argmax(scores))]) / 16000 < 0.05


def test_files_give_the_windows_that_arrays_give(tmp_path):
    source = open_world("val,clips=12")
    for index in range(12):
        for scene in source.episode(index).scenes:
            path = tmp_path / ("clip." + {"audio": "wav", "image": "png"}.get(scene.form, "mp4"))
            write_media(scene, path)
            made = cut(source.clip(scene, "made"), source.spec)
            read, _ = load_windows(path, source.spec)
            assert [(w.start, w.frames is None, w.waveform is None) for w in made] == [
                (w.start, w.frames is None, w.waveform is None) for w in read
            ]
            for a, b in zip(made, read, strict=True):
                assert abs(a.end - b.end) < 0.06
                if a.frames is not None:
                    assert np.abs(a.frames.astype(int) - b.frames).mean() < 6
                if a.waveform is not None:
                    together = np.corrcoef(a.waveform, b.waveform[: len(a.waveform)])[0, 1]
                    assert together > 0.9 or np.abs(a.waveform).max() < 0.05


def test_silent_video_sound_alone_and_image(tmp_path):
    (silent,) = sample_episode("val", 0, 0, forms={"video": 1.0}).scenes
    write_media(silent, tmp_path / "silent.mp4")
    assert decode(tmp_path / "silent.mp4")[2] is None
    source = open_world("val,media=audio+image,clips=8")
    write_world(tmp_path / "out", source, workers=1)
    endings = {path.suffix for path in (tmp_path / "out/clips").iterdir()}
    assert endings == {".wav", ".png"}


def test_a_written_world_is_the_same_source(tmp_path):
    world = open_world("val,clips=14")
    written = write_world(tmp_path / "new/world", world, workers=2)
    rows = list(read_records(tmp_path / "new/world/records.jsonl"))
    assert len(rows) == written.records == sum(written.tasks.values())
    assert rows[0]["id"] == world.conversations(0)[0]["id"]
    raw = [json.loads(line) for line in (tmp_path / "new/world/records.jsonl").read_text().splitlines()]
    media = {
        p[p["type"]] for row in raw for m in row["messages"] for p in m["content"] if p["type"] != "text"
    }
    assert media
    assert all(path.startswith("clips/") for path in media)
    pairs = open_source(str(tmp_path / "new/world/pairs.jsonl"))
    assert len(pairs) == written.recordings
    captions = pairs.pair(0)["captions"]
    assert any(captions.values())
    # Only the finished folder is there.
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["world"]


def test_an_existing_folder_is_refused_and_a_failure_leaves_nothing(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/work.txt").write_text("hours of it")
    with pytest.raises(MllmError, match="exists already"):
        write_world(tmp_path / "mine", open_world("val,clips=1"), workers=1)

    def stop(scenes):
        yield next(scenes)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "other", open_world("val,clips=3"), workers=1, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_command(tmp_path):
    run = CliRunner().invoke
    done = run(
        app, ["world", "--clips", "3", "--split", "comp", "--workers", "1", "--out", str(tmp_path / "w")]
    )
    assert done.exit_code == 0, done.output
    assert "recordings and" in done.output
    assert (tmp_path / "w/records.jsonl").is_file()
    assert "clips/s" in run(app, ["world", "--clips", "5", "--array-speed"]).output
    assert "first_colour" in run(app, ["world", "--clips", "300", "--balance"]).output
    assert isinstance(run(app, ["world"]).exception, MllmError)
