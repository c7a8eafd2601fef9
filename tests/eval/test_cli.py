"""`mllm eval NAME…` from end to end, with a tiny model: our benchmarks, and one of another package."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console
from typer.testing import CliRunner

from eval.benchmark import Benchmark, Candidate, load_benchmark, read_prompts
from eval.benchmarks import world
from eval.cli import _evaluated, app
from eval.targets import Target
from mllm.errors import ConfigError, MllmError
from mllm.experiment import experiment_type
from mllm.models.checkpoint import save
from mllm.records.answers import Generation
from mllm.records.record import write_records
from tests.media_files import make
from tests.test_answerer_remote import server  # noqa: F401
from tests.tiny import tiny

runner = CliRunner()
BIRDS = """
[mllm.benchmarks]
birds = birds:Birds
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    experiment = experiment_type()(eval={"clips": 3, "retrieval_clips": 4, "splits": ["comp"]})
    folder = tmp_path_factory.mktemp("run") / "nano"
    return save(*tiny(), folder, {"experiment.yaml": experiment.dump_yaml()})


@pytest.fixture
def small_prior(monkeypatch):
    """The prior of few scenes: the real one reads thousands."""
    train_prior = world.train_prior
    monkeypatch.setattr(world, "train_prior", lambda: train_prior(50))


def test_eval_world_on_arrays(checkpoint, tmp_path, monkeypatch, small_prior):
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(
        app, ["world", "--model", str(checkpoint), "--media", "arrays", "--max-tokens", "4"]
    )
    assert result.exit_code == 0, result.output
    done = re.findall(r"comp: (\d+) of (\d+) answers", result.output)  # a pipe has no bar
    assert done[-1][0] == done[-1][1]
    assert len(done) <= 10
    (folder,) = (tmp_path / "runs/eval").iterdir()
    assert folder.name.endswith("nano")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["clips"], metrics["backend"], metrics["max_tokens"]) == (3, "transformers", 4)
    assert list(metrics["splits"]) == ["comp"]  # as the checkpoint's experiment says
    comp = metrics["splits"]["comp"]
    assert comp["retrieval"]["both"]["clips"] == 4
    assert comp["overall"]["blind"] is not None
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert sum(row["group"] != "caption" for row in rows) == comp["overall"]["count"]
    assert (folder / "report.png").stat().st_size > 10_000


def test_a_benchmark_of_targets_alone_has_nothing_to_count():
    class Targets(Benchmark):
        def questions(self, split):
            return []

        def targets(self, rows, candidate, generation):
            return [Target("chat", 1.0, 3)]

    class Silent:
        def answer(self, messages, generation, progress=None):
            return []

    console = Console(file=io.StringIO())
    result = _evaluated(
        Targets(), "test", Candidate(Silent(), "none", None, None), Generation(), True, console
    )
    assert [target["title"] for target in result.targets] == ["chat"]


@pytest.mark.slow
def test_eval_world_on_files(checkpoint, tmp_path, monkeypatch, small_prior):
    words = ["world", "--model", str(checkpoint), "--split", "val", "--clips", "2", "--questions", "2"]
    words += [
        "--max-tokens",
        "4",
        "--search-clips",
        "0",
        "--no-blind",
        "--clips-folder",
        str(tmp_path / "clips"),
    ]
    result = runner.invoke(app, [*words, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "out/metrics.json").read_text())["splits"]["val"]["retrieval"] == {}
    # The files serve the next run.
    monkeypatch.setattr(world.subprocess, "run", lambda *args, **options: pytest.fail("written again"))
    source = world.write_files("val", 2, 2, 0, tmp_path / "clips")
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert {r["id"] for index in range(2) for r in source.conversations(index)} == {row["id"] for row in rows}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "test"], "choose from val, comp"),
        (["--media", "gif"], "choose mp4 or arrays"),
        (["--media", "arrays", "--url", "http://127.0.0.1:9"], "with --url take --media mp4"),
    ],
)
def test_wrong_words(checkpoint, words, message):
    model = [] if "--url" in words else ["--model", str(checkpoint)]
    with pytest.raises(ConfigError, match=message):
        runner.invoke(app, ["world", *model, *words], catch_exceptions=False)


def test_damaged_and_missing_recordings_are_counted_and_the_rest_is_scored(checkpoint, tmp_path):
    sound = np.sin(np.arange(16_000) / 20).astype(np.float32)
    soundfile.write(tmp_path / "tone.wav", sound, 16_000)
    (tmp_path / "bad.mp4").write_bytes(b"\0\1" * 999)
    write_film(tmp_path / "silent.mp4")
    os.mkfifo(tmp_path / "pipe.wav")
    media = ["tone.wav", "bad.mp4", "tone.wav", "gone.wav", "pipe.wav", "silent.mp4"]
    rows = []
    for number, name in enumerate(media):
        user = [{"type": "audio", "audio": name}, {"type": "text", "text": f"how high? ({number})"}]
        message = {"role": "user", "content": user}
        rows.append({"id": str(number), "task": "pitch", "messages": [message], "answer": "low"})
    write_records(tmp_path / "mine.jsonl", rows, media_must_exist=False)
    words = ["records", str(tmp_path / "mine.jsonl"), "--model", str(checkpoint), "--max-tokens", "3"]
    result = runner.invoke(app, [*words, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert result.exit_code == 0
    assert "4 questions left out, their recordings cannot be read; the first: " in result.output
    mine = json.loads((tmp_path / "out/metrics.json").read_text())["splits"]["mine"]
    assert (mine["overall"]["count"], mine["missing"]) == (2, 4)
    causes = {one["id"]: one["cause"] for one in mine["missing_recordings"]}
    assert {id: word in causes[id] for id, word in zip("1345", CAUSES, strict=True)} == dict.fromkeys(
        "1345", True
    ), causes
    lines = (tmp_path / "out/predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["0", "2"]

    write_records(tmp_path / "none.jsonl", [rows[1]])
    with pytest.raises(MllmError, match="none of the 1 questions can be asked; the first: .*bad.mp4"):
        runner.invoke(app, ["records", str(tmp_path / "none.jsonl"), *words[2:]], catch_exceptions=False)


CAUSES = ("not a recording", "no such file", "a pipe", "no sound")


def write_film(path):
    """A second of picture without sound."""
    make(path, seconds=1, fps=4)


def test_eval_records_scores_a_file_of_ones_own(checkpoint, tmp_path):
    soundfile.write(tmp_path / "tone.wav", np.sin(np.arange(16_000) / 20).astype(np.float32), 16_000)
    rows = []
    for number, (task, answer) in enumerate([("pitch", "low"), ("pitch", "high"), ("pitch", "low")]):
        user = [{"type": "audio", "audio": "tone.wav"}, {"type": "text", "text": f"how high? ({number})"}]
        messages = [{"role": "user", "content": user}]
        rows.append({"id": str(number), "task": task, "messages": messages, "answer": answer})
    write_records(tmp_path / "mine.jsonl", rows)
    words = ["records", str(tmp_path / "mine.jsonl"), "--model", str(checkpoint), "--max-tokens", "3"]
    result = runner.invoke(app, [*words, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert "mine: exact match" in result.output
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    pitch = metrics["splits"]["mine"]["types"]["pitch"]
    assert (pitch["count"], round(pitch["majority"], 2)) == (3, 0.67)
    assert pitch["blind"] is not None
    assert len((tmp_path / "out/predictions.jsonl").read_text().splitlines()) == 3
    assert (tmp_path / "out/report.png").stat().st_size > 10_000
    with pytest.raises(ConfigError, match="is a folder: give the JSONL file that it was built from"):
        runner.invoke(app, ["records", str(tmp_path)], catch_exceptions=False)


def test_several_benchmarks_at_once(checkpoint, tmp_path, small_prior):
    message = {"role": "user", "content": "what colour?"}
    write_records(
        tmp_path / "mine.jsonl", [{"id": "1", "task": "count", "messages": [message], "answer": "red"}]
    )
    words = [
        "world",
        "records",
        str(tmp_path / "mine.jsonl"),
        "--model",
        str(checkpoint),
        "--media",
        "arrays",
    ]
    words += ["--clips", "2", "--search-clips", "0", "--no-blind", "--max-tokens", "2"]
    result = runner.invoke(app, [*words, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    metrics = {
        name: json.loads((tmp_path / "out" / name / "metrics.json").read_text())
        for name in ("world", "records")
    }
    assert metrics["world"]["clips"] == 2
    mine = metrics["records"]["splits"]["mine"]
    assert mine["types"]["count"]["group"] == "other"  # although the world has a type of this name
    assert set(mine["provenance"]) == {"data", "prompts", "model"}
    assert mine["provenance"]["model"] == metrics["world"]["splits"]["comp"]["provenance"]["model"]


def test_a_server_is_asked_the_same(server, tmp_path):  # noqa: F811
    """Every answer of this one is the question in capitals, whatever is to be seen."""
    url, handler = server
    content = [{"type": "video", "video": "film.mp4"}, {"type": "text", "text": "b"}]
    row = {"task": "choice", "options": ["(A) a dog", "(B) a cat"], "answer": "(B) a cat"}
    (tmp_path / "film.mp4").write_bytes(b"as it is")
    write_records(tmp_path / "mine.jsonl", [row | {"messages": [{"role": "user", "content": content}]}])
    words = ["records", str(tmp_path / "mine.jsonl"), "--url", url, "--out", str(tmp_path / "out")]
    result = runner.invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (metrics["backend"], metrics["max_tokens"]) == ("openai", 48)
    assert metrics["splits"]["mine"]["overall"] | {"majority": 0} == {
        "count": 1, "score": 1.0, "majority": 0, "prior": None, "blind": 1.0
    }  # fmt: skip
    assert metrics["splits"]["mine"]["provenance"]["model"] == f"nano at {url}/v1"
    assert [len(body["messages"][0]["content"]) for body in handler.requests] == [2, 1]  # seen, and blind


@pytest.fixture
def birds(tmp_path, monkeypatch):
    """The benchmark of docs/adding.md as a package of somebody else's, and two sounds for it."""
    text = Path(__file__).parents[2].joinpath("docs/adding.md").read_text(encoding="utf-8")
    section = text.partition("## A benchmark")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(code.splitlines()) <= 40
    package = tmp_path / "package"
    (package / "birds-1.dist-info").mkdir(parents=True)
    (package / "birds.py").write_text(code)
    (package / "birds-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: birds\nVersion: 1\n")
    (package / "birds-1.dist-info/entry_points.txt").write_text(BIRDS)
    monkeypatch.syspath_prepend(str(package))
    rows = []
    for number, bird in enumerate(("robin", "owl")):
        soundfile.write(
            tmp_path / f"{number}.wav", np.sin(np.arange(16_000) / (9 + number)).astype("f"), 16_000
        )
        rows.append(
            {"file": f"{number}.wav", "birds": ["owl", "robin"], "bird": bird, "captions": ["it sings."]}
        )
    (tmp_path / "birds.json").write_text(json.dumps(rows))
    return tmp_path


def test_a_benchmark_of_another_package(birds, checkpoint):
    words = [
        "--birds",
        str(birds),
        "--model",
        str(checkpoint),
        "--max-tokens",
        "3",
        "--out",
        str(birds / "out"),
    ]
    # The group finds its verbs when it is made, as each `mllm eval` does.
    result = runner.invoke(app, ["birds", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    metrics = json.loads((birds / "out/metrics.json").read_text())
    scores = metrics["splits"]["test"]
    assert metrics["benchmark"] == "birds"
    assert scores["types"]["species"]["group"] == "song"
    assert scores["captions"]["caption"]["count"] == 2
    assert scores["retrieval"]["audio"]["clips"] == 2
    line = json.loads((birds / "out/predictions.jsonl").read_text().splitlines()[0])
    assert line["question"] == "Which bird sings?\nA. owl\nB. robin\nAnswer with a letter."
    help = runner.invoke(app, ["birds", "--help"]).output
    assert "--birds" in help
    assert "--model" in help
    assert "birds" in runner.invoke(app, ["--help"]).output


def test_prompts_stand_in_yaml_beside_the_module(tmp_path):
    class Mine(Benchmark):
        name = "mine"

    (tmp_path / "mine.yaml").write_text('qa: "{question} Say it in a word."')
    Mine.prompts = read_prompts(str(tmp_path / "mine.py"))
    assert Mine().fill("qa", question="What?") == "What? Say it in a word."
    with pytest.raises(ConfigError, match="mine: its prompts lack 'choice'"):
        Mine().fill("choice")
    assert Mine().fill("qa", question="{a}?") == "{a}? Say it in a word."
    (tmp_path / "mine.yaml").write_text("qa: 3")
    with pytest.raises(ConfigError, match="prompts must be texts by name"):
        read_prompts(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("broken = nowhere:Gone", "'broken' cannot be loaded: ModuleNotFoundError"),
        ("odd = json:dumps", "name a class"),
    ],
)
def test_what_is_no_benchmark(tmp_path, monkeypatch, entry, message):
    (tmp_path / "odd-1.dist-info").mkdir()
    (tmp_path / "odd-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1\n")
    (tmp_path / "odd-1.dist-info/entry_points.txt").write_text(f"[mllm.benchmarks]\n{entry}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MllmError, match=message):
        load_benchmark(entry.split()[0])
    assert "unavailable" in runner.invoke(app, ["--help"]).output


def test_no_such_benchmark():
    with pytest.raises(ConfigError, match="no benchmark 'wrld': choose from .*world"):
        load_benchmark("wrld")
    assert "Did you mean 'world'?" in runner.invoke(app, ["wrld"]).output
    with pytest.raises(ConfigError, match="no benchmark 'wrld'"):
        runner.invoke(app, ["world", "wrld"], catch_exceptions=False)
