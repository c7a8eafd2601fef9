"""The contract of a benchmark, and how one is found by its name.

A benchmark is a class: its questions by split, how each is scored, groups of types for the report, how
answers are written, pairs for search, and prompts in YAML. The entry point group `mllm.benchmarks` names it;
`mllm eval NAME` runs it, and its constructor's parameters become options of that command (docs/adding.md).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.question import Question
from eval.scorers import CaptionF1, Choice, ExactMatch, MomentIoU, Scorer
from mllm.errors import ConfigError, MllmError
from mllm.yaml_text import parse_yaml

if TYPE_CHECKING:
    from eval.sections import Eval
    from mllm.media.clip import Clip
    from mllm.media.windows import WindowSpec
    from mllm.records.answers import Generation
    from mllm.search.embedder import Modality

BENCHMARKS = "mllm.benchmarks"  # entry point group
OTHER = "other"  # the group of types that no group names


@dataclass(frozen=True)
class Subject:
    """What a benchmark may know of the model that it is put to.

    Attributes:
        defaults: the section `eval` of its experiment.
        remote: a server answers, so recordings must be files.
        windows: how a model in this process cuts recordings; None if there is none.
    """

    defaults: Eval
    remote: bool = False
    windows: WindowSpec | None = None


@dataclass(frozen=True)
class Retrieval:
    """Recordings and captions that search has to bring together, in both directions.

    Attributes:
        modality: what of the recordings is searched: "video", "audio", "both" or "image".
        clips: paths or clips, as `Embedder.embed_clips` takes them.
        captions: of each clip, one or several; each is a query.
        labels: of each clip; those with equal labels are each other's hits. None: each clip only its own.
    """

    modality: Modality
    clips: Sequence[str | Clip]
    captions: Sequence[Sequence[str]]
    labels: Sequence[Hashable] | None = None


class Benchmark:
    """Questions and how their answers are scored. A subclass needs `name` and `questions`.

    Attributes:
        name: as in the entry point.
        splits: what it is evaluated on, each with scores of its own.
        groups: group -> types of questions, in the order of the report; other types are in "other".
        prompts: templates by name, such as {"qa": "{question}\\nAnswer in a word."}; see `read_prompts`.
        generation: how answers are written; None: greedily, as long as the model's experiment allows.
    """

    name: str
    splits: Sequence[str] = ("test",)
    groups: Mapping[str, Sequence[str]] = {}
    prompts: Mapping[str, str] = {}
    generation: Generation | None = None

    @property
    def title(self) -> str:
        """What metrics.json calls it."""
        return self.name

    @property
    def folder(self) -> str:
        """The folder of its results within those of the model, where it is run alone."""
        return self.name

    @property
    def settings(self) -> dict[str, Any]:
        """What else metrics.json says about a run."""
        return {}

    def prepare(self, subject: Subject) -> None:
        """Fits the benchmark to the model, once, before it is asked for questions.

        Raises:
            ConfigError: if it cannot be put to this model.
        """

    def questions(self, split: str) -> Iterable[Question]:
        """The questions of a split, in the order in which they are asked: all about a recording together."""
        raise NotImplementedError

    def retrieval(self, split: str) -> Iterable[Retrieval]:
        """What is searched, if anything is; only asked for where a model with a shared space can be."""
        return ()

    def prior(self, question: Question) -> str | None:
        """The most frequent training answer to this text; None if the benchmark knows no training answers."""
        return None

    def scorer(self, question: Question) -> Scorer:
        """Moments by overlap, captions by token F1, options by choice, all else by exact match."""
        if question.spans and question.record.get("query"):
            return MomentIoU()
        if question.type == "caption" or question.type.startswith("caption_"):
            return CaptionF1()
        return Choice() if question.options else ExactMatch()

    def group(self, question: Question) -> str:
        """The group of a question's type."""
        return next((name for name, types in self.groups.items() if question.type in types), OTHER)

    def fill(self, prompt: str, **fields: str) -> str:
        """A prompt with its fields filled in.

        Raises:
            ConfigError: if there is no such prompt, or a field is missing.
        """
        try:
            return re.sub(r"\{(\w+)\}", lambda field: fields[field[1]], self.prompts[prompt])
        except KeyError as error:
            raise ConfigError(f"{self.name}: its prompts lack {error}: add it to them") from None


def read_prompts(path: str | Path) -> dict[str, str]:
    """Prompts by name from a YAML file; for a module's `__file__`, the one beside it: esc.py and esc.yaml.

    Raises:
        ConfigError: if there is none, or it is no mapping of names to texts.
    """
    path = Path(path).with_suffix(".yaml")
    if not path.is_file():
        raise ConfigError(f"{path} is not a file: write the prompts there, beside the benchmark")
    prompts = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ConfigError(f'{path}: prompts must be texts by name, such as `qa: "{{question}}"`')
    return prompts


def benchmark_names() -> list[str]:
    """All installed benchmarks, sorted."""
    return sorted({entry.name for entry in entry_points(group=BENCHMARKS)})


def load_benchmark(name: str) -> type[Benchmark]:
    """The class of a benchmark.

    Raises:
        MllmError: if there is none of that name, or it cannot be imported.
    """
    found = {entry.name: entry for entry in entry_points(group=BENCHMARKS)}
    if name not in found:
        raise ConfigError(f"no benchmark '{name}': choose from {', '.join(sorted(found))}")
    try:
        kind = found[name].load()
    except Exception as error:
        raise MllmError(
            f"the benchmark '{name}' cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Benchmark)):
        raise ConfigError(f"the benchmark '{name}' is {kind!r}: name a class of eval.benchmark.Benchmark")
    return kind
