"""The section of an experiment that belongs to evaluation."""

from __future__ import annotations

from mllm.experiment import Positive, Section


class Eval(Section):
    """Defaults of `mllm eval`."""

    splits: list[str] = ["val", "comp"]
    clips: Positive = 500  # per split
    questions_per_clip: Positive = 4
    retrieval_clips: Positive = 256
    batch: Positive = 32
    max_new_tokens: Positive = 48
