"""`mllm bench`: the verbs that are found, and the measurements of Q-Former and alignment at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from mllm.command import bench, bench_align_pairs, bench_qformer
from mllm.errors import ConfigError, MediaError
from mllm.media.clip import Clip

runner = CliRunner()


def test_help_names_all_and_loads_no_model():
    heavy = ("torch", "transformers", "av")
    script = f"import sys, mllm.command.bench; sys.exit(any(name in sys.modules for name in {heavy}))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    output = runner.invoke(bench.app, ["--help"]).output
    assert "media" in output
    assert "qformer" in output


def test_qformer(tmp_path, monkeypatch):
    tiny = bench_qformer.QFormerSize(3, 16, 2, 2, tokens=10, context_width=12, windows=2)
    monkeypatch.setitem(bench_qformer.SIZES, "nano", tiny)
    monkeypatch.setenv("COLUMNS", "120")
    result = runner.invoke(bench.app, ["qformer", "--steps", "1", "--json", str(tmp_path / "new/q.json")])
    assert result.exit_code == 0, result.output
    assert "query cosine" in result.output
    ours, same, theirs = json.loads((tmp_path / "new/q.json").read_text())["rows"]
    assert ours["name"] == "ours"
    assert abs(ours["query_cosine"]) < 0.9
    assert abs(same["query_cosine"]) < 0.9
    # BLIP-2 as built: queries of zeros, whose outputs stay one and the same.
    assert (theirs["query_cosine"], theirs["output_cosine"]) == (1.0, 1.0)
    assert ours["parameters"] == pytest.approx(same["parameters"], rel=0.1)
    assert all(row["ms_per_step"] > 0 for row in (ours, same, theirs))


def test_options_and_errors_are_the_function_s_own():
    shown = runner.invoke(bench.app, ["qformer", "--help"])
    assert shown.exit_code == 0
    assert "--steps" in shown.output
    assert runner.invoke(bench.app, ["qformer", "--bogus"]).exit_code == 2
    with pytest.raises(ConfigError, match="choose from nano, base"):
        runner.invoke(bench.app, ["qformer", "--size", "huge"], catch_exceptions=False)


def test_alignment(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    words = ["--times", "1", "--seconds", "12", "--clips", "3", "--no-space", "--repeats", "1"]
    result = runner.invoke(bench.app, ["align", *words, "--json", str(tmp_path / "a.json")])
    assert result.exit_code == 0, result.output
    assert "noise, -10 dB" in result.output
    assert "chance" in result.output
    numbers = json.loads((tmp_path / "a.json").read_text())
    rows = {(row["condition"], row["way"]): row for row in numbers["sounds"]}
    for condition in ("same", "AAC, 32 kbit/s", "Opus, 16 kbit/s", "noise, 0 dB"):
        assert (rows[condition, "mel, dtw"]["right"], rows[condition, "mel, dtw"]["sure"]) == (1, 1), (
            condition
        )
    assert rows["1 s of each", "mel, dtw"]["sure"] == 0
    assert rows["1 s of each", "mel, dtw"]["right"] is None
    assert {(row["world"], row["way"]) for row in numbers["world"]} >= {
        ("together", "motion"),
        ("as it is", "events"),
    }
    assert set(numbers["speed"]["align"]) == {"dtw", "attention", "hybrid"}
    reliability = numbers["reliability"]
    assert sum(one["pairs"] for one in reliability["bins"]) == reliability["pairs"]
    assert reliability["fitted"]["ece"] is None  # one recording is not both learned from and tested with
    assert 1 < reliability["fitted"]["middle"] < 6
    soundfile.write(tmp_path / "short.wav", np.zeros(16_000), 16_000)
    with pytest.raises(MediaError, match="short.wav: less than 5 s of sound: give a longer recording"):
        runner.invoke(bench.app, ["align", str(tmp_path / "short.wav")], catch_exceptions=False)


def test_the_world_s_pairs_have_the_offset_that_they_claim():
    """A picture that is as bright as the sound is loud, in place of the world."""
    times = np.arange(0, 12, 0.04)
    loud = np.abs(np.random.default_rng(0).normal(0, 0.2, 12)).repeat(16_000).astype(np.float32)
    grey = (255 * np.minimum(1, loud[(times * 16_000).astype(int)])).astype(np.uint8)
    frames = np.broadcast_to(grey[:, None, None, None], (300, 4, 4, 3)).copy()
    whole = Clip(frames, times, loud, 12.0, "world")

    class Source:
        def __len__(self):
            return 1

        def episode(self, index, pairs):
            return SimpleNamespace(scenes=[None])

        def clip(self, scene, name):
            return whole

    pairs = list(bench_align_pairs.world_pairs(Source(), 21, np.random.default_rng(0), together=False))
    assert [pair.offset for pair in pairs] == pytest.approx(list(np.arange(-10, 11) / 5))
    for pair in pairs:
        heard = pair.second.waveform[::640][:125]
        lag = round(25 * pair.offset)
        seen = pair.first.frames[:125, 0, 0, 0] / 255
        shared = slice(max(0, -lag), min(len(seen), len(heard) - lag))
        later = heard[shared.start + lag : shared.stop + lag]
        assert np.mean(np.abs(seen[shared] - later) < 0.01) > 0.9, pair.offset


def test_pairwise_cosine():
    assert bench_qformer.pairwise_cosine(torch.zeros(3, 4)) == 1.0
    assert bench_qformer.pairwise_cosine(torch.ones(3, 4)) == 1.0
    assert bench_qformer.pairwise_cosine(torch.eye(4)) == pytest.approx(0.0)
    assert bench_qformer.pairwise_cosine(torch.tensor([[1.0, 0], [1, 1]])) == pytest.approx(0.5**0.5)
