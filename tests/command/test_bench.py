"""`mllm bench`: the verbs that are found, and the Q-Former's measurement at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from mllm.command import bench, bench_qformer
from mllm.errors import ConfigError

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


def test_pairwise_cosine():
    assert bench_qformer.pairwise_cosine(torch.zeros(3, 4)) == 1.0
    assert bench_qformer.pairwise_cosine(torch.ones(3, 4)) == 1.0
    assert bench_qformer.pairwise_cosine(torch.eye(4)) == pytest.approx(0.0)
    assert bench_qformer.pairwise_cosine(torch.tensor([[1.0, 0], [1, 1]])) == pytest.approx(0.5**0.5)
