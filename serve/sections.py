"""The section of an experiment that belongs to serving."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mllm.experiment import Positive, Rate, Section


class Serve(Section):
    """Defaults of `mllm serve`."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, lt=65536)
    max_model_len: Positive | None = None  # null: the maximum of the decoder
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_bytes: Positive = 200_000_000  # of one recording
    max_seconds: Rate | None = 3600.0
