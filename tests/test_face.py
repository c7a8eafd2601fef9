"""`import mllm`: everything a Python user needs, and nothing loaded before it is used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mllm


@pytest.mark.parametrize("name", mllm.__all__)
def test_every_name_of_the_face_is_there(name):
    assert getattr(mllm, name) is not None
    assert name in dir(mllm)


def test_the_type_checker_sees_the_names_that_the_face_gives():
    tree = ast.parse(Path(mllm.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    typed = {alias.name: node.module for node in imports for alias in node.names if node.col_offset}
    assert typed == mllm._HOME_OF
    assert {*mllm.__all__} == {*typed, "__version__"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'mllm' has no attribute 'Anwerer'"):
        mllm.Anwerer  # noqa: B018


def test_import_loads_nothing_heavy():
    heavy = ["numpy", "torch", "transformers", "av", "PIL", "openai", "pydantic", "typer", "yaml"]
    code = f"import sys, mllm; dir(mllm); print([name for name in {heavy} if name in sys.modules])"
    words = [sys.executable, "-c", code]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_import_is_quick():
    """At most 0.1 s of processor time, which unlike the clock does not count what else the machine does."""
    code = "import time; began = time.process_time(); import mllm; print(time.process_time() - began)"
    words = [sys.executable, "-c", code]
    times = [subprocess.run(words, capture_output=True, text=True, check=True).stdout for _ in range(3)]
    assert min(map(float, times)) <= 0.1
