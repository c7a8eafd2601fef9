"""The generated world: reproducible, balanced, answerable, and honest about what it holds out."""

import hashlib
import itertools
import os
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from data_prep.world import describe, phrases, render, sound, voice
from data_prep.world.balance import balance_table
from data_prep.world.scene import (
    CANVAS,
    COLOURS,
    EMOTIONS,
    MOTIONS,
    SHAPES,
    VOICES,
    WINDOW,
    WORDS,
    held_out_shape,
    held_out_voice,
    sample_episode,
)
from data_prep.world.source import open_world
from mllm.errors import ConfigError
from mllm.media.windows import cut
from mllm.records.chat import validate_messages
from mllm.records.record import validate_record

SPLITS = ("train", "val", "comp")


def digest_of(split: str, indices: list[int]) -> str:
    """A hash of everything that the source gives for some scenes."""
    source = open_world(f"{split},turns=0.3")
    parts = []
    for index in indices:
        for record in source.conversations(index):
            clips = [part.source for part in validate_messages(record["messages"]).media]
            parts.append(record["id"] + record["answer"] + "".join(clip.digest() for clip in clips))
        pair = source.pair(index)
        parts.append(pair["clip"].digest() + repr(pair["captions"]) + repr(pair["labels"]))
        parts.append(repr(source.text(index)))
    return hashlib.sha256("".join(sorted(parts)).encode()).hexdigest()


def test_another_process_makes_the_same_world_bit_for_bit():
    for seed, order in (("1", "[11,5,7,3,2]"), ("2", "[2,3,5,7,11]")):
        # Another order too: what was said before must not change how a word sounds.
        code = f"import test_world as t; print([t.digest_of(s, {order}) for s in t.SPLITS])"
        path = os.pathsep.join([os.path.dirname(__file__), os.getcwd()])
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str([digest_of(split, [2, 3, 5, 7, 11]) for split in SPLITS])


def test_seeds_and_splits_differ():
    digests = {digest_of(split, [0, 1, 2]) for split in SPLITS}
    assert len(digests) == 3
    first, second = open_world("val").text(0), open_world("val,seed=1").text(0)
    assert first != second


# --- what is held out -------------------------------------------------------------------------------------


def test_held_out_rule_is_balanced():
    combos = [c for c in itertools.product(COLOURS, SHAPES, MOTIONS) if held_out_shape(*c)]
    assert len(combos) == 20
    assert set(Counter(c for c, _, _ in combos).values()) <= {3, 4}
    assert set(Counter(s for _, s, _ in combos).values()) == {5}
    assert set(Counter(m for _, _, m in combos).values()) == {4}
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert max(Counter((c[first], c[second]) for c in combos).values()) == 1
    voices = [v for v in itertools.product(WORDS, VOICES) if held_out_voice(*v)]
    assert len(voices) == 8
    assert set(Counter(word for word, _ in voices).values()) == {1}
    assert set(Counter(v for _, v in voices).values()) <= {1, 2}


@pytest.mark.parametrize("split", ["train", "val"])
def test_held_out_combinations_are_never_trained(split):
    for index in range(3000):
        for scene in sample_episode(split, 0, index).scenes:
            assert scene.target is None
            assert not any(held_out_shape(s.colour, s.shape, s.motion) for s in scene.shapes)
            assert not any(held_out_voice(s.word, s.voice) for s in scene.sounds if s.kind == "voice")


def test_comp_asks_about_held_out_combinations_and_nothing_else():
    source = open_world("comp,clips=1500")
    seen = set()
    for index in range(1500):
        episode = source.episode(index)
        targets = [scene.target for scene in episode.scenes if scene.target]
        voices = [s for scene in episode.scenes for s in scene.sounds if s.kind == "voice"]
        for target in targets:
            assert held_out_shape(target.colour, target.shape, target.motion)
            seen.add((target.colour, target.shape, target.motion))
        for spoken in voices:
            assert held_out_voice(spoken.word, spoken.voice)
            seen.add((spoken.word, spoken.voice))
        for record in source.about(episode, ["x"] * len(episode.scenes)):
            task, asked = record["task"], record["messages"][-2]["content"][-1]["text"]
            assert task in phrases.COMP_TYPES
            if task in ("word", "emotion", "when_sound", "caption_audio", "named"):
                assert len(voices) == 1
            else:
                (target,) = targets
                others = {s.shape for scene in episode.scenes for s in scene.shapes} - {target.shape}
                # The question names no other shape; the answer is the target's own.
                assert not others & set(re.findall(r"[a-z]+", asked))
                expected = {"colour": target.colour, "shape": target.shape, "motion": target.motion}
                expected |= {"first_colour": target.colour, "see_at_sound": target.colour}
                assert record["answer"] == expected.get(task, record["answer"])
    assert len(seen) == 20 + 8


# --- balance ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_no_answer_is_a_good_guess(split):
    table = balance_table(open_world(f"{split},clips=8000"))
    assert {row.type for row in table} == set(phrases.COMP_TYPES if split == "comp" else phrases.TYPES)
    for row in table:
        if row.limit is not None:
            noise = 3 * (row.majority * (1 - row.majority) / row.questions) ** 0.5
            assert row.majority <= row.limit + noise, row
        if split != "comp":
            assert row.share >= 0.028, row  # three in a hundred, less the noise of this sample


@pytest.mark.slow
def test_balance_on_four_thousand_questions_of_a_type():
    table = balance_table(open_world("val,clips=36000"))
    for row in table:
        assert row.questions >= 4000 or row.limit is None, row
        assert row.limit is None or row.majority <= row.limit, row


# --- picture and sound ------------------------------------------------------------------------------------


def scenes(split: str, count: int, **options):
    for index in range(count):
        yield from sample_episode(split, 0, index, **options).scenes


def test_three_shapes_find_room_where_few_places_are_left():
    (scene,) = sample_episode("train", 0, 316834).scenes  # one of 90,000: all move along, in the same window
    assert [shape.motion for shape in scene.shapes] == ["left", "left", "right"]


def test_shapes_stay_inside_apart_and_move_far_enough():
    for scene in scenes("train", 1500):
        names = [(s.colour, s.shape) for s in scene.shapes]
        assert len({c for c, _ in names}) == len({s for _, s in names}) == len(names) <= 3
        for shape in scene.shapes:
            points = np.array([shape.begin, shape.end])
            assert points.min() >= shape.radius + 1
            assert points.max() <= CANVAS - shape.radius - 1
            assert 9 <= shape.radius <= 13
            dx, dy = points[1] - points[0]
            assert {
                "left": dx <= -20 and dy == 0,
                "right": dx >= 20 and dy == 0,
                "up": dy <= -20 and dx == 0,
                "down": dy >= 20 and dx == 0,
                "still": dx == dy == 0,
            }[shape.motion]
            if scene.form != "image":
                start, stop = shape.window * WINDOW, min((shape.window + 1) * WINDOW, scene.duration)
                assert start <= shape.appear <= start + 0.2
                assert stop - 0.11 <= shape.vanish <= stop
        for a, b in itertools.combinations(scene.shapes, 2):
            if a.window == b.window:
                for done in np.linspace(0, 1, 9):
                    at = [np.array(s.begin) * (1 - done) + np.array(s.end) * done for s in (a, b)]
                    assert np.linalg.norm(at[0] - at[1]) >= a.radius + b.radius + 1


@pytest.mark.parametrize("size", [64, 128])
def test_the_right_colour_is_at_the_right_place_at_the_right_time(size):
    for scene in scenes("val", 150, forms={"video": 1.0}):
        times = np.arange(0, scene.duration, 0.125)
        frames = render.render(scene, times, size)
        assert frames.shape == (len(times), size, size, 3)
        assert frames.dtype == np.uint8
        for i, time in enumerate(times):
            shown = [s for s in scene.shapes if s.appear <= time < s.vanish]
            assert (frames[i].max() > 130) == bool(shown)
            for shape in shown:
                done = (time - shape.appear) / (shape.vanish - shape.appear)
                x, y = (np.array(shape.begin) * (1 - done) + np.array(shape.end) * done) * size / CANVAS
                away = {
                    name: np.abs(frames[i, int(y), int(x)].astype(int) - paint).sum()
                    for name, paint in render.PALETTE.items()
                }
                assert min(away, key=away.get) == shape.colour


def test_sounds_fit_into_their_windows():
    for scene in itertools.islice(scenes("train", 1500, forms={"audio": 1.0}), 400):
        wave = sound.play(scene)
        assert wave.dtype == np.float32
        assert len(wave) == scene.duration * 16000
        assert np.abs(wave).max() <= 1
        heard = set()
        for event in scene.sounds:
            assert event.window not in heard
            heard.add(event.window)
            start, stop = event.window * WINDOW, min((event.window + 1) * WINDOW, scene.duration)
            samples = sound.synthesize(scene.split, event)
            assert start <= event.start <= start + 0.3
            assert event.start + len(samples) / 16000 <= stop
            assert np.abs(samples).max() > 0.1
        for window in set(range(scene.windows)) - heard:
            assert np.abs(wave[int(window * WINDOW * 16000) :][: int(WINDOW * 16000)]).max() < 0.1


def test_beeps_can_be_counted():
    done = Counter()
    for scene in scenes("train", 800, forms={"audio": 1.0}):
        for event in scene.sounds:
            if event.kind == "beeps":
                loud = np.abs(sound.synthesize("train", event)) > 0.01
                gaps = np.diff(np.flatnonzero(loud)) > 400
                assert gaps.sum() + 1 == event.count
                done[event.count] += 1
    assert set(done) == {1, 2, 3, 4}


def test_tones_rise_and_fall():
    for scene in scenes("train", 400, forms={"audio": 1.0}):
        for event in scene.sounds:
            if event.kind.endswith("tone"):
                wave = sound.synthesize("train", event)
                crossings = [(np.diff(np.sign(part)) != 0).sum() for part in np.array_split(wave, 4)]
                assert (crossings[0] < crossings[-1]) == (event.kind == "rising tone")


def test_no_utterance_is_shared_between_splits_or_takes():
    seen = set()
    for split, takes in voice.TAKES.items():
        for word, speaker, emotion in itertools.product(("star",), VOICES, EMOTIONS):
            for take in range(takes):
                wave = voice.say(split, word, speaker, emotion, take)
                assert 0.25 < len(wave) / 16000 < 0.9
                seen.add(hashlib.sha256(wave.tobytes()).hexdigest())
    assert len(seen) == len(VOICES) * len(EMOTIONS) * sum(voice.TAKES.values())


def test_no_waveform_is_shared_between_splits():
    hashes = [
        hashlib.sha256(sound.play(scene).tobytes()).hexdigest()
        for split in SPLITS
        for scene in scenes(split, 150)
        if scene.has_sound
    ]
    assert len(hashes) == len(set(hashes))


def test_emotions_differ_in_loudness_and_length():
    def mean(emotion, measure):
        words = [voice.say("val", w, v, emotion, 0) for w in ("star", "banana") for v in VOICES]
        return np.mean([measure(wave) for wave in words])

    loud = {emotion: mean(emotion, lambda wave: np.sqrt((wave**2).mean())) for emotion in EMOTIONS}
    long = {emotion: mean(emotion, len) for emotion in EMOTIONS}
    assert loud["sad"] < loud["calm"] < loud["angry"]
    assert long["happy"] < long["calm"] < long["sad"]


# --- words ------------------------------------------------------------------------------------------------


def test_texts_are_small_letters_and_ascii():
    source = open_world("train")
    words = set()
    for index in range(1500):
        for messages in source.text(index):
            for message in messages:
                text = "".join(part["text"] for part in message["content"])
                assert text.isascii()
                assert text == text.lower()
                assert "{" not in text
                words |= set(re.findall(r"[a-z]+", text))
    assert len(words) < 260


def solve(task: str, timeline: str, question: str) -> str | None:
    """Answers a question from the timeline alone, without the scene; None where it cannot say."""
    lines = re.findall(r"\[(\d\d:\d\d)\] ([^\[]*)", timeline) or [("", timeline)]
    colours, shapes = "|".join(COLOURS), "|".join(SHAPES)
    seen = [
        (time, *found)
        for time, line in lines
        for found in re.findall(rf"a ({colours}) ({shapes})(?: (?:moves|stays) (\w+))?", line)
    ]
    marks = {
        "tone rises": ("a rising tone", "tone rise", "rising tone"),
        "tone falls": ("a falling tone", "tone fall", "falling tone"),
        "beep": ("beeps", "beeps"),
        "bell rings": ("a bell", "bell"),
        "piano plays": ("a piano", "piano"),
        "flute plays": ("a flute", "flute"),
        "drum beats": ("a drum", "drum"),
        "noise hisses": ("noise", "noise"),
        "voice says": ("a voice", "voice"),
    }
    heard = [(time, *names) for time, line in lines for mark, names in marks.items() if mark in line]
    words = set(re.findall(r"[a-z]+", question))
    asked = [s for s in seen if words & {s[1], s[2]}]
    named = [h for h in heard if any(name in question for name in h[2:])]
    spoken = re.search(r"an? (\w+) voice says (\w+)", timeline)
    match task:
        case "colour" | "image_colour":
            return asked[0][1]
        case "shape" | "image_shape":
            return asked[0][2]
        case "motion":
            return asked[0][3]
        case "count" | "image_count":
            return describe.NUMBERS[len(seen)]
        case "first_colour":
            return seen[0][1]
        case "when_shape":
            return asked[0][0]
        case "when_sound":
            return named[0][0]
        case "kind":
            time = re.search(r"\d\d:\d\d", question)
            (found,) = [h for h in heard if time is None or h[0] == time[0]]
            return found[1]
        case "first_sound":
            return heard[-1 if "last" in question else 0][1]
        case "beeps":
            return re.search(r"(\w+) beeps?", timeline)[1]
        case "word":
            return spoken[2]
        case "emotion":
            return spoken[1]
        case "see_at_sound":
            (found,) = [s for s in seen if s[0] == named[0][0]]
            return found[1]
        case "hear_at_shape":
            (found,) = [h for h in heard if h[0] == asked[0][0]]
            return found[1]
        case "order":
            assert asked[0][0] != named[0][0]
            return "yes" if (asked[0][0] < named[0][0]) == ("before" in question) else "no"
        case "named":
            return f"it says {spoken[2]}: {'yes' if spoken[2] in [s[2] for s in seen] else 'no'}"
        case "no_sound":
            return phrases.NO_SOUND if timeline.endswith("no sound.") else None
        case "no_picture":
            return phrases.NO_PICTURE if timeline.endswith("no picture.") else None
    return None


@pytest.mark.parametrize("split", SPLITS)
def test_every_question_has_one_answer_which_the_timeline_gives(split):
    source = open_world(f"{split},clips=2500")
    solved = Counter()
    for index in range(2500):
        episode = source.episode(index)
        if len(episode.scenes) != 1:
            continue
        timeline = source.text(index)[0][0]["content"][0]["text"]
        for record in source.about(episode, ["x"]):
            task, question = record["task"], record["messages"][-2]["content"][-1]["text"]
            if record.get("options"):
                assert record["answer"] in record["options"]
            answer = solve(task, timeline, question)
            if answer is not None:
                assert answer == record["answer"], (timeline, question)
                solved[task] += 1
    two_or_free = {"two_shape", "two_sound", "chat", "caption_video", "caption_audio", "caption_both"}
    expected = phrases.COMP_TYPES if split == "comp" else phrases.TYPES
    assert set(solved) == set(expected) - two_or_free


def test_captions_tell_what_the_timeline_tells():
    source = open_world("train")
    for index in range(300):
        scene = source.episode(index, pairs=True).scenes[0]
        for phrasing in range(describe.PHRASINGS):
            for which in ("video", "audio", "both"):
                text = describe.caption(scene, which, phrasing)
                if text is not None:
                    told = describe.timeline(scene, which)
                    events = re.split(r"\. |\.$| and |, then | while ", text.replace("first ", ""))
                    assert all(event.removeprefix("then ") in told for event in events)
    scene = next(s for s in scenes("train", 50, forms={"both": 1.0}) if s.windows == 3)
    assert describe.timeline(scene, "video").count("[00:0") == 3


@pytest.mark.parametrize("form", ["image", "video", "both"])
def test_one_picture_has_one_caption(form):
    for scene in scenes("train", 300, forms={form: 1.0}):
        told = [(shape.window, COLOURS.index(shape.colour)) for shape in scene.shapes]
        assert told == sorted(told)  # colours differ, so nothing is left to chance


def test_every_type_has_three_phrasings():
    for kind, texts in phrases.PHRASES.items():
        assert len(set(texts)) >= 3, kind


# --- the source -------------------------------------------------------------------------------------------


def test_records_of_a_scene_share_the_identical_clips():
    source = open_world("val")
    forms = set()
    for index in range(120):
        episode = source.episode(index)
        records = source.conversations(index)
        forms.add(episode.form)
        assert 1 <= len(records) <= 4
        assert len({record["id"] for record in records}) == len(records)
        for record in records:
            valid = validate_record(record, f"scene {index}")
            assert valid["messages"][-1]["content"][0]["text"] == record["answer"]
            clips = [part.source for part in validate_messages(record["messages"]).media]
            first = [part.source for part in validate_messages(records[0]["messages"]).media]
            assert all(a is b for a, b in zip(clips, first, strict=True))
            assert len(clips) == len(episode.scenes)
            kinds = [part["type"] for part in record["messages"][0]["content"]]
            assert kinds == [*kinds[:-1], "text"]
    assert forms == {"both", "video", "audio", "image", "two", "chat"}


def test_what_a_clip_lacks_is_none():
    for media, picture, heard in (("av", True, True), ("video", True, False), ("audio", False, True)):
        source = open_world(f"val,media={media}")
        for index in range(8):
            pair = source.pair(index)
            assert (pair["clip"].frames is not None) == picture
            assert (pair["clip"].waveform is not None) == heard
            found = {key: text is not None for key, text in pair["captions"].items()}
            assert found == {"video": picture, "audio": heard, "both": picture and heard}
    image = open_world("val,media=image").pair(0)["clip"]
    assert image.is_image
    assert image.frames.shape == (1, 64, 64, 3)


def test_frames_are_those_that_the_windows_ask_for():
    source = open_world("val,media=av,frames=3,size=48")
    for index in range(12):
        clip = source.pair(index)["clip"]
        windows = cut(clip, source.spec)
        assert len(windows) == source.episode(index, pairs=True).scenes[0].windows
        frames = np.concatenate([window.frames for window in windows])
        assert frames.shape[1:] == (48, 48, 3)
        assert np.array_equal(frames, clip.frames)


def test_options_of_the_spec():
    source = open_world("train,seed=3,clips=50,objects=1,questions=2")
    assert len(source) == 50
    assert source.name == "world:train"
    for index in range(50):
        assert all(len(scene.shapes) <= 1 for scene in source.episode(index).scenes)
        assert len(source.text(index)) <= 2
    with pytest.raises(IndexError):
        source.episode(50)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("test", "no split 'test'"),
        ("train,clps=5", "did you mean 'clips'"),
        ("train,clips=many", "clips='many'"),
        ("train,objects=9", "1 to 3"),
        ("train,ask=nonsense", "no question is of type 'nonsense'"),
        ("train,media=smell", "smell"),
        ("comp,media=image", "image"),
    ],
)
def test_a_wrong_spec_is_one_clear_line(spec, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as error:
        open_world(spec)
    assert "\n" not in str(error.value)


def test_turns_add_an_earlier_question_about_the_same_clip():
    source = open_world("train,turns=1")
    records = [record for index in range(30) for record in source.conversations(index)]
    longer = [record for record in records if len(record["messages"]) == 4]
    assert len(longer) > len(records) / 2
    for record in longer:
        assert [message["role"] for message in record["messages"]] == ["user", "assistant"] * 2
        assert [part["type"] for part in record["messages"][2]["content"]] == ["text"]


def test_a_source_may_ask_one_type_alone():
    source = open_world("train,clips=30,ask=named+order")
    for index in range(30):
        assert {record["task"] for record in source.conversations(index)} <= {"named", "order"}
        assert source.conversations(index)
    with pytest.raises(ConfigError, match="no scene for ask=named: its other options forbid it"):
        open_world("train,media=image,ask=named").conversations(0)
