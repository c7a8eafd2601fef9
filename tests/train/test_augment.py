"""Augmentation: each kind does what it says, the text stays true, and the same example gets the same view."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mllm.command.cli import main
from mllm.experiment import Augment
from mllm.media.clip import Clip
from mllm.media.recording import SAMPLE_RATE
from mllm.media.windows import WindowSpec
from mllm.records.record import write_records
from mllm.records.source import open_source
from mllm.records.templates import paraphrase, templates
from tests.media_files import make
from tests.tiny import clip
from train import augment as views
from train.augment import permute_frames
from train.augment_sheet import SHOWN, Scene, before_and_after, open_scene
from train.data import PairCollator, QuestionCollator
from train.objectives.space import space_losses

ROWS = [{"number": number} for number in range(6)]


def tone(pitch: float, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * pitch * np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE).astype(np.float32)


def loudest(waveform: np.ndarray) -> float:
    """Hz"""
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(np.argmax(spectrum)) * SAMPLE_RATE / len(waveform)


def power(waveform: np.ndarray) -> float:
    return float(np.mean(np.square(waveform)))


def gradient() -> Clip:
    """Four seconds in which the picture brightens from left to right and from frame to frame."""
    ramp = np.linspace(0, 100, 32)[None, None, :, None] + np.arange(16)[:, None, None, None] * 8
    frames = np.broadcast_to(ramp, (16, 32, 32, 3)).astype(np.uint8)
    return Clip(frames, np.arange(16) / 4, tone(440, 4.0), 4.0, "gradient")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_noise_has_the_ratio_that_is_asked_for() -> None:
    sound = tone(440)
    hiss = views.noise(sound, 10.0, rng()) - sound
    assert 10 * np.log10(np.mean(sound**2) / np.mean(hiss**2)) == pytest.approx(10.0, abs=0.2)
    assert not views.noise(np.zeros(100, np.float32), 10.0, rng()).any()


@pytest.mark.parametrize("semitones", [-12.0, -3.0, 0.0, 2.0, 4.0, 12.0])
def test_pitch_moves_and_length_and_loudness_stay(semitones: float) -> None:
    shifted = views.pitch(tone(440), semitones)
    assert shifted.shape == (SAMPLE_RATE,)
    assert loudest(shifted) == pytest.approx(440 * 2 ** (semitones / 12), rel=0.01)
    assert power(shifted) == pytest.approx(0.5, rel=0.05)
    assert power(shifted[-129:]) == pytest.approx(0.5, rel=0.2)  # to its very end


@pytest.mark.parametrize("samples", [1, 2, 100, 1000])
def test_the_shortest_sounds_keep_their_length(samples: int) -> None:
    sound = np.ones(samples, np.float32)
    assert views.pitch(sound, -12.0).shape == views.pitch(sound, 12.0).shape == (samples,)
    short = Clip(None, np.zeros(0), sound, samples / SAMPLE_RATE, "short")
    assert len(views.speed(short, 1.3).waveform) == round(samples / 1.3)


def test_speed_shortens_everything_alike() -> None:
    fast = views.speed(gradient(), 2.0)
    assert fast.duration == 2.0
    assert len(fast.waveform) == 2.0 * SAMPLE_RATE
    assert fast.frame_times[-1] == pytest.approx(15 / 8)
    assert loudest(fast.waveform) == pytest.approx(880, rel=0.01)


def test_what_becomes_too_high_to_be_heard_is_not_heard_lower() -> None:
    high = Clip(None, np.zeros(0), tone(7000, 4.0), 4.0, "high")  # 9,100 Hz, folded to 6,900
    assert power(views.speed(high, 1.3).waveform) < 0.01 * power(high.waveform)
    assert power(views.pitch(high.waveform, 5.0)) < 0.01 * power(high.waveform)


def test_masks_silence_a_stretch_and_a_band() -> None:
    masked = views.time_mask(tone(440), 0.25, 1.0)
    assert not masked[-4000:].any()
    assert masked[:12000].any()
    both = tone(440) + tone(6000)
    assert loudest(views.frequency_mask(both, 0.5, 0.0)) == pytest.approx(6000, rel=0.01)


def test_crop_enlarges_a_part() -> None:
    part = views.crop(gradient().frames, 0.5, np.array([0.0, 1.0]))
    assert part.shape == (16, 32, 32, 3)
    assert part[0, :, 0].mean() == pytest.approx(gradient().frames[0, :, 16].mean(), abs=3)


def test_jitter_changes_brightness_contrast_and_saturation() -> None:
    frames = gradient().frames
    assert views.jitter(frames, np.array([1.2, 1, 1])).mean() == pytest.approx(frames.mean() * 1.2, rel=0.02)
    flatter = views.jitter(frames, np.array([1, 0.5, 1]))
    assert flatter.mean() == pytest.approx(frames.mean(), rel=0.01)
    assert flatter[0].std() == pytest.approx(frames[0].std() / 2, rel=0.02)
    red = np.full((1, 4, 4, 3), (200, 0, 0), np.uint8)
    assert views.jitter(red, np.array([1, 1, 0.0]))[0, 0, 0].tolist() == [60, 60, 60]  # 0.299 of it
    assert np.array_equal(views.jitter(frames, np.ones(3)), frames)


def test_frames_that_cannot_be_written_to_are_views_all_the_same() -> None:
    frames = np.ascontiguousarray(gradient().frames)
    frames.flags.writeable = False  # as those of a shard
    with warnings.catch_warnings(action="error"):
        assert np.array_equal(views.flip(views.flip(frames)), frames)


def test_dropped_frames_repeat_the_one_before() -> None:
    frames = gradient().frames
    dropped = views.drop_frames(frames, np.array([True, True, False, True] + [False] * 12))
    assert np.array_equal(dropped[[1, 3]], frames[[0, 2]])
    assert np.array_equal(dropped[4:], frames[4:])


def test_temporal_crop_keeps_picture_and_sound_together() -> None:
    part = views.temporal_crop(gradient(), 0.5, 1.0)
    assert part.duration == 2.0
    assert len(part.waveform) == 2 * SAMPLE_RATE
    assert part.frames[0, 0, 0, 0] == 8 * 8
    assert part.frame_times[0] == 0.0


def test_words_are_dropped_but_never_all() -> None:
    assert views.drop_words("a red star", 0.99, rng()) == "a red star"
    words = [views.drop_words("one two three four", 0.5, rng(seed)).split() for seed in range(50)]
    assert np.mean([len(left) for left in words]) == pytest.approx(2.3, abs=0.5)


@pytest.mark.parametrize(
    ("text", "may_flip", "may_crop"),
    [("a red star", True, True), ("it moves Left.", False, True), ("when is it? 00:02", True, False)],
)
def test_what_the_text_says_stays_true(text: str, may_flip: bool, may_crop: bool) -> None:
    original = gradient()
    settings = Augment(flip=True, temporal_crop=0.5, speed=0.3)
    seen = [views.augment(original, settings, rng(seed), [text]) for seed in range(20)]
    flipped = [one.frames[0, 0, 0, 0] > one.frames[0, 0, -1, 0] for one in seen]
    assert any(flipped) == may_flip
    assert any(one.duration != original.duration for one in seen) == may_crop


FALSE = {  # what would no longer be true after a kind of augmentation
    "flip": [
        "the leftmost one", "the rightmost door", "it goes leftwards", "a step rightward",
        "turning anticlockwise", "what is lefthand?", "a right-handed player", "is it right?",
        "she looks into the mirror", "what does the sign say?", "the shirt reads ACME",
        "it is written in red", "which letters are on the wall?", "what is the text?",
        "what time does the clock show?", "a person facing east", "which number is on his back?",
        "the logo of the team",
    ],
    "speed": [
        "how long does it ring?", "a dog barks at the start", "what is next?", "finally he sits down",
        "he waits until dark", "a bell rings while he runs", "a star in the middle", "it rings at 0:05",
        "it stops in 5 s", "it rings for 2.5 seconds", "he knocks twice", "she jumps three times",
        "what happens later?", "how fast is the car?", "a slow dance", "he walks slowly", "a quick step",
        "quickly he turns", "at what speed?", "the tempo of the song", "during the day",
        "engine followed by a horn", "what happens first?", "the last one", "how often does it ring?",
        "after that", "it begins", "at the end", "at the same time", "how high is the tone?",
        "a deep voice", "a high-pitched beep", "which note is played?",
    ],
    "temporal_crop": [
        "how many beeps are there?", "count the shapes", "the number of birds", "he knocks twice",
        "three beeps sound", "2 dogs bark", "at the start", "in the end he falls", "between 0:05 and 0:09",
        "Transcribe the speech.", "What is said?", "Write down what is spoken.", "00:24.3 to 00:30",
    ],
    "time_mask": [
        "how many beeps are there?", "three times", "what is heard last?", "What is said?",
    ],
    "crop": [
        "how many shapes are there?", "two men talk", "the number of birds",
    ],
    "pitch": [
        "how high is the tone?", "a low hum", "a lower voice", "the pitch rises", "a tone of 440 Hz",
        "a deep voice", "a shrill cry",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", FALSE)
def test_a_text_holds_back_what_would_make_it_false(kind: str) -> None:
    assert [text for text in FALSE[kind] if kind not in views.held_back([text])] == []


def test_other_texts_hold_nothing_back() -> None:
    texts = [
        "a bright red star stays still", "a man plays the guitar on a stage", "they dance at a weekend party",
        "a country road", "breakfast on the table", "someone slices a pear", "fastening a belt",
    ]  # fmt: skip
    assert views.held_back(texts) == {}
    # Labels in a row are no count: spoken digits are still played at other speeds.
    assert views.held_back(["Which digit is spoken? Choose from: zero, one, two."]) == {"flip": "digit"}


def test_phrasings_hold_back_no_more_than_their_answers_would() -> None:
    own = {task: [re.sub(r"\{\w+\}", "", text) for text in texts] for task, texts in templates().items()}
    held = {task: set(views.held_back(texts)) for task, texts in own.items()}
    assert {task: kinds for task, kinds in held.items() if kinds} == {
        "digit": {"flip"},  # has no picture
        "transcript": {"temporal_crop", "time_mask"},
        "moments": {"temporal_crop", "time_mask", "speed"},
    }


def test_nothing_is_changed_where_nothing_is_asked_for() -> None:
    original = clip()
    same = views.augment(original, Augment(), rng())
    assert same.digest() == original.digest()


ALL = Augment(
    noise_snr=10, pitch=2, speed=0.1, time_mask=0.1, frequency_mask=0.1, crop=0.2, jitter=0.2, flip=True,
    temporal_crop=0.2, frame_dropout=0.2, word_dropout=0.3,
)  # fmt: skip


@pytest.mark.parametrize("kind", [PairCollator, QuestionCollator])
def test_batches_are_augmented_and_the_same_each_time(kind, tiny, world) -> None:
    def batch(augmentation):
        if kind is PairCollator:
            return PairCollator(world, tiny[1], 0, 64, augmentation=augmentation)(ROWS)
        return QuestionCollator(world, tiny[1], 0, 3, 64, augmentation)(ROWS)

    plain, first, again = batch(None), batch(ALL), batch(ALL)
    assert torch.equal(first["pixel_values"], again["pixel_values"])
    assert torch.equal(first["input_features"], again["input_features"])
    assert torch.equal(first["space"]["text_ids"], again["space"]["text_ids"])
    shapes = {name: tensor.shape for name, tensor in plain.items() if isinstance(tensor, torch.Tensor)}
    assert shapes["pixel_values"] != first["pixel_values"].shape or not torch.equal(
        plain["pixel_values"], first["pixel_values"]
    )
    assert not torch.equal(plain["space"]["text_ids"], first["space"]["text_ids"]) or (
        plain["space"]["text_ids"].shape != first["space"]["text_ids"].shape
    )
    assert torch.equal(plain["space"]["caption_ids"], first["space"]["caption_ids"])


def test_a_choice_keeps_its_options_together() -> None:
    lines = "A. sits\nB. runs\nC. sleeps"
    question = "What does he do,\nand why?"
    prompts = [
        template.replace("{question}", question).replace("{options}", lines)
        for template in templates()["choice"]
    ]
    told = {paraphrase("choice", prompt, str(number)) for prompt in prompts for number in range(20)}
    assert told == set(prompts)
    assert paraphrase("motion", "where does it go?", "1") == "where does it go?"


def test_captions_of_the_shared_space_stay_true_as_well(tmp_path, tiny) -> None:
    frames = np.zeros((32, 32, 3), np.uint8)
    frames[:, :8] = 255
    Image.fromarray(frames).save(tmp_path / "left.png")
    user = [{"type": "image", "image": str(tmp_path / "left.png")}, {"type": "text", "text": "what colour?"}]
    row = {"id": "1", "messages": [{"role": "user", "content": user}], "answer": "white"}
    write_records(tmp_path / "rows.jsonl", [row | {"captions": {"video": ["a white block on the left"]}}])
    source = open_source(str(tmp_path / "rows.jsonl"))
    collator = QuestionCollator(source, tiny[1], 0, 1, 64, Augment(flip=True))
    for number in range(8):
        pixels = collator([{"number": number}])["image_values"]
        assert pixels[..., :8].float().mean() > 200, "flipped, though the caption says left"


def test_frames_are_permuted_only_to_be_told_apart(tiny, world) -> None:
    plain = PairCollator(world, tiny[1], 0, 64)(ROWS)
    batch = PairCollator(world, tiny[1], 0, 64, augmentation=Augment(frame_permutation=True))(ROWS)
    assert torch.equal(batch["pixel_values"], plain["pixel_values"])  # no view of the clip itself
    counts, windows = batch["space"]["permuted_windows"], batch["space"]["video_windows"]
    assert counts.sum() == len(batch["space"]["permuted_pixels"]) > 0
    assert all(count in (0, window) for count, window in zip(counts, windows, strict=True))
    model = tiny[0].model
    queries = model.query_outputs(pixel_values=batch["pixel_values"])
    with_negatives = space_losses(model, queries, batch["space"])["video_text_loss"]
    assert with_negatives > space_losses(model, queries, plain["space"])["video_text_loss"]


def test_a_video_that_stands_still_has_no_permutation() -> None:
    still = torch.full((2, 3, 3, 8, 8), 7, dtype=torch.uint8)
    assert permute_frames(still, rng()) is None
    moving = torch.arange(6, dtype=torch.uint8).mul(40).view(2, 3, 1, 1, 1).expand(2, 3, 3, 8, 8)
    shuffled = permute_frames(moving, rng())
    assert sorted(shuffled[..., 0, 0, 0].flatten().tolist()) == sorted(
        moving[..., 0, 0, 0].flatten().tolist()
    )
    assert not torch.equal(shuffled, moving)


def test_a_question_is_put_in_other_words_each_time(tmp_path, tiny) -> None:
    part = {"type": "image", "image": str(tmp_path / "red.png")}
    Image.new("RGB", (32, 32), "red").save(part["image"])
    user = [part, {"type": "text", "text": "Answer briefly: what is red?"}]
    messages = [{"role": "user", "content": user}]
    write_records(tmp_path / "rows.jsonl", [{"id": "1", "task": "qa", "messages": messages, "answer": "all"}])
    source = open_source(str(tmp_path / "rows.jsonl"))
    (record,) = source.conversations(0)

    def questions(augmentation: Augment) -> list[str]:
        collator = QuestionCollator(source, tiny[1], 0, 1, augmentation=augmentation)
        told = [collator.phrased(record, number) for number in range(20)]
        return [messages[-2]["content"][-1]["text"] for messages in told]

    assert set(questions(Augment())) == {"Answer briefly: what is red?"}
    varied = questions(Augment(paraphrase=True))
    assert set(varied) == {template.replace("{question}", "what is red?") for template in templates()["qa"]}
    assert varied == questions(Augment(paraphrase=True))


def draw(capsys, *arguments: object) -> str:
    """What `mllm train views` prints, its error included."""
    with pytest.raises(SystemExit):
        main(["train", "views", *map(str, arguments)])
    printed = capsys.readouterr()
    return printed.out + printed.err


def test_the_sheet_shows_each_kind_before_and_after(tmp_path, write_experiment, capsys) -> None:
    path = write_experiment(tmp_path)
    out = tmp_path / "views.png"
    kinds = ["crop=0.3", "flip=true", "noise_snr=5", "paraphrase=true", "frame_permutation=true"]
    assert draw(capsys, path, *(f"data.augment.{kind}" for kind in kinds), "--out", out) == f"{out}\n"
    assert Image.open(out).size == (1000, pytest.approx(75 * 4.5 + 70, abs=2))
    assert "data.augment is null: set some of it" in draw(capsys, path)
    few = draw(capsys, path, "data.augment.flip=true", "data.train=world:train,clips=3", "--scene", 3)
    assert "world:train has 3 scenes: take one from 0 to 2" in few


STRONG = ALL.model_copy(update={"paraphrase": True, "frame_permutation": True})


@pytest.mark.parametrize("kind", list(SHOWN))
def test_what_the_sheet_draws_differs_from_what_was(kind: str) -> None:
    sound = tone(440, 4.0) + tone(700, 4.0)
    scene = Scene(replace(gradient(), waveform=sound), [], "a square that grows ever brighter")
    value = getattr(STRONG, kind)
    before, after = before_and_after(scene, kind, value, rng())
    if isinstance(before, str):
        assert after != before
        return
    assert after.digest() != before.digest()
    if kind == "noise_snr":
        ratio = power(sound) / power(after.waveform - sound)
        assert 10 * np.log10(ratio) == pytest.approx(STRONG.noise_snr, abs=0.2)
    if kind == "pitch":
        assert loudest(after.waveform) == pytest.approx(440 * 2 ** (STRONG.pitch / 12), rel=0.01)


def test_the_sheet_says_why_a_kind_does_nothing() -> None:
    scene = Scene(gradient(), ["it moves left"], "it moves left")
    assert before_and_after(scene, "flip", True, rng())[1] == 'as it is: a text says "left"'
    silent = Scene(replace(gradient(), waveform=None), [])
    assert before_and_after(silent, "pitch", 2.0, rng())[1] == "as it is: no sound in it"
    still = Scene(replace(gradient(), is_image=True), [])
    assert before_and_after(still, "speed", 0.3, rng())[1] == "as it is: a picture that stands still"


def test_the_sheet_is_of_what_training_sees(tmp_path) -> None:
    recording = make(tmp_path / "a.mp4", seconds=6.0)
    part = {"type": "video", "video": str(recording), "start": 1.0, "end": 3.0}
    user = [{"role": "user", "content": [part, {"type": "text", "text": "Which colour?"}]}]
    write_records(tmp_path / "rows.jsonl", [{"id": "1", "task": "qa", "messages": user, "answer": "grey"}])
    spec = WindowSpec(window_seconds=2.0, frames_per_window=4, max_windows=8, image_size=16)
    scene = open_scene(open_source(str(tmp_path / "rows.jsonl")), 0, spec)
    assert scene.clip.duration == 2.0
    assert scene.clip.frames.shape == (4, 16, 16, 3)
    assert scene.texts == ["Which colour?", "grey"]
    assert (scene.task, scene.request) == ("qa", "Which colour?")
