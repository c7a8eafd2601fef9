"""One experiment is one YAML file: model, data, the three stages, evaluation, serving.

    experiment = load_experiment("configs/nano.yaml", ["instruct.lr=1e-3", "instruct.lora=null"])

`model` and `data`, which several wings read, are defined here; every other section belongs to the package
that reads it and is found through the entry-point group `mllm.sections` (name -> a subclass of `Section`).

Every key has a default that suits the nano size, trained from nothing on the generated world. An unknown key
is an error that names the nearest known one. Overrides are `a.b=value`, the value read as YAML.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    create_model,
    model_validator,
)

from mllm.errors import ConfigError
from mllm.files import in_the_way
from mllm.yaml_text import parse_yaml, read_yaml

SECTIONS = "mllm.sections"  # entry point group
ORDER = (
    "text",
    "contrastive",
    "instruct",
    "eval",
    "serve",
)  # in the YAML; others follow by name


def _has_type(part: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(part, dict) and not isinstance(part.get("type"), str):
        raise ValueError(
            "needs 'type', a transformers model type such as llama; or write a hub id or a folder"
        )
    return part


def _has_type_or_base(part: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(part, dict) and sum(isinstance(part.get(key), str) for key in ("from", "type")) != 1:
        raise ValueError(
            "needs 'type', a transformers model type such as whisper, or 'from', a hub id or a folder"
        )
    return part


Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
# A hub id, a folder, or a configuration: an object with "type" (a transformers model type) and its settings.
Part = Annotated[str | dict[str, Any], AfterValidator(_has_type)]
# Likewise, or an object with "from" (a hub id or a folder) and the settings in which the tower differs.
TowerPart = Annotated[str | dict[str, Any], AfterValidator(_has_type_or_base)]
TimeMarks = Literal["clock", "seconds"]  # the text before a window's tokens: "[00:04]" or "4s"
NANO_DECODER = {
    "type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 384,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
NANO_VIDEO = {
    "type": "timesformer",  # its num_frames is frames_per_window
    "image_size": 64,
    "patch_size": 16,
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 384,
}
NANO_AUDIO = {
    "type": "whisper",
    "d_model": 96,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 384,
    "num_mel_bins": 80,
    "max_source_positions": 100,  # 2 s
}
NANO_TEXT = {
    "type": "bert",
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 384,
}


class Section(BaseModel):
    """A part of an experiment that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class QFormer(Section):
    """Size of both Q-Formers."""

    width: Positive = 96
    layers: Positive = 1
    heads: Positive = 4


class Model(Section):
    """Architecture. `decoder`, `video`, `audio` and `text` are each a hub id, a folder or a configuration.

    Without `video` or `audio` the model does not see or hear.
    """

    decoder: Part = Field(default=NANO_DECODER)
    tokenizer_vocab: Positive = (
        600  # size of the tokenizer that is trained for a decoder given as configuration
    )
    video: TowerPart | None = Field(default=NANO_VIDEO)
    audio: TowerPart | None = Field(default=NANO_AUDIO)
    text: TowerPart | None = Field(
        default=NANO_TEXT
    )  # text tower of the shared space; null: a model without search
    video_queries: Positive = 6
    audio_queries: Positive = 6
    qformer: QFormer = QFormer()
    window_seconds: Rate = 2.0
    frames_per_window: Positive = 4
    max_windows: Positive = 16
    time_marks: TimeMarks = "clock"
    embedding_dim: Positive = 256


class Shards(Section):
    """How `mllm data build` stores recordings."""

    frames: Literal["jpeg", "uint8"] = "jpeg"
    quality: Annotated[int, Field(ge=1, le=100)] = 90  # of JPEG
    size: Positive = 256  # recordings in a shard


class Cache(Section):
    """Where features of frozen towers are kept."""

    folder: str = ".mllm/features"
    max_gb: Rate = 20.0


Share = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Decibels = Annotated[float, Field(ge=-30, le=100, allow_inf_nan=False)]


class Augment(Section):
    """Other views of recordings in training; 0 or null leaves one out. See train/augment.py."""

    noise_snr: Decibels | None = None  # white noise from this signal-to-noise ratio to 20 dB less of it
    pitch: float = Field(default=0.0, ge=0, le=12, allow_inf_nan=False)  # semitones up or down, at most
    speed: float = Field(default=0.0, ge=0, le=0.5, allow_inf_nan=False)  # faster or slower by it, at most
    time_mask: Share = 0.0  # of the sound that falls silent, at most
    frequency_mask: Share = 0.0  # of the spectrum that is taken out, at most
    crop: Share = 0.0  # of a picture's sides that is cut off, at most
    jitter: Share = 0.0  # of brightness, contrast and saturation, at most
    flip: bool = False  # left and right exchanged, where no text knows them
    temporal_crop: Share = 0.0  # of a recording that is cut off, at most, where no text tells a time
    frame_dropout: Share = 0.0  # of frames that repeat the one before
    word_dropout: Share = 0.0  # of a caption's words, for the shared space alone
    paraphrase: bool = False  # instructions in another phrasing of mllm/templates.yaml every time
    frame_permutation: bool = (
        False  # stage 1: each video with its frames shuffled, as one that no caption tells
    )


class Data(Section):
    """Names for `records.open_source`: `world:train`, a JSONL file, a folder of `mllm data build`."""

    train: str = "world:train"
    val: str = "world:val"
    questions_per_clip: Positive = 4
    workers: int = Field(default=0, ge=0)  # processes that prepare batches; 0: the training process itself
    shards: Shards = Shards()
    augment: Augment | None = None
    cache: Cache | None = None  # null: frozen towers run at every step

    @model_validator(mode="after")
    def _views_are_new_every_time(self) -> Data:
        changed = self.augment.model_dump(exclude_defaults=True).keys() if self.augment else set()
        if self.cache and changed - {"paraphrase", "word_dropout"}:
            raise ValueError(
                "augment makes new recordings at every step, so no feature is found again: drop one"
            )
        return self


S = TypeVar("S", bound=Section)


class Experiment(Section):
    """A whole experiment, with every default filled in.

    An instance is of the subclass that `experiment_type` makes, with a field for each installed section.
    """

    name: str = Field(default="nano", pattern=r"^[A-Za-z0-9._-]+$")
    seed: int = Field(default=0, ge=0)
    output: str = "runs"  # run folders are <output>/<name>/<stage>
    start: str | None = None  # a checkpoint to begin from in place of `model`; "nano": one that ships
    model: Model = Model()
    data: Data = Data()

    def section(self, kind: type[S]) -> S:
        """The section of this type: `experiment.section(Instruct).lr`.

        Raises:
            ConfigError: if no installed section is of this type.
        """
        for name in type(self).model_fields:
            if type(value := getattr(self, name)) is kind:
                return value
        raise ConfigError(
            f"no section of an experiment is {kind.__module__}.{kind.__name__}: install the package that "
            f"declares it as an entry point of {SECTIONS} (`make setup` for mllm's own)"
        )

    def dump_yaml(self) -> str:
        """The resolved experiment as YAML; `load_experiment` reads it back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


@cache
def experiment_type() -> type[Experiment]:
    """`Experiment` with the installed sections as fields, each optional in the YAML.

    Raises:
        ConfigError: if a section cannot be imported, is not a `Section`, or has a name that is taken.
    """
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=SECTIONS):
        if entry.name in Experiment.model_fields or found.get(entry.name, entry).value != entry.value:
            raise ConfigError(
                f"{_owner(entry)} has a section {entry.name!r} for experiments, a name that is taken: "
                "rename it there, or uninstall one of the two"
            )
        found[entry.name] = entry
    fields: dict[str, Any] = {}
    for name in sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)):
        kind = _load_section(found[name])
        fields[name] = (kind, Field(default_factory=kind))
    return create_model("Experiment", __base__=Experiment, __module__=__name__, **fields)


def _load_section(entry: EntryPoint) -> type[Section]:
    try:
        kind = entry.load()
    except Exception as error:
        remedy = in_the_way(entry.module) or "mend or uninstall it"
        raise ConfigError(
            f"the section {entry.name!r} of experiments cannot be imported from {_owner(entry)}: "
            f"{type(error).__name__}: {error}: {remedy}"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Section)):
        raise ConfigError(
            f"the section {entry.name!r} of {_owner(entry)} is {entry.value}, which is not a subclass of "
            "mllm.experiment.Section: make it one"
        )
    return kind


def _owner(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "another package"


def load_experiment(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Experiment:
    """Reads an experiment and applies overrides such as `instruct.lr=1e-3`, later ones winning.

    Args:
        path: a YAML file; None takes the defaults.

    Raises:
        ConfigError: one line with file, line, key and, for an unknown key, the nearest known one.
    """
    experiment = experiment_type()() if path is None else _read(Path(path))
    if not overrides:
        return experiment
    # Overrides change the resolved experiment, so that `model.video.hidden_size=64` keeps the other defaults.
    # They are validated together: one may be valid only with another.
    values = experiment.model_dump()
    places = {_override(values, override): f"override {override!r}" for override in overrides}
    return _validate(values, f"overrides {' '.join(overrides)!r}", places)


def _read(path: Path) -> Experiment:
    lines: dict[tuple, int] = {}
    values = read_yaml(path, lines)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: an experiment is `key: value` lines, not a {type(values).__name__}")

    return _validate(values, str(path), {keys: f"{path}:{line}" for keys, line in lines.items()})


def _override(values: dict[str, Any], override: str) -> tuple[str, ...]:
    """Changes a value, and returns the keys that lead to it."""
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"override {override!r} is not of the form a.b=value, such as instruct.lr=1e-3")
    value = parse_yaml(text, f"override {override!r}")
    section: Any = values
    for depth, name in enumerate(names[:-1]):
        inner = section.get(name)
        if inner is None and name in section:  # an optional section that is off, such as instruct.lora=null
            inner = section[name] = {}
        if not isinstance(inner, dict):
            problem = "has no keys of its own" if name in section else "is not known"
            known = "" if name in section else _nearest(name, list(section), names[:depth])
            raise ConfigError(f"override {override!r}: {'.'.join(names[: depth + 1])!r} {problem}{known}")
        section = inner
    section[names[-1]] = value
    return tuple(names)


def _validate(values: dict[str, Any], where: str, places: Mapping[tuple, str]) -> Experiment:
    """Builds an experiment from plain values; `places`, or else `where`, locate errors."""
    try:
        return experiment_type().model_validate(values)
    except ValidationError as error:
        problems = error.errors()
    keys, *others = dict.fromkeys(_keys(problem["loc"]) for problem in problems)
    problem = problems[0]
    place = next((places[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in places), where)
    name = ".".join(map(str, keys))
    more = f" (and {len(others)} more)" if others else ""
    if problem["type"] == "extra_forbidden":
        near = _nearest(str(keys[-1]), list(_section_at(keys[:-1]).model_fields), keys[:-1])
        raise ConfigError(f"{place}: unknown key {name!r}{near}{more}")
    reason = problem["msg"].removeprefix("Value error, ")
    given = "" if isinstance(problem["input"], dict) else f" is {problem['input']!r}"
    raise ConfigError(f"{place}: {name}{given}: {reason[:1].lower()}{reason[1:]}{more}")


def _keys(location: tuple) -> tuple:
    """Pydantic's location without the names of union branches, which are not keys."""
    return tuple(part for part in location if part != "str" and not str(part).startswith("dict["))


def _nearest(name: str, known: Sequence[str], above: Sequence[Any]) -> str:
    """`: did you mean 'a.b'?`, or the known keys; searches all sections if necessary."""
    prefix = "".join(f"{key}." for key in above)
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f": did you mean '{prefix}{near[0]}'?"
    elsewhere = {key.rpartition(".")[2]: key for key in _all_keys(experiment_type())}
    near = get_close_matches(name, elsewhere, n=1, cutoff=0.8)
    if near:
        return f": did you mean '{elsewhere[near[0]]}'?"
    return f": {prefix.rstrip('.') or 'an experiment'} knows {', '.join(known)}"


def _all_keys(section: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        inner = _section_of(field.annotation)
        if inner is not None:
            yield from _all_keys(inner, f"{prefix}{name}.")


def _section_at(keys: Sequence[Any]) -> type[Section]:
    section: type[Section] = experiment_type()
    for key in keys:
        inner = _section_of(section.model_fields[key].annotation)
        assert inner is not None
        section = inner
    return section


def _section_of(annotation: Any) -> type[Section] | None:
    """The Section in `Section` or `Section | None`."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None
