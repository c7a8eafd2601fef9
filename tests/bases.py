"""The real bases for tests, fetched once into the user's own cache by the product's code."""

from __future__ import annotations

import pytest

from mllm.errors import MllmError
from mllm.models.bases import base_folder


def real_base(name: str) -> str:
    """The folder of a base; skips the test where it cannot be had, such as offline."""
    try:
        return base_folder(name)
    except MllmError as error:
        pytest.skip(str(error))
