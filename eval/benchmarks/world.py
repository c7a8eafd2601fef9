"""`mllm eval world`: questions and retrieval pairs of the generated world.

A split is evaluated on its first scenes. Records come from `records.open_source`, so all this module knows of
the world is the names of its question types.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eval.benchmark import Benchmark, Retrieval, Subject
from eval.metrics import AnswerPrior
from eval.question import Question
from mllm.command.cli import COMMAND
from mllm.errors import ConfigError, MllmError
from mllm.records import chat
from mllm.records.source import DataSource, open_source

if TYPE_CHECKING:
    from mllm.search.embedder import Modality

_log = logging.getLogger(f"mllm.{__name__}")

SPLITS = ("val", "comp")
SIDES: tuple[Modality, ...] = ("video", "audio", "both")
PRIOR_SCENES = 4000

# Grouped by what a question requires: the sound, the picture, both at one moment, a still image, two
# recordings, the honest answer that a modality is missing, or no recording at all.
GROUPS = {
    "audio": ("kind", "beeps", "word", "emotion", "first_sound", "when_sound"),
    "video": ("colour", "shape", "motion", "count", "first_colour", "when_shape"),
    "joint": ("see_at_sound", "hear_at_shape", "order", "named"),
    "image": ("image_colour", "image_shape", "image_count"),
    "two": ("two_shape", "two_sound"),
    "missing": ("no_sound", "no_picture"),
    "chat": ("chat",),
    "caption": ("caption_video", "caption_audio", "caption_both"),
}


class World(Benchmark):
    """Questions of the generated world by type, beside blind guesses; recall of search; one page of it all.

    Options left out take their values from the section `eval` of the checkpoint's experiment.
    """

    name = "world"
    groups = GROUPS
    folder = ""

    def __init__(
        self,
        split: Annotated[
            list[str] | None, typer.Option(help="val or comp; repeatable. Default: both.")
        ] = None,
        clips: Annotated[int | None, typer.Option(min=1, help="Scenes per split.")] = None,
        questions: Annotated[int | None, typer.Option(min=1, help="Most questions about a scene.")] = None,
        media: Annotated[
            str, typer.Option(help="mp4: clips as real files, compressed; arrays: made in memory, quicker.")
        ] = "mp4",
        clips_folder: Annotated[Path, typer.Option(help="Where mp4 clips are kept between runs.")] = Path(
            "runs/eval/clips"
        ),
        search_clips: Annotated[
            int | None, typer.Option(min=0, help="Clips to search among; 0 leaves search out.")
        ] = None,
        seed: Annotated[int, typer.Option(help="Another seed, other scenes.")] = 0,
    ):
        if wrong := [name for name in split or () if name not in SPLITS]:
            raise ConfigError(f"--split is '{wrong[0]}': choose from {', '.join(SPLITS)}")
        if media not in ("mp4", "arrays"):
            raise ConfigError(f"--media is '{media}': choose mp4 or arrays")
        self.chosen, self.clips, self.most_questions = split, clips, questions
        self.search_clips = search_clips
        self.media, self.clips_folder, self.seed = media, clips_folder, seed
        self.drawn = ""  # rendering options of the source

    @property
    def settings(self) -> dict[str, Any]:
        """Which scenes and questions are evaluated."""
        scenes = {"clips": self.clips, "questions_per_clip": self.most_questions, "seed": self.seed}
        return {"media": self.media} | scenes

    def prepare(self, subject: Subject) -> None:
        """Fills in options from the experiment, and renders scenes in the windows of a model in this process.

        Raises:
            ConfigError: if scenes in memory would have to be sent to a server.
        """
        if subject.remote and self.media == "arrays":
            raise ConfigError("--media arrays never leave this process: with --url take --media mp4")
        defaults, windows = subject.defaults, subject.windows
        self.splits = self.chosen or defaults.splits
        self.clips = self.clips or defaults.clips
        self.most_questions = self.most_questions or defaults.questions_per_clip
        if self.search_clips is None:
            self.search_clips = defaults.retrieval_clips
        if windows:
            # No resizing, and no frame is dropped.
            frames, size = windows.frames_per_window, windows.image_size
            self.drawn = f",frames={frames},window={windows.window_seconds},size={size}"
        self._prior = train_prior()

    def questions(self, split: str) -> Iterable[Question]:
        """All questions about the first scenes of a split."""
        source = self._files(split) if self.media == "mp4" else self._scenes(split)
        for index in range(len(source)):
            yield from map(Question.of, source.conversations(index))

    def retrieval(self, split: str) -> Iterable[Retrieval]:
        """Clips and captions for the picture, for the sound, and for both."""
        if not self.search_clips:
            return []
        source = open_source(f"world:{split},seed={self.seed},clips={self.search_clips},media=av{self.drawn}")
        return paired([source.pair(index) for index in range(len(source))])

    def prior(self, question: Question) -> str:
        """The most frequent training answer to its text."""
        return self._prior(question.text)

    def _scenes(self, split: str) -> DataSource:
        options = f"seed={self.seed},clips={self.clips},questions={self.most_questions}"
        return open_source(f"world:{split},{options}{self.drawn}")

    def _files(self, split: str) -> DataSource:
        _log.info("%s: clips as files in %s", split, self.clips_folder)
        return write_files(split, self.clips or 0, self.most_questions or 0, self.seed, self.clips_folder)


def paired(pairs: list[dict[str, Any]]) -> list[Retrieval]:
    """Groups the pairs of a source into retrieval sets by the modality that their captions describe."""
    found = []
    for side in SIDES:
        described = [pair for pair in pairs if pair["captions"].get(side)]
        captions = [pair["captions"][side] for pair in described]
        if described:
            clips = [pair["clip"] for pair in described]
            labels = list(map(caption_key, captions))
            found.append(Retrieval(side, clips, [[caption] for caption in captions], labels))
    return found


def caption_key(caption: str) -> str:
    """One key for the three phrasings of a sequence: "a, then b.", "first a, then b.", "a. then b."."""
    return caption.strip().rstrip(".").removeprefix("first ").replace(". then ", ", then ")


def train_prior(scenes: int = PRIOR_SCENES) -> AnswerPrior:
    """Training answers by question text, from texts alone: nothing is rendered."""
    source = open_source(f"world:train,clips={scenes}")

    def pairs() -> Iterable[tuple[str, str]]:
        for index in range(len(source)):
            for messages in source.text(index):
                *_, question, answer = chat.validate_messages(messages)
                # The last text is the question; an earlier one describes the recording.
                yield question["content"][-1]["text"], answer["content"][-1]["text"]

    return AnswerPrior(pairs())


def write_files(split: str, clips: int, questions: int, seed: int, folder: Path) -> DataSource:
    """Opens the split as media files, generated by `mllm data world` unless they exist.

    Raises:
        MllmError: if that command fails.
    """
    # Named after its content: clips of another version of the world must not be reused.
    world = open_source(f"world:{split},seed={seed},questions={questions}")
    texts = json.dumps([world.text(scene) for scene in range(min(clips, 50))])
    out = folder / f"{split}-{clips}x{questions}-seed{seed}-{hashlib.sha256(texts.encode()).hexdigest()[:8]}"
    if not (out / "records.jsonl").is_file():
        command = [*COMMAND, "data", "world", "--out", str(out)]
        command += [
            "--split",
            split,
            "--clips",
            str(clips),
            "--questions",
            str(questions),
            "--seed",
            str(seed),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            cause = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("error: ")
            raise MllmError(f"the clips of {split} could not be written to {out}: {cause}")
    return open_source(str(out / "records.jsonl"), media_must_exist=False)
