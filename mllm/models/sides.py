"""The sides of a model, video and audio, as a checkpoint's files describe them.

    config.json            sides: {video: {queries: 8, tower: {model_type: timesformer, …}}, audio: {…}}
    processor_config.json  sides: {video: {queries: 8, type: timesformer, image_size: 64, …}, audio: {…}}

Earlier versions wrote the same fields without `sides`, for two fixed towers. torch is not imported here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

# Which part of a window each side encodes, in the order of their tokens in a prompt.
SIDES = {"video": "frames", "audio": "waveform"}

SPACE_TOKENIZER = "space_tokenizer"  # folder inside a checkpoint folder: the text tower's own tokenizer

Described = dict[str, dict[str, Any]]  # by side


def sides_of_config(values: Mapping[str, Any]) -> Described:
    """The sides in a config.json of this version or an earlier one, which omitted defaults."""
    if values.get("sides") is not None:
        return _in_order(values["sides"])
    pixels = {name: values[name] for name in ("image_mean", "image_std") if name in values}
    defaults = {"video": ("timesformer", 32, pixels), "audio": ("whisper", 8, {})}
    return {
        side: {
            "queries": values.get(f"{side}_queries", queries),
            "tower": {"model_type": kind, **(values.get(f"{side}_config") or {}), **fields},
        }
        for side, (kind, queries, fields) in defaults.items()
    }


def sides_of_processor(values: Mapping[str, Any]) -> Described:
    """The sides in a processor_config.json of this version or an earlier one."""
    if "sides" in values:
        return _in_order(values["sides"])
    return {
        "video": {
            "queries": values["video_queries"],
            "type": "timesformer",
            "image_size": values["image_size"],
            "image_mean": [0.45, 0.45, 0.45],
            "image_std": [0.225, 0.225, 0.225],
        },
        "audio": {
            "queries": values["audio_queries"],
            "type": "whisper",
            "chunk_seconds": values["chunk_seconds"],
            "mel_bins": values["mel_bins"],
        },
    }


def _in_order(sides: Mapping[str, Any]) -> Described:
    return {side: sides[side] for side in SIDES if sides.get(side) is not None}


def inputs_of(side: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a side in a processor_config.json that decide how a recording is prepared."""
    return {name: value for name, value in side.items() if name not in ("queries", "type")}


def cut_settings(
    sides: Mapping[str, Mapping[str, Any]],
    window_seconds: float,
    frames_per_window: int,
    vocabulary: Iterable[tuple[str, int]],
) -> bytes:
    """Everything besides weights that decides the vector of a recording or a text, as JSON.

    Image mean and deviation appear as `pixels`, and the fields of all sides in one object, because indexes
    made by earlier versions are stamped with that.
    """
    settings: dict[str, Any] = {"window_seconds": window_seconds, "frames_per_window": frames_per_window}
    for side in sides.values():
        settings |= inputs_of(side)
    if "image_mean" in settings:
        settings["pixels"] = [settings.pop("image_mean"), settings.pop("image_std")]
    settings["vocabulary"] = sorted(vocabulary)
    return json.dumps(settings, sort_keys=True).encode()
