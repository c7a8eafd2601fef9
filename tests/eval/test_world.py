"""The benchmark with a source and a backend that can be followed by eye."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rich.console import Console

from eval import report, world
from eval.metrics import AnswerPrior
from mllm.errors import ConfigError, MllmError


class TwoScenes:
    """Each scene: a colour question and a caption; the second scene's question comes after another turn."""

    name = "two scenes"

    def __init__(self, clips=("clip 0", "clip 1")):
        self.clips = clips

    def __len__(self) -> int:
        return 2

    def conversations(self, index):
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

    def pair(self, index):
        caption = ("first a red star, then a bell.", "a red star. then a bell.")[index]
        heard = (None, "a bell.")[index]
        captions = {"video": caption, "audio": heard, "both": heard and caption}
        return {"clip": index, "captions": captions, "labels": {}}


class SeesTheFile:
    """Answers "red" whatever it sees, "unseen" if there is nothing; notes what it was asked."""

    name = "sees"

    def __init__(self):
        self.asked = []

    def answer(self, conversations, generation=None, progress=lambda count: None):
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
    questions = world.collect(TwoScenes())
    assert [q.id for q in questions] == ["0-colour", "1-colour", "0-caption", "1-caption"]
    assert [q.truth for q in questions] == ["red", "blue", "a red star.", "a blue star."]
    assert [q.group for q in questions] == ["video", "video", "caption", "caption"]
    second = questions[1]
    assert second.text == "which colour?"
    assert [m["role"] for m in second.messages] == ["user", "assistant", "user"]
    assert all(part["type"] == "text" for m in second.without_media for part in m["content"])
    assert [m["role"] for m in second.without_media] == ["user", "assistant", "user"]


def test_every_type_of_the_world_has_a_group():
    from importlib import import_module

    types = import_module("data_prep.world.questions").TYPES  # a test may look into both wings
    assert set(types) == {name for names in world.GROUPS.values() for name in names}


def test_evaluate_and_write(tmp_path):
    backend = SeesTheFile()
    arrived = []
    prior = AnswerPrior([("which colour?", "blue")])
    questions = world.collect(TwoScenes())
    result = world.evaluate(questions, backend, OneHot(), TwoScenes(), prior, progress=arrived.append)
    assert result.scores["overall"] == {"count": 2, "score": 0.5, "majority": 0.5, "prior": 0.5, "blind": 0.0}
    assert result.captions["caption_video"]["f1"] == pytest.approx((2 * 1 / 4 + 0) / 2)
    assert sum(arrived) == 8
    assert len(backend.asked) == 2
    # Both captions say the same, so either clip is a hit.
    assert result.retrieval["video"]["text_to_media"]["R@1"] == 1.0
    assert result.retrieval["video"]["distinct"] == 1
    assert [result.retrieval[kind]["clips"] for kind in ("video", "audio", "both")] == [2, 1, 1]

    header = {"model": "a model", "created": "2026-01-01T00:00:00"}
    metrics = world.write_results(tmp_path / "out", header, {"val": result})
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
    result = world.evaluate(world.collect(TwoScenes()), SeesTheFile(), blind=False)
    assert result.scores["overall"]["blind"] is None
    metrics = world.write_results(
        tmp_path, {"model": "m", "created": "2026"}, {"val": result, "comp": result}
    )
    report.draw_page(metrics, tmp_path / "report.png")
    report.print_tables(metrics, Console(quiet=True))


def test_said_alike():
    same = {"a star, then a bell.", "first a star, then a bell.", "a star. then a bell."}
    assert {world.said_alike(caption) for caption in same} == {"a star, then a bell"}
    assert world.said_alike("a bell, then a star.") != world.said_alike("a star, then a bell.")


def test_prior_comes_from_training_text():
    prior = world.train_prior(200)
    assert prior("what can you do?") == "i answer questions about what you see and hear in a recording."
    assert prior("how many shapes are there?") in ("one", "two", "three")


def test_source_without_questions():
    class Empty(TwoScenes):
        def conversations(self, index):
            return []

    with pytest.raises(ConfigError, match="no questions"):
        world.collect(Empty())


def test_files_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / "in the way").write_text("a file")
    with pytest.raises(MllmError, match="clips of val could not be written") as error:
        world.write_files("val", 2, 4, 0, tmp_path / "in the way")
    assert "\n" not in str(error.value)
