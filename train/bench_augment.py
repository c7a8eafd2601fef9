"""`mllm bench augment`: our augmentations beside those of libraries that load beside this torch.

None is a dependency: `pip install --no-deps --target FOLDER …`, then `PYTHONPATH=FOLDER mllm bench augment`.
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor, process
from functools import partial
from importlib import import_module, metadata
from multiprocessing import get_context
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from mllm.command.bench import JsonOption, report

SECONDS, RATE, FRAMES, SIZE = 4, 16_000, 16, 224  # of the recording; pixels, height = width
SNR, SEMITONES, MASK, CROP = 10.0, 2.0, 0.1, 0.8  # dB, up, of the sound, of a picture's sides
JITTER = (1.2, 0.8, 1.1)  # times brightness, contrast, saturation
RANGES, AREA = [(factor, factor) for factor in JITTER], {"scale": (CROP**2, CROP**2), "ratio": (1.0, 1.0)}


def bench_augment(
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each; their median counts.")] = 15,
    json_file: JsonOption = None,
) -> dict[str, Any]:
    """Milliseconds of processor time in one thread, theirs and ours in turn on the same recording.

    Returns:
        for each library its release and, by operation, [their time, our time], or why it is left out.
    """
    table = Table("library", "what", "theirs", "ours", "ratio", box=None)
    numbers: dict[str, Any] = {}
    for name in LIBRARIES:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # a library may end it
            try:
                numbers[name] = pool.submit(_compare, name, rounds).result()
            except process.BrokenProcessPool:
                numbers[name] = {"reason": "ends the process"}
        if "reason" in numbers[name]:
            table.add_row(name, numbers[name]["reason"])
        for what, (theirs, ours) in numbers[name].get("ms", {}).items():
            times = f"{theirs:.2f} ms", f"{ours:.2f} ms", f"{theirs / ours:.2f}×"
            table.add_row(numbers[name]["release"], what, *times)
    note = f"{SECONDS} s of sound, {FRAMES} pictures at {SIZE}×{SIZE}; ratio: how many times as fast ours is"
    report(table, numbers, json_file, note)
    return numbers


def _compare(name: str, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    sound = rng.standard_normal(SECONDS * RATE, np.float32) / 10
    pictures = rng.integers(0, 256, (FRAMES, SIZE, SIZE, 3), np.uint8)
    try:
        theirs = LIBRARIES[name](import_module(name), sound, pictures)
    except Exception as error:  # whatever an import may raise
        absent = isinstance(error, ModuleNotFoundError) and error.name == name
        return {"reason": "not installed" if absent else f"does not load: {error}"}
    # Only now: audiomentations' pitch shift ends a process into which decord came before it.
    from train import augment

    augment.torch.set_num_threads(1)
    ours = {
        "noise": lambda: augment.noise(sound, SNR, rng),
        "pitch": lambda: augment.pitch(sound, SEMITONES),
        "time mask": lambda: augment.time_mask(sound, MASK, 0.5),
        "crop": lambda: augment.crop(pictures, CROP, np.array([0.5, 0.5])),
        "jitter": lambda: augment.jitter(pictures, np.array(JITTER)),
        "flip": lambda: augment.flip(pictures),
    }
    times = {what: _milliseconds((run, ours[what]), rounds) for what, run in theirs.items()}
    package = metadata.packages_distributions()[name][0]
    return {"release": f"{package} {metadata.version(package)}", "ms": times}


def _milliseconds(runs: tuple[Any, ...], rounds: int) -> list[float]:
    spent = []
    for _ in range(rounds + 1):
        marks = [time.process_time()]
        for run in runs:
            run()
            marks.append(time.process_time())
        spent.append(1000 * np.diff(marks))
    return np.median(spent[1:], axis=0).tolist()  # the first warms up


def _audiomentations(library: Any, sound: np.ndarray, pictures: np.ndarray) -> dict[str, Any]:
    kinds = {"noise": (library.AddGaussianSNR, SNR), "pitch": (library.PitchShift, SEMITONES)}
    kinds["time mask"] = library.TimeMask, MASK
    return {what: partial(kind(much, much, p=1.0), sound, RATE) for what, (kind, much) in kinds.items()}


def _kornia(library: Any, sound: np.ndarray, pictures: np.ndarray) -> dict[str, Any]:
    alike, kinds = {"p": 1.0, "same_on_batch": True}, library.augmentation
    crop = kinds.RandomResizedCrop((SIZE, SIZE), **AREA, **alike)
    jitter, flip = kinds.ColorJitter(*RANGES, **alike), kinds.RandomHorizontalFlip(**alike)
    given = import_module("torch").from_numpy(pictures).permute(0, 3, 1, 2) / 255  # whose cost is not counted
    return {"crop": partial(crop, given), "jitter": partial(jitter, given), "flip": partial(flip, given)}


def _albumentations(library: Any, sound: np.ndarray, pictures: np.ndarray) -> dict[str, Any]:
    def run(kind: Any) -> np.ndarray:
        return np.ascontiguousarray(kind(images=pictures)["images"])

    import_module("cv2").setNumThreads(0)
    kinds = {"jitter": library.ColorJitter(*RANGES, (0, 0), p=1.0), "flip": library.HorizontalFlip(p=1.0)}
    kinds["crop"] = library.RandomResizedCrop((SIZE, SIZE), **AREA, p=1.0)
    return {what: partial(run, library.Compose([kind])) for what, kind in kinds.items()}


LIBRARIES = {  # name -> a function that gives, for each operation, a run of it
    "audiomentations": _audiomentations,
    "torch_audiomentations": lambda library, sound, pictures: {},  # wants torchaudio, so never timed
    "kornia": _kornia,
    "albumentations": _albumentations,
}
