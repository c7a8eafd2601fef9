"""A checkpoint as answerer: batches, streams and rankings agree, and each recording is read once."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from mllm.answerer import Answerer
from mllm.errors import ChatError, ConfigError, MediaError
from mllm.models.encoded import IGNORE
from mllm.records.answers import Generation, Ranking, Unread
from mllm.records.transcript import Transcript, Word, segments_of
from tests.media_files import make
from tests.tiny import ask, clip, still, tiny

SIX = Generation(max_tokens=6)
CONVERSATIONS = [
    ask(clip(4), "what colour is the star?"),
    ask("hello"),
    ask(clip(2, 1, picture=False), "how many beeps?"),
    ask(clip(4), "how does it move?"),
    ask(still(), clip(3, 2, sound=False), "which one?"),
    [*ask(clip(2, 3), "what?", answer="a bell"), *ask(clip(2, 4), "and now?")],
    ask("what colour is the star?"),
]


@pytest.fixture(scope="module")
def nano():
    model, processor = tiny()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # As initialised, every layer is a small change, and no recording would change an answer.
            if parameter.dim() > 1 and "queries" not in name and "embed" not in name:
                parameter.mul_(4.0)
    return model, processor


@pytest.fixture(scope="module")
def answerer(nano) -> Answerer:
    return Answerer(*nano, generation=SIX)


def test_an_answer_is_what_generate_says(nano, answerer):
    model, processor = nano
    inputs = processor.batch(CONVERSATIONS)
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    answers = answerer.answer(CONVERSATIONS)
    assert answers == processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert len(set(answers)) > 3


def test_answers_depend_neither_on_the_batch_nor_on_being_streamed(nano):
    arrived = []
    alone = Answerer(*nano, generation=SIX, batch=1)
    together = Answerer(*nano, generation=SIX, batch=5).answer(CONVERSATIONS, progress=arrived.append)
    assert together == alone.answer(CONVERSATIONS)
    assert together == ["".join(alone.stream(messages)) for messages in CONVERSATIONS]
    assert arrived == [5, 2]


def test_each_conversation_is_checked_once(nano, checks):
    answerer = Answerer(*nano, generation=SIX)
    answerer.answer(CONVERSATIONS)
    assert len(checks) == len(CONVERSATIONS)
    list(answerer.stream(CONVERSATIONS[0]))
    answerer.rank(CONVERSATIONS[0], ["red", "green", "blue"])
    assert len(checks) == len(CONVERSATIONS) + 2


def test_the_report_says_what_the_last_stream_saw(answerer):
    list(answerer.stream(CONVERSATIONS[0]))
    assert answerer.report == "2 windows, 4 frames, 4.0 of 4.0 s, picture and sound"
    list(answerer.stream(ask("hello")))
    assert answerer.report == ""


def test_a_recording_is_read_and_encoded_once_for_all_questions_and_turns(nano, monkeypatch):
    model, processor = nano
    read, encoded = [], []
    media, query_outputs = processor.media, model.model.query_outputs

    def counted(*positional, **named):
        if any(tensor is not None for tensor in (*positional, *named.values())):
            encoded.append(1)
        return query_outputs(*positional, **named)

    monkeypatch.setattr(processor, "media", lambda *a, **options: read.append(a) or media(*a, **options))
    monkeypatch.setattr(model.model, "query_outputs", counted)
    answerer, film = Answerer(model, processor, generation=Generation(max_tokens=2)), clip(4)
    questions = [ask(film, f"question {number}?") for number in range(5)]
    (first, *_) = answerer.answer(questions)
    turns = [*questions[0], {"role": "assistant", "content": first}, *ask("and now?")]
    list(answerer.stream(turns))
    answerer.rank(questions[0], ["red", "blue"])
    assert (len(read), len(encoded)) == (1, 1)


def test_a_file_that_has_changed_is_read_again(answerer, tmp_path):
    path = tmp_path / "film.mp4"
    make(path, seconds=1, fps=4)
    assert "1 window," in answerer.check("video", str(path))
    make(path, seconds=4, fps=4)
    assert "2 windows," in answerer.check("video", str(path))


def test_a_recording_that_ends_its_reader_costs_one_answer(nano, tmp_path, monkeypatch):
    model, processor = nano
    media = processor.media

    def crashing(source, modality, isolated=False, **options):
        assert isolated
        if source.endswith("crash.mp4"):
            raise MediaError("crash.mp4: it crashed the decoder")
        return media(source, modality, isolated=isolated, **options)

    monkeypatch.setattr(processor, "media", crashing)
    make(tmp_path / "film.mp4", seconds=1, fps=4)
    conversations = [
        [{"role": "user", "content": [{"type": "video", "video": str(tmp_path / name)}, "what is seen?"]}]
        for name in ("crash.mp4", "film.mp4", "crash.mp4")
    ]
    answerer = Answerer(model, processor, generation=Generation(max_tokens=2), batch=2, isolated=True)
    answers = answerer.answer(conversations)
    assert [isinstance(answer, Unread) for answer in answers] == [True, False, True]
    for call in (answerer.stream, lambda messages: answerer.rank(messages, ["a"])):
        with pytest.raises(MediaError, match="it crashed the decoder"):
            list(call(conversations[0]))


def test_drawn_answers_are_repeatable_by_their_seed(answerer):
    drawn = [Generation(max_tokens=12, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    state = torch.random.get_rng_state()
    first, again, other = (answerer.answer(CONVERSATIONS, generation) for generation in drawn)
    assert first == again
    assert first != other
    assert torch.equal(state, torch.random.get_rng_state())


def test_an_answer_has_at_least_its_smallest_length(nano, answerer, monkeypatch):
    lengths = []
    generate = nano[0].generate
    monkeypatch.setattr(nano[0], "generate", lambda **kw: lengths.append(generate(**kw)) or lengths[-1])
    answerer.answer([ask("hello")], Generation(max_tokens=30, min_tokens=30))
    prompt = len(nano[1].encode(ask("hello"), add_generation_prompt=True).input_ids)
    assert lengths[0].shape[1] == prompt + 30


@pytest.mark.parametrize("batch", [32, 2])
@pytest.mark.parametrize("number", [0, 1, 4, 5])
def test_a_ranking_is_the_loss_of_each_answer_alone(nano, number, batch):
    model, processor = nano
    options = ["red", "red star", "a bell rings", ""]
    ranking = Answerer(model, processor, batch=batch).rank(CONVERSATIONS[number], options)
    for option, likelihood in zip(options, ranking.log_likelihoods, strict=True):
        conversation = [
            *(message | {"loss": False} for message in CONVERSATIONS[number]),
            {"role": "assistant", "content": option},
        ]
        encoded = processor.encode(conversation)
        loss = model(**processor.collate([encoded])).loss
        trained = sum(label != IGNORE for label in encoded.labels)
        assert likelihood == pytest.approx(-float(loss) * trained, abs=1e-3)


def test_probabilities_of_a_closed_set_sum_to_one():
    ranking = Ranking(("a", "b", "c"), (-1000.0, -1001.0, -1000.0 + np.log(2)))
    assert sum(ranking.probabilities) == pytest.approx(1)
    assert ranking.probabilities[2] / ranking.probabilities[0] == pytest.approx(2)
    assert ranking.best == "c"


def test_options_are_a_list_without_repetition(answerer):
    for options, says in (([], "at least one"), ("red", "must be a list"), (["a", "a"], "'a' occurs twice")):
        with pytest.raises(ChatError, match=says):
            answerer.rank(ask("which?"), options)


def test_conversations_must_leave_the_answer_to_the_model(answerer):
    answered = ask("hello", answer="hello to you")
    for call in (lambda m: answerer.answer([m]), answerer.stream, lambda m: answerer.rank(m, ["a"])):
        with pytest.raises(ChatError, match="end with a user message"):
            list(call(copy.deepcopy(answered)))


def test_a_failure_in_generate_reaches_the_caller(answerer, monkeypatch):
    def broken(**inputs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(answerer.model, "generate", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(answerer.stream(ask("hello")))


def test_a_stream_that_is_given_up_ends_its_generation(answerer):
    stream = answerer.stream(ask("hello"), Generation(max_tokens=400, min_tokens=400))
    next(stream)
    stream.close()  # waits for the thread: with the check for it, a few tokens
    assert answerer.report == ""


@pytest.mark.parametrize(
    "options", [[], "ab", None, 3, ["a", 3], ["a", "a"], ["", ""], ["a\ud800", "b"]], ids=repr
)
def test_options_that_cannot_be_ranked_are_refused(answerer, options):
    with pytest.raises(ChatError, match="option"):
        answerer.rank(ask("hello"), options)


def test_options_may_come_from_any_iterable(answerer):
    listed = answerer.rank(ask("hello"), ["a bell", "a star"])
    assert answerer.rank(ask("hello"), (option for option in listed.options)) == listed
    assert answerer.rank(ask("hello"), np.array(listed.options)) == listed


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens": 0},
        {"max_tokens": "5"},
        {"max_tokens": 5, "min_tokens": 6},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"seed": 2**70},
    ],
    ids=str,
)
def test_generation_settings_that_write_no_answer_are_refused(settings):
    with pytest.raises(ConfigError, match=[*settings][-1]):
        Generation(**settings)


class Ears:
    """A transcriber that counts how often it listens, and hears a word in whatever is longer than 2 s."""

    def __init__(self):
        self.heard = []

    def transcribe(self, source, isolated=False, **span):
        self.heard.append(source)
        words = segments_of([Word(1.5, 2.0, " hello")] if source.duration > 2 else [])
        return Transcript("en" if words else None, words)


def test_what_is_said_stands_before_the_question_and_is_heard_once(nano):
    ears, spoken, silent = Ears(), clip(4), clip(2)
    listening = Answerer(*nano, generation=SIX, transcripts=ears)
    first = ask(spoken, silent, still(), "what?")
    turns = [first, [*ask(spoken, silent, still(), "what?", answer="a star"), *ask("and now?")]]
    told = ask(spoken, "Subtitles:\n[00:01] hello\nwhat?")
    assert listening.answer([ask(spoken, "what?")]) == Answerer(*nano, generation=SIX).answer([told])
    listening.answer(turns)
    assert "".join(listening.stream(first)) == listening.answer([first])[0]
    assert ears.heard == [spoken, silent]
    assert listening.report.endswith("; 1 word said (en); nothing said")
    assert listening.check("video", spoken).endswith("; 1 word said (en)")
    assert listening.rank(first, ["a star", "a bell"]).best
