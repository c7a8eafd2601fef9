"""The model card of a checkpoint folder: what it is, how it was trained, what it scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mllm.files import write_atomically
from mllm.models.bases import BASES
from mllm.models.deltas import is_delta
from mllm.models.sides import sides_of_config


def card_info(folder: str | Path, scores: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `write_model_card` takes, gathered from the folder's own files and from scores.

    Args:
        folder: a checkpoint folder; its experiment.yaml and metrics.json are used if present.
        scores: what `mllm eval world` or `mllm eval real` wrote as metrics.json.
    """
    folder = Path(folder)
    config = _read_json(folder / "config.json")
    experiment = _read_yaml(folder / "experiment.yaml")
    metrics = _read_json(folder / "metrics.json")
    facts = {"architecture": _architecture(folder, config)} if config else {}
    if "data" in experiment:
        facts["training data"] = f"`{experiment['data']['train']}`, seed {experiment['seed']}"
    for stage in [*metrics.get("earlier", []), metrics] if metrics else []:
        name = f"stage {stage['stage']}"
        facts[f"{name}, once more" if name in facts else name] = _stage(stage, experiment)
    machines = dict.fromkeys(s["machine"] for s in [*metrics.get("earlier", []), metrics] if s.get("machine"))
    if machines:
        facts["trained on"] = ", ".join(machines)
    info: dict[str, Any] = {
        "name": f"mllm {experiment.get('name', folder.name)}",
        "summary": "Answers questions about video and sound, and finds recordings by a description.",
        "facts": facts,
        "tables": {},
    }
    if bases := _read_json(folder / "bases.json"):
        info["tables"]["Bases"] = [_base(part, **base) for part, base in bases.items()]
    targets = [row for split in (scores or {}).get("splits", {}).values() for row in split.get("targets", [])]
    if targets:
        facts["scored with"] = "`mllm eval real`, in phrasings that were not trained"
        info["tables"]["Scores"] = [_target(row) for row in targets]
    elif scores:
        facts["scored with"] = (
            f"`mllm eval world`: {scores['clips']} clips a split as {scores['media']}, seed {scores['seed']}"
        )
        info["tables"] |= _tables(scores["splits"])
    return info


def write_model_card(folder: str | Path, info: Mapping[str, Any]) -> Path:
    """README.md of a checkpoint folder.

    Args:
        info: all optional: `name`, `summary` (a sentence), `facts` (label to text: data, steps, machine),
            `tables` (title to rows, each a mapping of column to cell), `notes` (Markdown for the end).
    """
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: mllm",
        "pipeline_tag: video-text-to-text",
        "---",
        "",
    ]
    lines += [f"# {info.get('name', Path(folder).name)}", ""]
    if info.get("summary"):
        lines += [info["summary"], ""]
    lines += [f"- **{label}**: {text}" for label, text in info.get("facts", {}).items()] + [""]
    for title, rows in info.get("tables", {}).items():
        columns = list(rows[0]) if rows else []
        lines += [f"## {title}", "", _line(columns), "|" + " --- |" * len(columns)]
        lines += [*(_line([row.get(column) for column in columns]) for row in rows), ""]
    for note in info.get("notes", []):
        lines += [note.strip(), ""]
    path = Path(folder) / "README.md"
    write_atomically(path, "\n".join(lines))
    return path


def _architecture(folder: Path, config: Mapping[str, Any]) -> str:
    sides = sides_of_config(config)
    parts = [f"{name} {side['tower']['model_type']}" for name, side in sides.items()]
    parts += [
        f"{name} {values['model_type']}"
        for name, key in {"decoder": "text", "captions": "space"}.items()
        if isinstance(values := config.get(f"{key}_config"), dict)
    ]
    from safetensors import safe_open

    count = 0
    own = " of its own" if is_delta(folder) else ""
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  no mapping
                size = 1
                for length in file.get_slice(name).get_shape():
                    size *= length
                count += size
    return (
        f"{', '.join(parts)}; {count / 1e6:.1f} million weights{own}; windows of "
        f"{config['window_seconds']:g} s: {config['frames_per_window']} frames, "
        + " and ".join(f"{side['queries']} {name} tokens" for name, side in sides.items())
    )


def _base(part: str, name: str, sha256: str, **_: str) -> dict[str, Any]:
    """A row of the pretrained models that a checkpoint of deltas belongs to."""
    known = BASES.get(name)
    what = f"{known.what} ({known.licence})" if known else ""
    return {"part": part, "base": name, "what": what, "sha256 of its weights": f"`{sha256}`"}


def _target(row: Mapping[str, Any]) -> dict[str, str]:
    """A row of what `mllm eval real` measures."""

    def number(name: str) -> str:
        return "" if row.get(name) is None else f"{row[name]:.3f}"

    between = f"{number('low')}–{number('high')}" if row.get("low") is not None else ""
    cells = {"task": row["title"], "score": number("score"), "95 %": between, "n": str(row["count"])}
    return cells | {name: number(name) for name in ("majority", "blind", "probe", "floor", "aim")}


def _stage(stage: Mapping[str, Any], experiment: Mapping[str, Any]) -> str:
    rows = stage["rows"] or [{}]
    batch = stage.get("batch") or experiment.get(stage["stage"], {}).get("batch", 0)
    text = f"{stage['steps']:,} steps of {batch} clips"
    seconds = rows[-1].get("seconds")
    if seconds:
        text += f", {seconds / 60:.0f} minutes"
    losses = {name: value for name, value in rows[-1].items() if name.endswith("loss")}
    return f"{text}; at the end " + ", ".join(f"{name} {value:.3f}" for name, value in losses.items())


def _tables(splits: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Answers by type, captions and retrieval; one column for each split."""
    first = next(iter(splits.values()))
    rows = [("all", "", [split["overall"] for split in splits.values()])]
    for level in ("groups", "types"):
        for name, values in first[level].items():
            of_splits = [split[level].get(name, {}) for split in splits.values()]
            rows.append((name, values.get("group", "group"), of_splits))
    answers = [
        {"type": name, "group": group}
        | {split: values.get("score") for split, values in zip(splits, of_splits, strict=True)}
        | {column: of_splits[0].get(column) for column in ("majority", "prior", "blind")}
        for name, group, of_splits in rows
    ]
    captions = [
        {"type": name}
        | {f"{split}, F1": values["captions"].get(name, {}).get("f1") for split, values in splits.items()}
        for name in first.get("captions", {})
    ]
    retrieval = [
        {"from → to": f"text → {kind}" if way == "text_to_media" else f"{kind} → text"}
        | {
            f"{split}, R@1": values["retrieval"].get(kind, {}).get(way, {}).get("R@1")
            for split, values in splits.items()
        }
        | {"clips": first["retrieval"][kind]["clips"]}
        for kind in first.get("retrieval", {})
        for way in ("text_to_media", "media_to_text")
    ]
    tables = {"Share of right answers": answers, "Captions": captions, "Retrieval": retrieval}
    return {title: table for title, table in tables.items() if table}


def _line(cells: list[Any]) -> str:
    texts = [
        "" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells
    ]
    return "| " + " | ".join(texts) + " |"


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _read_yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
