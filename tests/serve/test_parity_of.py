"""A checkpoint, its export, and vLLM with that answer 40 requests token by token alike, in float32, greedy.

For any checkpoint, by hand: MLLM_PARITY=small pytest tests/serve/test_parity_of.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mllm.command.export import export
from mllm.models.checkpoint import load
from tests.serve.test_parity import (
    REQUESTS,
    complete,
    for_openai,
    for_transformers,
    generate,
    part,
    said,
    text,
    user,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("MLLM_PARITY" not in os.environ, reason="MLLM_PARITY names no checkpoint"),
]

MORE = {
    "what is said": [user(part("audio", "low.wav"), text("What is said?"))],
    "which language": [user(part("audio", "beeps.m4a"), text("Which language is spoken?"))],
    "who speaks": [user(part("audio", "high.flac"), text("Is the speaker a child or an adult?"))],
    "how often": [user(part("audio", "beeps.m4a"), text("How often is there a beep?"))],
    "when": [user(part("video", "long.mp4"), text("When does the sound end?"))],
    "picture": [user(part("image", "blue.jpg"), text("Describe the picture."))],
    "silent": [user(part("video", "blue_silent.mp4"), text("What do you hear?"))],
    "plain": [user(text("What is the capital of France?"))],
    "list": [user(text("List the days of the week."))],
    "three turns": [
        user(part("video", "red_high.mp4"), text("What is seen?")),
        said("A square."),
        user(text("And what is heard?")),
        said("A tone."),
        user(text("Thank you. What is 2 + 2?")),
    ],
    "first chat, then a recording": [
        user(text("Hi, how are you?")),
        said("Fine, thank you."),
        user(part("audio", "low.wav"), text("Then listen: what is this?")),
    ],
    "two sounds": [user(part("audio", "low.wav"), part("audio", "high.flac"), text("Are they the same?"))],
}
ASKED = REQUESTS | MORE


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """The whole folder that vLLM serves, unrounded."""
    return export(os.environ["MLLM_PARITY"], tmp_path_factory.mktemp("parity") / "served", dtype="float32")


@pytest.fixture(scope="module")
def expected(media) -> dict[str, tuple[list[int], list[int]]]:
    """What the checkpoint itself answers, by Hugging Face generate."""
    reference = load(os.environ["MLLM_PARITY"])
    return {name: generate(*reference, for_transformers(asked, media)) for name, asked in ASKED.items()}


@pytest.fixture(scope="module")
def exported_reference(exported) -> tuple[Any, Any]:
    """The export as transformers runs it."""
    return load(exported)


@pytest.fixture(scope="module")
def exported_client(exported, media, tmp_path_factory) -> Iterator[Any]:
    """A client of vLLM with the export."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    import openai

    from serve.launcher import Server

    flags = ["--dtype", "float32", "--max-num-batched-tokens", "64", "--max-num-seqs", "8"]
    log = tmp_path_factory.mktemp("log") / "vllm.log"
    options: dict[str, Any] = {"allowed_media": [media], "allow_private_media": True, "log": log}
    with Server(exported, port=0, flags=[*flags, "--served-model-name", "exported"], **options) as running:
        yield openai.OpenAI(base_url=running.api, api_key="none", max_retries=0, timeout=300)


def test_there_are_forty_requests():
    assert len(ASKED) == 40


@pytest.mark.parametrize("name", ASKED)
def test_the_export_says_the_same(name, exported_reference, expected, media):
    assert generate(*exported_reference, for_transformers(ASKED[name], media)) == expected[name]


@pytest.mark.parametrize("name", ASKED)
def test_vllm_says_the_same(name, exported_client, expected, media, web):
    sent = for_openai(ASKED[name], media, web)
    assert complete(exported_client, sent, model="exported") == expected[name]
