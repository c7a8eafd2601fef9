"""`mllm eval real` from end to end on made-up sets; its table, its rows, its linear probe."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from eval.benchmark import load_benchmark
from eval.benchmarks.real import Real
from eval.benchmarks.real_chat import _losses
from eval.benchmarks.real_rows import Sets, either, spread
from eval.cli import run_benchmarks
from eval.metrics import interval
from eval.probe import LogisticRegression
from eval.run import Candidate, ask, collect
from eval.targets import Target, markdown
from mllm.answerer import Answerer
from mllm.errors import ConfigError
from mllm.models.checkpoint import save
from mllm.models.encoded import IGNORE
from mllm.records.answers import Generation
from mllm.records.record import write_records
from tests.media_files import tone
from tests.tiny import tiny

SOUNDS, THINGS = ("dog bark", "rain", "rooster"), [f"thing {number}" for number in range(11)]


def row(modality: str, path: str, text: str, answer: str, task: str, **fields) -> dict:
    content = [{"type": modality, modality: path}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"id": path, "messages": messages, "task": task, "answer": answer, **fields}


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> Path:
    """Sounds and digits of a pitch each, pictures of a brightness each, and a sentence."""
    root = tmp_path_factory.mktemp("sets")
    (root / "fsdd/recordings").mkdir(parents=True)
    for digit in (0, 1):
        for index in (5, 6, 10, 11):
            file = root / f"fsdd/recordings/{digit}_george_{index}.wav"
            soundfile.write(file, tone(0.4, 8000, 300 * (digit + 1) + index), 8000)
    for part, takes in (("train", 2), ("test", 1)):
        sounds, things = [], []
        for number, name in enumerate(SOUNDS):
            for take in range(takes):
                path = root / f"real_esc10/{part}-{name}-{take}.wav"
                path.parent.mkdir(exist_ok=True)
                soundfile.write(path, tone(2.5, 16000, 200 * (number + 1) + take), 16000)
                labels = {"event": name, "freesound": f"{part}{number}{take}"}
                asked = ("Name the source of the sound.", name, "sound_event")
                sounds.append(row("audio", str(path), *asked, options=list(SOUNDS), labels=labels))
        for number, name in enumerate(THINGS):
            path = root / f"real_caltech101/{part}-{name}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (40, 30), (20 * number,) * 3).save(path)
            things.append(row("image", str(path), "What is this?", name, "object", labels={"category": name}))
        write_records(root / f"real_esc10/{part}.jsonl", sounds)
        write_records(root / f"real_caltech101/{part}.jsonl", things)
    said = row(
        "audio", str(root / "real_esc10/test-rain-0.wav"), "What is said?", "es regnet sehr", "transcript"
    )
    (root / "real_kerstin_de").mkdir()
    write_records(root / "real_kerstin_de/test.jsonl", [said])
    return root


class Listens:
    """Right about every second sound, by its path; without a recording it names the first option."""

    name = "listens"

    def answer(self, conversations, generation=None, progress=lambda count: None):
        answers = []
        for (message,) in conversations:
            media = [part for part in message["content"] if part["type"] != "text"]
            path = Path(media[0][media[0]["type"]]).name if media else ""
            heard = path.split("-")[1] if "-" in path else "dog bark"
            answers.append("rain" if heard == "rooster" else heard)
        progress(len(answers))
        return answers


def test_the_entry_point_is_there():
    assert load_benchmark("real") is Real


def test_a_row_has_an_interval_and_its_baselines(sets):
    benchmark = Real(sets, only=["sound", "blind"], probe=False)
    questions = collect(benchmark, "test")
    candidate = Candidate(Listens(), "weights")
    rows, missing = ask(benchmark, questions, candidate.backend, Generation())
    sound, blind = benchmark.targets(rows, candidate, Generation())
    assert not missing
    assert (sound.count, sound.score, sound.blind, sound.majority) == (
        3,
        *map(pytest.approx, (2 / 3, 1 / 3, 1 / 3)),
    )
    assert 0.0 <= sound.low < sound.score < sound.high <= 1.0
    assert sound.changed > 0.5  # another recording, another answer,
    assert sound.swapped <= 1 / 3  # which is wrong about the first
    assert (sound.floor, sound.aim, sound.mark) == (0.85, 0.92, "short")
    assert (blind.score, blind.mark) == (pytest.approx(0.0), "floor")


def test_questions_are_asked_in_words_that_training_never_sees(sets):
    import yaml

    import data_prep  # a test may look into both wings

    phrasings = yaml.safe_load((Path(data_prep.__file__).parent / "small/phrasings.yaml").read_text())
    for kind in ("test", "own"):
        benchmark = Real(sets, only=["sound"], phrasings=kind)
        known = {text.replace("{options}", ", ".join(SOUNDS)) for text in phrasings["sound_event"][kind]}
        assert {question.text for question in benchmark.questions("test")} <= known
    assert [q.text for q in Real(sets).questions("test")] == [q.text for q in Real(sets).questions("test")]


def test_rows_come_from_labels_file_names_and_drawn_options(sets):
    benchmark = Real(sets)
    assert [row.name for row in benchmark.rows] == [
        "fsdd", "sound", "language_fsdd", "thing_of_10", "thing", "german"
    ]  # fmt: skip
    questions = {question.id: question for question in benchmark.questions("test")}
    digit = questions["fsdd/fsdd/1_george_6"]
    assert (digit.truth, digit.options[:2]) == ("one", ["zero", "one"])
    assert questions["language_fsdd/fsdd/1_george_6"].truth == "English"
    closed = next(q for q in questions.values() if q.type == "thing_of_10")
    assert len(set(closed.options)) == 10
    assert closed.truth in closed.options
    assert ", ".join(closed.options) in closed.text or either(closed.options) in closed.text
    train = Sets(sets).questions(benchmark.known["fsdd"], "train")
    assert sorted(q.id for q in train) == [
        f"fsdd/fsdd/{digit}_george_{index}" for digit in (0, 1) for index in (10, 11)
    ]
    assert len(Sets(sets).questions(benchmark.known["thing"], "test", limit=4)) == 4


@pytest.mark.slow
def test_one_command_writes_the_table(sets, tmp_path, capsys):
    checkpoint = save(*tiny(), tmp_path / "tiny")
    run_benchmarks([Real(sets)], str(checkpoint), out=tmp_path / "out", max_tokens=4)
    shown = capsys.readouterr().out
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    (result,) = metrics["splits"].values()
    titles = [target["title"] for target in result["targets"]]
    for title in titles:
        assert title[:30] in shown
        assert title in (tmp_path / "out/table.md").read_text()
    by_title = dict(zip(titles, result["targets"], strict=True))
    sound = by_title["sounds (ESC-10), unseen sources"]
    assert sound["probe"] == 1.0  # pitches are plain to a tower, trained or not
    assert by_title["free transcription, German (Kerstin), word error rate"]["less_is_better"]
    assert any(title.startswith("R@1 text → picture") for title in titles)
    assert any(title.startswith("blind") for title in titles)


def test_what_does_not_fit_is_one_line(sets, tmp_path):
    with pytest.raises(ConfigError, match="--only is 'sounds': choose from fsdd, "):
        Real(sets, only=["sounds"])
    with pytest.raises(ConfigError, match="--phrasings is 'mine'"):
        Real(sets, phrasings="mine")
    with pytest.raises(ConfigError, match="is not a folder"):
        Real(tmp_path / "nowhere")


def test_a_mark_says_what_is_reached():
    def mark(score, **fields):
        return Target("t", score, 10, **fields).mark

    assert [mark(score, floor=0.8, aim=0.9) for score in (0.79, 0.8, 0.9)] == ["short", "floor", "aim"]
    errors = {"floor": 0.12, "aim": 0.05, "less_is_better": True}
    assert [mark(score, **errors) for score in (0.2, 0.1, 0.05)] == ["short", "floor", "aim"]
    assert mark(0.3) == ""
    assert markdown([Target("t", 1.0, 3, 0.37, 1.0, floor=0.9).as_dict()]).splitlines()[-1] == (
        "| t | 1.000 | .370–1.000 | 3 |  |  |  |  |  | .900 |  | floor |"
    )


def test_an_interval_draws_whole_clusters():
    right = [1.0] * 50 + [0.0] * 50
    low, high = interval(right, range(100))
    assert (low, high) == (pytest.approx(0.40, abs=0.02), pytest.approx(0.60, abs=0.02))
    two_speakers = interval(right, ["a"] * 50 + ["b"] * 50)
    assert two_speakers == (0.0, 1.0)  # a hundred answers, but two draws
    assert interval([1.0] * 10, range(10)) == (pytest.approx(0.69, abs=0.01), 1.0)
    words = interval([1.0, 0.0, 3.0], range(3), [4.0, 6.0, 10.0])
    assert words[0] < 4 / 20 < words[1]


def test_a_linear_probe_reads_what_is_linear_and_nothing_else():
    rng = np.random.default_rng(0)
    names = np.array(["a", "b", "c"])
    truth = rng.integers(0, 3, 300)
    features = rng.normal(size=(300, 20)).astype(np.float32)
    features[np.arange(300), truth] += 4
    probe = LogisticRegression(features[:200], names[truth[:200]].tolist(), range(200))
    assert np.mean(probe.log_odds(features[200:]).argmax(1) == truth[200:]) > 0.9
    noise = rng.normal(size=(300, 20)).astype(np.float32)
    probe = LogisticRegression(noise[:200], names[truth[:200]].tolist(), range(200))
    assert np.mean(probe.log_odds(noise[200:]).argmax(1) == truth[200:]) < 0.5


def test_a_few_of_many_are_spread_evenly():
    assert spread(list(range(10)), 3) == [0, 3, 6]
    assert spread([1, 2], 3) == [1, 2]
    assert either(["a", "b", "c"]) == "a, b or c"


def test_the_loss_of_chats_is_that_of_their_answers():
    model, processor = tiny()
    asked = {"role": "user", "content": "what do you hear?"}
    chats = [
        processor.encode([asked, {"role": "assistant", "content": answer}])
        for answer in ("a bell", "it says no")
    ]
    for chat, found in zip(chats, _losses(model, chats, Answerer(model, processor)), strict=True):
        logits = model(input_ids=torch.tensor([chat.input_ids])).logits[0, :-1]
        whole = cross_entropy(logits, torch.tensor(chat.labels[1:]), ignore_index=IGNORE, reduction="sum")
        assert found == pytest.approx(whole.item(), rel=1e-4)
