"""The contract of a benchmark, and the lookup of one by name.

A benchmark is a class that provides questions by split, a scorer for each, groups of question types for the
report, generation settings, pairs for retrieval, and prompts from YAML. It is registered in the entry point
group `mllm.benchmarks`. `mllm eval NAME` runs it; its constructor's parameters become options of that command
(docs/adding.md).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.question import Question
from eval.scorers import Answered, CaptionF1, Choice, ExactMatch, MomentIoU, Scorer, WordErrors
from mllm.errors import ConfigError, MllmError
from mllm.yaml_text import parse_yaml

if TYPE_CHECKING:
    from eval.sections import Eval
    from eval.targets import Target
    from mllm.answerer import Answerer
    from mllm.media.clip import Clip
    from mllm.media.windows import WindowSpec
    from mllm.records.answers import Backend, Generation
    from mllm.search.embedder import Embedder, Modality

BENCHMARKS = "mllm.benchmarks"  # entry point group
OTHER = "other"  # the group of types that are in no other group


@dataclass(frozen=True)
class Subject:
    """What a benchmark may know about the model under evaluation.

    Attributes:
        defaults: the section `eval` of its experiment.
        remote: whether a server answers; recordings must then be files.
        windows: how a model in this process splits recordings into windows; None if there is none.
    """

    defaults: Eval
    remote: bool = False
    windows: WindowSpec | None = None


@dataclass(frozen=True)
class Candidate:
    """A model under evaluation.

    Attributes:
        backend: answers the questions.
        weights: identifies the model: a digest of its weights, or the name of a served model.
        embedder: for retrieval, which is skipped if None.
        local: the model in this process; None if there is only a server.
    """

    backend: Backend
    weights: str
    embedder: Embedder | None = None
    local: Answerer | None = None


@dataclass(frozen=True)
class Retrieval:
    """Recordings and captions to retrieve from each other, in both directions.

    Attributes:
        modality: which side of the recordings is embedded: "video", "audio", "both" or "image".
        clips: paths or clips, as `Embedder.embed_clips` takes them.
        captions: one or several for each clip; each is a query.
        labels: one for each clip; equal labels count as a match. None: a clip matches its own captions only.
    """

    modality: Modality
    clips: Sequence[str | Clip]
    captions: Sequence[Sequence[str]]
    labels: Sequence[Hashable] | None = None


class Benchmark:
    """Questions and how their answers are scored. A subclass must define `name` and `questions`.

    Attributes:
        name: as in the entry point.
        splits: evaluated and scored separately.
        groups: group -> question types, in the order of the report; all other types form the group "other".
        prompts: templates by name, such as {"qa": "{question}\\nAnswer in a word."}; see `read_prompts`.
        generation: None decodes greedily, up to the length that the model's experiment allows.
    """

    name: str
    splits: Sequence[str] = ("test",)
    groups: Mapping[str, Sequence[str]] = {}
    prompts: Mapping[str, str] = {}
    generation: Generation | None = None

    @property
    def title(self) -> str:
        """The benchmark's name in metrics.json."""
        return self.name

    @property
    def folder(self) -> str:
        """Subfolder for its results in the model's folder, when it is run alone."""
        return self.name

    @property
    def settings(self) -> dict[str, Any]:
        """Further fields of metrics.json that describe the run."""
        return {}

    def prepare(self, subject: Subject) -> None:
        """Adapts the benchmark to the model; called once, before `questions`.

        Raises:
            ConfigError: if this model cannot be evaluated on it.
        """

    def questions(self, split: str) -> Iterable[Question]:
        """The questions of a split in evaluation order; those about the same recording are adjacent."""
        raise NotImplementedError

    def retrieval(self, split: str) -> Iterable[Retrieval]:
        """Retrieval sets of a split, if any; only called for a model with a shared embedding space."""
        return ()

    def targets(
        self, rows: Sequence[Answered], candidate: Candidate, generation: Generation
    ) -> Iterable[Target]:
        """Rows of a table of what must be reached, if there is one; may ask the model further questions."""
        return ()

    def prior(self, question: Question) -> str | None:
        """The most frequent training answer to this question text; None if these are unknown."""
        return None

    def scorer(self, question: Question) -> Scorer:
        """By default: moments by overlap, captions by token F1, transcripts by word errors, options by
        choice, others by exact match.
        """
        if question.spans and question.record.get("query"):
            return MomentIoU()
        if question.type == "transcript":
            return WordErrors()
        if question.type == "caption" or question.type.startswith("caption_"):
            return CaptionF1()
        return Choice() if question.options else ExactMatch()

    def group(self, question: Question) -> str:
        """The group of a question's type."""
        return next((name for name, types in self.groups.items() if question.type in types), OTHER)

    def fill(self, prompt: str, **fields: str) -> str:
        """Returns a prompt template with its fields filled in.

        Raises:
            ConfigError: if there is no such prompt, or a field is missing.
        """
        try:
            return re.sub(r"\{(\w+)\}", lambda field: fields[field[1]], self.prompts[prompt])
        except KeyError as error:
            raise ConfigError(f"{self.name}: its prompts lack {error}: add it to them") from None


def read_prompts(path: str | Path) -> dict[str, str]:
    """Reads prompts by name from a YAML file; given a module's `__file__` (esc.py), from esc.yaml beside it.

    Raises:
        ConfigError: if there is no such file, or it is not a mapping of names to texts.
    """
    path = Path(path).with_suffix(".yaml")
    if not path.is_file():
        raise ConfigError(f"{path} is not a file: write the prompts there, beside the benchmark")
    prompts = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ConfigError(f'{path}: prompts must be texts by name, such as `qa: "{{question}}"`')
    return prompts


def benchmark_names() -> list[str]:
    """Names of all installed benchmarks, sorted."""
    return sorted({entry.name for entry in entry_points(group=BENCHMARKS)})


def load_benchmark(name: str) -> type[Benchmark]:
    """Loads the class of a benchmark.

    Raises:
        MllmError: if there is no benchmark of that name, or it cannot be imported.
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
