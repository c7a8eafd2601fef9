"""A benchmark put to a backend, both small enough to be followed by eye."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from rich.console import Console

from eval import report, run
from eval.benchmark import Benchmark, Retrieval
from eval.question import Question
from mllm.errors import ConfigError
from mllm.records.answers import Generation
from tests.tiny import tiny


class TwoScenes(Benchmark):
    """Each scene: a colour question and a caption; the second scene's question comes after another turn."""

    name = "two scenes"
    splits = ("val",)
    groups = {"video": ("colour",), "caption": ("caption_video",)}

    def questions(self, split):
        return [Question.of(record) for index in range(2) for record in self.records(index)]

    def retrieval(self, split):
        yield Retrieval("video", [0, 1], [["a red star."], ["a red star."]], labels=["star", "star"])
        yield Retrieval("audio", [1], [["a bell."]])
        yield Retrieval("both", [1], [["a star and a bell."]])

    def prior(self, question):
        return {"which colour?": "blue"}.get(question.text, "")

    def records(self, index):
        media = {"type": "video", "video": f"{index}.mp4"}
        turn = [
            {"role": "user", "content": [media, {"type": "text", "text": "hello."}]},
            {"role": "assistant", "content": "hi."},
        ]
        colour = ("red", "blue")[index]
        first = [] if index == 0 else turn
        start = [] if first else [media]
        return [
            {
                "id": f"{index}-caption",
                "task": "caption_video",
                "messages": [
                    {"role": "user", "content": [media, {"type": "text", "text": "describe."}]},
                    {"role": "assistant", "content": f"a {colour} star."},
                ],
            },
            {
                "id": f"{index}-colour",
                "task": "colour",
                "messages": [
                    *first,
                    {"role": "user", "content": [*start, {"type": "text", "text": "which colour?"}]},
                ],
                "answer": colour,
            },
        ]


class SeesTheFile:
    """Answers "red" whatever it sees, "unseen" if there is nothing; notes what it was asked."""

    name = "sees"

    def __init__(self):
        self.asked = []

    def answer(self, conversations, generation, progress=lambda count: None):
        self.asked.append(conversations)
        progress(len(conversations))
        sees = [any(p["type"] == "video" for m in c for p in m["content"]) for c in conversations]
        return ["Red." if seen else "unseen" for seen in sees]


class OneHot:
    """Clip i is axis i; captions lie on the axis of the clip that has them."""

    def embed_clips(self, clips, modality):
        return np.eye(4, dtype=np.float32)[clips]

    def embed_text(self, texts):
        return np.eye(4, dtype=np.float32)[[1] * len(texts)]


def test_questions_are_the_last_turn_with_captions_at_the_end():
    questions = run.collect(TwoScenes(), "val")
    assert [q.id for q in questions] == ["0-colour", "1-colour", "0-caption", "1-caption"]
    assert [q.truth for q in questions] == ["red", "blue", "a red star.", "a blue star."]
    assert [TwoScenes().group(q) for q in questions] == ["video", "video", "caption", "caption"]
    second = questions[1]
    assert second.text == "which colour?"
    assert [m["role"] for m in second.messages] == ["user", "assistant", "user"]
    assert all(part["type"] == "text" for m in second.without_media for part in m["content"])
    assert [m["role"] for m in second.without_media] == ["user", "assistant", "user"]


def test_evaluate_and_write(tmp_path):
    backend = SeesTheFile()
    answered = []
    questions = run.collect(TwoScenes(), "val")
    candidate = run.Candidate(backend, "weights", OneHot())
    result = run.evaluate(TwoScenes(), "val", questions, candidate, Generation(), progress=answered.append)
    assert result.scores["overall"] == {"count": 2, "score": 0.5, "majority": 0.5, "prior": 0.5, "blind": 0.0}
    assert result.tables["captions"]["caption_video"]["f1"] == pytest.approx((2 * 1 / 4 + 0) / 2)
    assert sum(answered) == 8
    assert len(backend.asked) == 2
    # Both captions say the same, so either clip is a hit.
    assert result.retrieval["video"]["text_to_media"]["R@1"] == 1.0
    assert result.retrieval["video"]["distinct"] == 1
    assert [result.retrieval[kind]["clips"] for kind in ("video", "audio", "both")] == [2, 1, 1]

    header = {"model": "a model", "created": "2026-01-01T00:00:00"}
    metrics = run.write_results(tmp_path / "out", header, {"val": result})
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == metrics
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == [q.id for q in questions]
    assert lines[0] == {
        "split": "val",
        "id": "0-colour",
        "type": "colour",
        "group": "video",
        "question": "which colour?",
        "truth": "red",
        "prediction": "Red.",
        "blind": "unseen",
        "prior": "blue",
        "right": True,
        "score": 1.0,
    }
    console = Console(record=True, width=100)
    report.print_tables(metrics, console)
    text = console.export_text()
    assert "colour" in text
    assert "text → video" in text
    report.draw_page(metrics, tmp_path / "out/report.png")
    assert (tmp_path / "out/report.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "metrics.json", "predictions.jsonl", "report.png"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "title"),
    [
        ("/home/someone/work/runs/nano/instruct/final", "…/instruct/final"),
        ("../runs/nano/final at http://localhost:8000/v1", "…/nano/final at http://localhost:8000/v1"),
        ("org/name", "org/name"),
        ("nano", "nano"),
    ],
)
def test_pictures_do_not_carry_a_whole_path(model: str, title: str) -> None:
    assert report.short_name(model) == title


def test_page_without_search_or_blind(tmp_path):
    result = evaluate(TwoScenes(), SeesTheFile(), blind=False)
    assert result.scores["overall"]["blind"] is None
    metrics = run.write_results(tmp_path, {"model": "m", "created": "2026"}, {"val": result, "comp": result})
    report.draw_page(metrics, tmp_path / "report.png")
    report.print_tables(metrics, Console(quiet=True))


def evaluate(benchmark, backend, **options):
    questions = run.collect(benchmark, "val")
    return run.evaluate(
        benchmark, "val", questions, run.Candidate(backend, "weights"), Generation(), **options
    )


def test_a_benchmark_without_questions():
    class Empty(TwoScenes):
        def questions(self, split):
            return []

    with pytest.raises(ConfigError, match="two scenes: val has no questions"):
        run.collect(Empty(), "val")


class Says:
    """Answers the same to everything."""

    name = "says"

    def __init__(self, answer):
        self.text = answer

    def answer(self, conversations, generation, progress=lambda count: None):
        return [self.text] * len(conversations)


class Moments(Benchmark):
    name = "moments"
    groups = {"moments": ("moments",)}

    def questions(self, split):
        for number in range(2):
            content = [
                {"type": "video", "video": f"{number}.mp4"},
                {"type": "text", "text": "When is the star?"},
            ]
            record = {"query": "the star", "spans": [[0, 4 + 6 * number]]}
            messages = [{"role": "user", "content": content}]
            yield Question(str(number), messages, ("00:00 to 00:04",), "moments", record)


def test_a_report_of_moments_alone(tmp_path):
    result = evaluate(Moments(), Says("from 0 to 4 s"))
    header = {"model": "m", "created": "2026"}
    metrics = run.write_results(tmp_path, header, {"val": result})
    assert metrics["splits"]["val"]["moments"]["moments"]["mIoU"] == pytest.approx((1 + 0.4) / 2)
    assert metrics["splits"]["val"]["overall"]["count"] == 0
    report.draw_page(metrics, tmp_path / "report.png")
    console = Console(record=True, width=100)
    report.print_tables(metrics, console)
    text = console.export_text()
    assert "moments: mIoU 0.70 (blind 0.70), R1@0.3 1.00, R1@0.5 0.50, R1@0.7 0.50, 2 moments" in text
    assert "exact match" not in text


def test_types_of_ones_own_are_in_no_group_of_the_world():
    """ "emotion" and "count" are types of the world, too."""

    class Mine(Benchmark):
        name = "mine"

        def questions(self, split):
            for type in ("emotion", "count"):
                yield Question(type, [{"role": "user", "content": "Which?"}], ("two",), type)

    assert [row.group for row in evaluate(Mine(), Says("two")).rows] == ["other", "other"]


def test_scores_are_alike_where_data_and_words_are():
    def of(question, prompts=None, generation=Generation()):
        benchmark = Benchmark()
        benchmark.prompts = prompts or {}
        return run.provenance(benchmark, [question], generation)

    def asked(words="What?", truth="red", path="a/b.mp4"):
        content = [{"type": "video", "video": path}, {"type": "text", "text": words}]
        return Question("1", [{"role": "user", "content": content}], (truth,))

    same = of(asked())
    assert of(asked(path="c/b.mp4")) == same  # recordings may lie elsewhere
    assert of(asked(truth="blue"))["data"] != same["data"]
    assert of(asked(words="What now?"))["prompts"] != same["prompts"]
    assert of(asked(), prompts={"qa": "{question}"})["prompts"] != same["prompts"]
    assert of(asked(), generation=Generation(max_tokens=3))["prompts"] != same["prompts"]
    assert of(asked(words="What now?"))["data"] == same["data"]


def test_weights_in_memory_have_a_digest():
    model, _ = tiny()
    digest = run.weights_digest(model)
    assert run.weights_digest(tiny()[0]) == digest
    with torch.no_grad():
        next(model.parameters()).add_(1)
    assert run.weights_digest(model) != digest
