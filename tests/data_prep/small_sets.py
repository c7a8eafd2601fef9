"""Tiny made-up sets in the folders and forms of the open sets that `mllm data small` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from data_prep.small.questions import COLOURS, EMOTIONS
from data_prep.world.write import write_mp4

RATE = 16_000
EVENTS = ["dog bark", "rain", "person sneeze"]
KEYWORDS = ["backward", "down", "up", "stop"]
THINGS = ["accordion", "cup", "lamp", "scissors"]


def write_sets(folder: Path) -> Path:
    """All sets, a few rows each: every value of a label once in training and once in the test."""
    for n, split in enumerate(("train", "test")):
        _esc10(folder / "real_esc10", split, n)
        _grid(folder / "real_grid", split, n)
        _speech(folder, split, n)
        _pictures(folder, split, n)
    _clips(folder)
    for digit in (3, 7):
        for index in (2, 5, 9, 10, 49):  # 2 is of the official test, 5 and 9 of ours
            _sound(folder / f"fsdd/recordings/{digit}_ann_{index}.wav", digit * 100 + index, 0.4)
    return folder


def _sound(path: Path, seed: int, seconds: float = 0.8) -> None:
    """A tone with a beginning and an end, different for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(round(seconds * RATE)) / RATE
    wave = np.sin(times * (600 + 37 * (seed % 97))) * np.hanning(len(times)) * 0.5
    wave += np.random.default_rng(seed).standard_normal(len(times)) * 0.01
    soundfile.write(path, wave.astype(np.float32), RATE)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def row(id: str, kind: str, media: str, text: str, answer: str, task: str, **rest: Any) -> dict[str, Any]:
    """A record of one question."""
    content = [{"type": kind, kind: media}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return {"id": id, "messages": messages, "task": task, "source": "set", "answer": answer} | rest


def _esc10(folder: Path, split: str, n: int) -> None:
    rows = []
    for i, event in enumerate(EVENTS * 2):
        name = f"audio/{split}-{i}.wav"
        _sound(folder / name, 1000 * n + i, 1.5)
        credit = {"title": f"{split} {event}", "url": f"https://sounds.test/{split}-{i}", "licence": "CC0"}
        labels = {"event": event, "freesound": f"{split}{i}"}
        rows.append(
            row(
                f"esc10/{split}-{i}",
                "audio",
                name,
                "What is it?",
                event,
                "sound_event",
                labels=labels,
                credit=credit,
            )
        )
    _write(folder / f"{split}.jsonl", rows)


def _grid(folder: Path, split: str, n: int) -> None:
    rows = []
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    for i, colour in enumerate(COLOURS):
        labels = {"colour": colour, "digit": "two", "letter": "abcd"[i], "adverb": "now", "command": "bin"}
        text = f"bin {colour} at {'abcd'[i]} two now"
        words = [[0.2 * k, 0.2 * k + 0.2, word] for k, word in enumerate(text.split())]
        frames = np.full((10, 32, 32, 3), 40 * i + 20 * n, np.uint8)
        wave = np.sin(np.arange(round(1.25 * RATE)) * 0.05 * (i + 1 + 5 * n)).astype(np.float32) * 0.4
        name = f"clips/{split}{i}.mp4"
        write_mp4(folder / name, frames, wave)
        rows += [
            row(
                f"grid/{split}{i}",
                "video",
                name,
                "What is said?",
                text,
                "transcript",
                words=words,
                labels=labels,
            ),
            row(f"grid/{split}{i}/colour", "video", name, "Which colour?", colour, "choice", labels=labels),
        ]
    _write(folder / f"{split}.jsonl", rows)


def _speech(folder: Path, split: str, n: int) -> None:
    """speechocean762, arabic_commands, emodb and kerstin_de."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for set, values, label in (
        ("speechocean762", ["a child", "an adult"] * 2, "age_group"),
        ("arabic_commands", KEYWORDS, "keyword"),
        ("emodb", EMOTIONS, "emotion"),
        ("kerstin_de", ["Guten Tag.", "Es regnet heute."], "transcript"),
    ):
        for i, value in enumerate(values):
            name = f"audio/{split}-{i}.wav"
            _sound(folder / f"real_{set}" / name, 100 * len(set) + 10 * n + i)
            labels = {label: value, "speaker": f"{split}{i}", "actor": f"{split}{i}"}
            about = row(f"{set}/{split}{i}", "audio", name, "What?", value, label, labels=labels)
            rows.setdefault(set, []).append(about)
            if set == "speechocean762":
                said = row(
                    f"{set}/{split}{i}/t",
                    "audio",
                    name,
                    "What is said?",
                    f"go {i}",
                    "transcript",
                    labels=labels,
                )
                rows[set].append(said)
    for set, of_set in rows.items():
        _write(folder / f"real_{set}" / f"{split}.jsonl", of_set)


def _pictures(folder: Path, split: str, n: int) -> None:
    """caltech101 and coco_mini; every other picture of the latter has a licence that is not free."""
    things, photos = [], []
    for set in ("caltech101", "coco_mini"):
        (folder / f"real_{set}" / "images").mkdir(parents=True, exist_ok=True)
    for i, thing in enumerate(THINGS):
        name = f"images/{split}{i}.png"
        for set in ("caltech101", "coco_mini"):
            pixels = np.full((40, 48, 3), 50 * i + 20 * n + len(set), np.uint8)
            Image.fromarray(pixels).save(folder / f"real_{set}" / name)
        things.append(row(f"caltech101/{split}{i}", "image", name, "What?", thing, "object"))
        seen = {"video": [f"A {thing} on a table."], "audio": [], "both": []}
        labels = {"objects": {thing: 1}, "licence": "CC BY" if i % 2 else "NC", "free": bool(i % 2)}
        credit = {"url": f"https://photos.test/{split}{i}"}
        photos.append(
            row(f"coco_mini/{split}{i}", "image", name, "What?", seen["video"][0], "caption", captions=seen)
            | {"labels": labels, "credit": credit}
        )
    _write(folder / f"real_caltech101/{split}.jsonl", things)
    _write(folder / f"real_coco_mini/{split}.jsonl", photos)


def _clips(folder: Path) -> None:
    """sintel, intel_clips and toy_clips, which have no test."""
    for set in ("sintel", "intel_clips", "toy_clips"):
        (folder / f"real_{set}").mkdir(parents=True, exist_ok=True)
        write_mp4(folder / f"real_{set}/a.mp4", np.full((10, 32, 32, 3), len(set) * 9, np.uint8), None)
        seen = {"video": [f"A clip of {set}."], "audio": [], "both": []}
        about = row(f"{set}/a", "video", "a.mp4", "What happens?", seen["video"][0], "caption", captions=seen)
        _write(folder / f"real_{set}/records.jsonl", [about])
