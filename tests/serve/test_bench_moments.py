"""`mllm bench moments`: overlap by hand, and the smallest run there is."""

from __future__ import annotations

import json

import pytest

from serve.bench_moments import bench_moments, overlap


def test_overlap_by_hand():
    right = ("a.mp4", 4.0, 8.0)
    assert overlap(("a.mp4", 4.0, 6.0), right) == 0.5
    assert overlap(("a.mp4", 6.0, 10.0), right) == pytest.approx(2 / 6)
    assert (
        overlap(("a.mp4", 0.0, 4.0), right)
        == overlap(("b.mp4", 4.0, 8.0), right)
        == overlap(None, right)
        == 0.0
    )


@pytest.mark.slow
def test_every_kind_of_question_is_asked_in_every_way(tmp_path, capsys):
    file = tmp_path / "numbers.json"
    numbers = bench_moments(recordings=1, scenes=2, json_file=file, model=None)
    assert json.loads(file.read_text()) == numbers
    assert set(numbers) == {"video", "audio", "both", "said"}
    assert set(numbers["video"]) == {"one window", "moments there", "moments everywhere", "by ranks"}
    assert numbers["said"]["moments there"] == {"r1@.5": 1.0, "overlap": pytest.approx(1.0), "questions": 2}
    assert "R1@.5 and mean overlap; 1 recordings of 2 scenes of world:val,media=av" in capsys.readouterr().out
