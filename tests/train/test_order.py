"""Which examples a run reads: weighted by task and source, mixed with chat, the same for the same number."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mllm.errors import ConfigError
from mllm.records.record import write_records
from mllm.records.source import open_source
from tests import tiny as tiny_parts
from train.data import PairCollator, QuestionCollator
from train.order import Order, Weights, answer_weights, caption_weights
from train.sections import Chat


def talk(path: Path, count: int, **keys: str):
    """A file of text-only records."""
    rows = [
        {"id": f"{path.stem}{n}", "messages": [{"role": "user", "content": "hello?"}], "answer": str(n)}
        | keys
        for n in range(count)
    ]
    write_records(path, rows)
    return open_source(str(path))


def sounds(folder: Path, rows: list[dict]):
    """A file of records about a second of silence each."""
    for number, row in enumerate(rows):
        soundfile.write(folder / f"{number}.wav", np.zeros(16_000, np.float32), 16_000)
        row["messages"] = [
            {"role": "user", "content": [{"type": "audio", "audio": str(folder / f"{number}.wav")}]}
        ]
    write_records(folder / "sounds.jsonl", rows)
    return open_source(str(folder / "sounds.jsonl"))


def test_scenes_are_drawn_as_often_as_their_weights_say():
    weights = np.array([0.0, 0.5, 1.0, 1.0, 2.5])
    order = Order(range(5), 0, weights)
    assert order.length == 5
    drawn = Counter(order(number).scene for number in range(200 * order.length))
    assert [drawn[scene] / 200 for scene in range(5)] == pytest.approx(weights, abs=0.1)
    again = Order(range(5), 0, weights)
    assert [order(number) for number in (17, 3)] == [again(number) for number in (17, 3)]


def test_equal_weights_change_nothing():
    plain, weighted = Order(range(9), 3), Order(range(9), 3, np.ones(9))
    assert [plain(number) for number in range(30)] == [weighted(number) for number in range(30)]
    assert sorted(plain(number).scene for number in range(9)) == list(range(9))


def test_names_of_tasks_and_sources_weigh_alike(tmp_path):
    rows = [{"answer": "a", "task": "transcript"}, {"answer": "b", "source": "birds"}, {"answer": "c"}]
    source = sounds(tmp_path, [*rows, {"captions": ["not asked about"]}])
    found = answer_weights(source, Weights({"transcript": 2, "birds": 0.5}))
    assert found is not None
    assert found.tolist() == [2.0, 0.5, 1.0, 0.0]
    with pytest.raises(
        ConfigError, match="names 'transcripts', no task or source of sounds: choose from birds"
    ):
        answer_weights(source, Weights({"transcripts": 2}))


def test_within_a_scene_heavier_questions_are_likelier_and_those_of_no_weight_never_drawn():
    records = [{"task": task} for task in ("qa", "transcript", "never")]
    weights = Weights({"transcript": 3, "never": 0})
    drawn = Counter(
        index for seed in range(400) for index in weights.choose(records, 1, np.random.default_rng(seed))
    )
    assert drawn[1] / drawn[0] == pytest.approx(3, rel=0.3)
    assert drawn[2] == 0
    assert weights.choose(records, 3, np.random.default_rng(0)) == [0, 1]


def test_chat_takes_its_share_and_both_are_read_through(tiny, tmp_path):
    data, chat = talk(tmp_path / "data.jsonl", 17), tmp_path / "chat.jsonl"
    talk(chat, 3)
    collator = QuestionCollator(data, tiny[1], 0, 1, chat=Chat(source=str(chat), share=0.15))
    places = [collator.example(number) for number in range(20)]
    assert [place.source.name for place in places].count("chat") == 3
    assert sorted(place.scene for place in places if place.source.name == "chat") == [0, 1, 2]
    assert sorted(place.scene for place in places if place.source.name == "data") == list(range(17))
    batch = collator([{"number": number} for number in range(8)])
    assert (batch["labels"] == tiny[1].end_id).sum() == 8  # answers, packed into fewer rows
    assert "input_features" not in batch


def test_pairs_come_from_recordings_with_captions(tiny, tmp_path):
    source = sounds(tmp_path, [{"answer": "a"}, {"captions": ["a bell."]}, {"captions": ["a dog."]}])
    collator = PairCollator(source, tiny[1], 0, 64, answers=False)
    said = {collator.pair(number)["captions"]["audio"] for number in range(2)}
    assert said == {"a bell.", "a dog."}


def test_paraphrases_of_one_class_are_the_same_caption(tiny, tmp_path):
    dogs = ["a dog barks.", "there is a barking dog."]
    source = sounds(tmp_path, [{"captions": dogs}, {"captions": dogs[::-1]}, {"captions": ["a bell."]}])
    batch = PairCollator(source, tiny[1], 0, 64, answers=False)([{"number": n} for n in range(3)])
    assert "input_ids" not in batch
    space = batch["space"]
    told = {int(row): place for place, row in enumerate(space["captions"][:, 1])}
    assert len(told) == 3, "three texts"
    same = (space["caption_ids"][:, None, [1, 4]] == space["caption_ids"][None, :, [1, 4]]).any(-1)
    assert int(same.sum()) == 3 + 2


def test_stage_1_draws_captions_by_name_and_nothing_without_any(tmp_path):
    rows = [
        {"captions": ["a cup"], "source": "pictures"},
        {"captions": ["a bell"], "source": "sounds"},
        {"answer": "a bell", "source": "sounds"},
        {"captions": ["rain"], "task": "caption_audio"},
    ]
    found = caption_weights(sounds(tmp_path, rows), Weights({"pictures": 3, "sounds": 0.5}))
    assert found.tolist() == [3, 0.5, 0, 1]


def test_a_name_in_the_weights_of_stage_1_must_occur(tmp_path):
    source = sounds(tmp_path, [{"captions": ["a cup"], "source": "pictures"}])
    with pytest.raises(ConfigError, match="contrastive.weights names 'picture'.*choose from pictures"):
        caption_weights(source, Weights({"picture": 3}))
    with pytest.raises(ConfigError, match="contrastive.weights leaves nothing"):
        caption_weights(source, Weights({"pictures": 0}))


def test_quick_scores_pass_over_scenes_without_captions(tmp_path):
    from train.validate import retrieval

    rows = [{"captions": ["a bell"]}, {"answer": "no"}, {"captions": ["a drum"]}]
    scores = retrieval(*tiny_parts.tiny(), sounds(tmp_path, rows))
    assert set(scores) == {"audio to text", "text to audio"}


def test_quick_scores_leave_out_retrieval_where_nothing_has_a_caption(tmp_path):
    from train.stages.contrastive import space_scores

    assert space_scores(*tiny_parts.tiny(), sounds(tmp_path, [{"answer": "no"}])) == {}
