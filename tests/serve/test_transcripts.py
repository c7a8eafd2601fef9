"""A real server with --transcripts: what is said stands before the question of an OpenAI client."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile

from data_prep.world.voice import say
from mllm.answerer import Answerer
from mllm.records.answers import Generation
from mllm.records.openai_parts import media_url
from tests.bases import real_base

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    words = [say("train", word, "en-us", "calm", 0) for word in ("seven", "yes", "three")]
    path = tmp_path_factory.mktemp("spoken") / "wörter.wav"
    soundfile.write(path, np.concatenate([np.pad(word, (0, 4000)) for word in words]), 16_000)
    return path


@pytest.fixture(scope="module")
def listening(checkpoint, media) -> Iterator[openai.OpenAI]:
    """A client of a server that transcribes."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from serve.launcher import Server

    flags = ["--dtype", "float32", "--served-model-name", "nano"]
    with Server(
        checkpoint, port=0, transcripts=real_base("whisper-base"), flags=flags, fast_start=True
    ) as server:
        yield openai.OpenAI(base_url=server.api, api_key="none", max_retries=0, timeout=300)


def ask(client: openai.OpenAI, *parts: dict[str, Any]) -> Any:
    content = [*parts, {"type": "text", "text": "Which word is said?"}]
    messages: Any = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="nano", messages=messages, max_tokens=8, temperature=0.0)


def test_a_client_gets_what_an_answerer_with_transcripts_gets(listening, checkpoint, media, spoken) -> None:
    local = Answerer.from_pretrained(
        checkpoint, generation=Generation(max_tokens=8), transcripts=real_base("whisper-base")
    )
    question = [
        {
            "role": "user",
            "content": [
                {"type": "audio", "audio": str(spoken)},
                {"type": "text", "text": "Which word is said?"},
            ],
        }
    ]
    data = base64.b64encode(spoken.read_bytes()).decode()
    url = {"type": "audio_url", "audio_url": {"url": media_url(str(spoken), "audio")}}
    for part in (url, {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}):
        reply = ask(listening, part)
        details = reply.usage.prompt_tokens_details.model_dump()
        assert details["transcript_tokens"] > 0
        assert reply.choices[0].message.content == local.answer([question])[0]
        assert reply.usage.prompt_tokens == len(local._prompt(question).encoded.input_ids)
    for kind, name in (("audio", "low.wav"), ("video", "blue_silent.mp4")):
        silent = {"type": f"{kind}_url", f"{kind}_url": {"url": media_url(media / name, kind)}}
        assert ask(listening, silent).usage.prompt_tokens_details.transcript_tokens == 0
    with pytest.raises(openai.BadRequestError, match="cannot use audio"):
        ask(listening, {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AAAA"}})
