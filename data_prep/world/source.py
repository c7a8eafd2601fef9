"""The world as a data source: `open_source("world:train")`, arrays made on the spot, nothing on disk."""

from __future__ import annotations

import random
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from data_prep.world import describe, phrases, questions, render, sound
from data_prep.world.scene import (
    CANVAS,
    COMP_FORMS,
    FORMS,
    MEDIA_FORMS,
    SPLITS,
    WINDOW,
    Episode,
    Scene,
    rng_for,
    sample_episode,
)
from mllm.errors import ConfigError
from mllm.media.clip import Clip
from mllm.media.windows import WindowSpec
from mllm.records.chat import Message

ATTEMPTS = 2000  # scenes that are looked at for one that allows a question
LENGTHS = {"train": 1_000_000, "val": 2048, "comp": 2048}
PAIR_FORMS = {"both": 0.7, "video": 0.1, "audio": 0.1, "image": 0.1}
COMP_PAIR_FORMS = {"both": 0.8, "video": 0.1, "audio": 0.1}


class WorldSource:
    """A split of the world as a `DataSource`.

    Args:
        split: "train", "val" (unseen scenes) or "comp" (combinations that are never in the other two).
        seed: another seed is another world of the same kind.
        clips: number of scenes; 1,000,000 for train and 2,048 for the others when None.
        questions_per_clip: most records of one scene.
        frames_per_window, window_seconds, size: frames are drawn at the moments that a WindowSpec with these
            values picks and at `size` × `size` pixels, so nothing is left to resize.
        objects: most shapes in a clip (1–3), for a curriculum.
        media: "av", "video", "audio", "image" or several joined by "+": only clips of these forms.
        turns: share of records that hold an earlier question and answer about the clip before their own.
        ask: one type of question, or several joined by "+": only they are asked, about scenes that allow one.
    """

    def __init__(
        self,
        split: str,
        *,
        seed: int = 0,
        clips: int | None = None,
        questions_per_clip: int = 4,
        frames_per_window: int = 4,
        window_seconds: float = WINDOW,
        size: int = CANVAS,
        objects: int = 3,
        media: str | None = None,
        turns: float = 0.0,
        ask: str | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ConfigError(f"the world has no split {split!r}: take one of {', '.join(SPLITS)}")
        if not 1 <= objects <= 3:
            raise ConfigError(f"objects={objects}: a clip of the world has 1 to 3 shapes")
        self.name = f"world:{split}"
        self.split = split
        self.seed = seed
        self.clips = LENGTHS[split] if clips is None else clips
        self.questions_per_clip = questions_per_clip
        self.objects = objects
        self.turns = turns
        self.ask = tuple(ask.split("+")) if ask else None
        if unknown := set(self.ask or ()) - set(phrases.TYPES):
            raise ConfigError(
                f"ask={ask}: no question is of type {unknown.pop()!r}: {', '.join(phrases.TYPES)}"
            )
        self.spec = WindowSpec(window_seconds, frames_per_window, 1 << 20, size)
        own, pairs = (COMP_FORMS, COMP_PAIR_FORMS) if split == "comp" else (FORMS, PAIR_FORMS)
        self._forms = own if media is None else _chosen_forms(media, own)
        self._pair_forms = pairs if media is None else self._forms

    def __len__(self) -> int:
        return self.clips

    def episode(self, index: int, *, pairs: bool = False) -> Episode:
        """What happens in scene `index`; with `pairs`, always a single recording."""
        if not 0 <= index < self.clips:
            raise IndexError(f"{self.name} has {self.clips} clips, no number {index}")
        forms = self._pair_forms if pairs else self._forms
        for attempt in range(ATTEMPTS):
            place = index + attempt * LENGTHS["train"]  # behind all others
            episode = sample_episode(self.split, self.seed, place, forms=forms, objects=self.objects)
            if self.ask is None or pairs or self._asked(episode, self._chance(episode)):
                return episode
        raise ConfigError(
            f"{self.name}: no scene for ask={'+'.join(self.ask or ())}: its other options forbid it"
        )

    def _chance(self, episode: Episode) -> random.Random:
        """The random stream that decides which questions are asked about an episode."""
        return rng_for("questions", self.split, self.seed, episode.index)

    def _asked(self, episode: Episode, rng: random.Random) -> list[questions.Question]:
        if self.ask is None:
            return questions.ask(episode, rng, self.questions_per_clip)
        asked = [question for question in questions.ask(episode, rng) if question.type in self.ask]
        return asked[: self.questions_per_clip]

    def clip(self, scene: Scene, name: str) -> Clip:
        """The recording of a scene. What it lacks, picture or sound, is None."""
        if scene.form == "image":
            frames = render.render(scene, np.zeros(1), self.spec.image_size)
            return Clip(frames, np.zeros(1), None, 0.0, name, is_image=True)
        times = self.spec.frame_times(scene.duration).ravel() if scene.has_picture else np.zeros(0)
        return Clip(
            frames=render.render(scene, times, self.spec.image_size) if scene.has_picture else None,
            frame_times=times,
            waveform=sound.play(scene) if scene.has_sound else None,
            duration=scene.duration,
            source=name,
            picture_end=scene.duration if scene.has_picture else None,
        )

    def records(self, index: int) -> list[dict[str, Any]]:
        """As `conversations`: every question of the world has its answer."""
        return self.conversations(index)

    def conversations(self, index: int) -> list[dict[str, Any]]:
        """The records about scene `index`; all hold the identical clips."""
        episode = self.episode(index)
        clips = [self.clip(scene, f"{self.name}/{index}.{i}") for i, scene in enumerate(episode.scenes)]
        records = self.about(episode, clips)
        if len(clips) == 1:  # instruction tuning keeps the shared space by what a recording shows
            records[0]["captions"] = captions_of(episode.scenes[0])
        return records

    def about(self, episode: Episode, media: Sequence[Clip | str | None]) -> list[dict[str, Any]]:
        """The records about an episode whose recordings are `media`: clips, or the paths of their files."""
        index = episode.index
        rng = self._chance(episode)
        parts = [media_part(scene, source) for scene, source in zip(episode.scenes, media, strict=True)]
        asked = self._asked(episode, rng)
        records = []
        for number, question in enumerate(asked):
            earlier = [asked[number - 1]] if number and rng.random() < self.turns else []
            messages: list[Message] = []
            for turn in (*earlier, question):
                text = [{"type": "text", "text": turn.text}]
                messages.append({"role": "user", "content": text if messages else parts + text})
                messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
            record = {
                "id": f"world-{self.split}-{self.seed}-{index}-{number}",
                "messages": messages,
                "task": question.type,
                "source": self.name,
                "answer": question.answer,
            }
            if question.options:
                record["options"] = list(question.options)
            records.append(record)
        return records

    def pair(self, index: int) -> dict[str, Any]:
        """One clip with captions and labels; each round past the end words the captions in another way.

        A caption is None for a modality that the clip lacks, and `both` is None unless it has the two. The
        labels' `timeline_both` covers whatever the clip has.
        """
        turn, index = divmod(index, len(self))
        scene = self.episode(index, pairs=True).scenes[0]
        clip = self.clip(scene, f"{self.name}/pair-{index}")
        phrasing = rng_for("captions", self.split, self.seed, index).randrange(describe.PHRASINGS)
        phrasing = (phrasing + turn) % describe.PHRASINGS
        return {"clip": clip, "captions": captions_of(scene, phrasing), "labels": labels_of(scene)}

    def text(self, index: int) -> list[list[dict[str, Any]]]:
        """Conversations in which the timeline stands for the recording, for a decoder's stage 0."""
        episode = self.episode(index)
        rng = rng_for("text", self.split, self.seed, index)
        told = [part for scene in episode.scenes for part in _lines(scene)]
        conversations = []
        for question in self._asked(episode, rng):
            # Two parts, so that the question begins as it does behind media, with no space before it.
            parts = [
                {"type": "text", "text": text}
                for text in ([" ".join(told)] if told else []) + [question.text]
            ]
            answer = [{"type": "text", "text": question.answer}]
            conversations.append(
                [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]
            )
        return conversations


def media_part(scene: Scene, source: Clip | str | None) -> dict[str, Any]:
    """The message part for a recording of `scene`."""
    kind = scene.form if scene.form in ("audio", "image") else "video"
    return {"type": kind, kind: source}


def captions_of(scene: Scene, phrasing: int = 0) -> dict[str, str | None]:
    """One caption of each kind, None where the scene lacks the modality."""
    both = scene.has_picture and scene.has_sound
    return {
        "video": describe.caption(scene, "video", phrasing),
        "audio": describe.caption(scene, "audio", phrasing),
        "both": describe.caption(scene, "both", phrasing) if both else None,
    }


def labels_of(scene: Scene) -> dict[str, Any]:
    """What is seen and heard, as values and as timelines."""
    voices = [s for s in scene.sounds if s.kind == "voice"]
    return {
        "timeline_video": describe.timeline(scene, "video"),
        "timeline_audio": describe.timeline(scene, "audio"),
        "timeline_both": describe.timeline(scene, "both"),
        "form": scene.form,
        "colours": [s.colour for s in scene.shapes],
        "shapes": [s.shape for s in scene.shapes],
        "motions": [s.motion for s in scene.shapes],
        "shape_windows": [s.window for s in scene.shapes],
        "kinds": [s.kind for s in scene.sounds],
        "sound_windows": [s.window for s in scene.sounds],
        "beeps": [s.count for s in scene.sounds if s.kind == "beeps"],
        "words": [s.word for s in voices],
        "voices": [s.voice for s in voices],
        "emotions": [s.emotion for s in voices],
    }


def open_world(spec: str) -> WorldSource:
    """The source behind `world:SPEC`: a split, then options, such as "train,seed=3,clips=5000,objects=1".

    Options: seed, clips, questions, frames, window, size, objects, media, turns, ask (see `WorldSource`).

    Raises:
        ConfigError: unknown split or option, or a value of the wrong kind.
    """
    split, *pieces = [piece.strip() for piece in spec.split(",")]
    values: dict[str, Any] = {}
    for piece in pieces:
        key, _, text = piece.partition("=")
        if key not in _OPTIONS:
            near = get_close_matches(key, _OPTIONS, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"world:{spec}: no option {key!r}: {hint}there are {', '.join(_OPTIONS)}")
        name, kind = _OPTIONS[key]
        try:
            values[name] = kind(text)
        except ValueError:
            raise ConfigError(
                f"world:{spec}: {key}={text!r} is no {kind.__name__}: write {key}=NUMBER"
            ) from None
    return WorldSource(split or "train", **values)


_OPTIONS = {
    "seed": ("seed", int),
    "clips": ("clips", int),
    "questions": ("questions_per_clip", int),
    "frames": ("frames_per_window", int),
    "window": ("window_seconds", float),
    "size": ("size", int),
    "objects": ("objects", int),
    "media": ("media", str),
    "turns": ("turns", float),
    "ask": ("ask", str),
}


def _chosen_forms(media: str, forms: dict[str, float]) -> dict[str, float]:
    chosen = {}
    for name in media.split("+"):
        form = MEDIA_FORMS.get(name, "")
        if form not in forms:
            raise ConfigError(
                f"media={media}: there is no {name!r} here, take any of {', '.join(MEDIA_FORMS)}"
            )
        chosen[form] = forms[form]
    return chosen


def _lines(scene: Scene) -> list[str]:
    """The scene in words, and what its recording lacks."""
    timeline = describe.timeline(scene, "both")
    assert timeline is not None  # of "both", every scene has one
    lines = [timeline]
    if scene.form == "video":
        lines.append("no sound.")
    elif scene.form == "audio":
        lines.append("no picture.")
    return lines
