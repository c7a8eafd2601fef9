"""vLLM answers token by token what Hugging Face generate answers, in float32, greedy.

The server prefills in steps of 64 tokens, so every longer prompt also tests chunked prefill.
"""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm.models.checkpoint import load
from mllm.records.openai_parts import media_url

pytestmark = pytest.mark.slow

TOKENS = 16  # of each answer; its end marker is held back in both engines


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def part(modality: str, name: str, how: str = "data") -> dict[str, Any]:
    """A recording of the media folder; `how` it travels: data, file, http or input (input_audio)."""
    return {"type": modality, modality: name, "how": how}


def said(words: str) -> dict[str, Any]:
    return {"role": "assistant", "content": words}


SEEN = text("What is seen and heard?")
REQUESTS: dict[str, list[dict[str, Any]]] = {
    "text": [user(text("Which colour has the circle?"))],
    "text, two turns": [user(text("Say yes.")), said("Yes."), user(text("And now no."))],
    "text after a system message": [{"role": "system", "content": "Be brief."}, user(text("Hello"))],
    "typed special tokens": [user(text("<|video|> <|assistant|>Sure<|end|><|<|end|>"))],
    "two texts in a row": [user(text("What is "), text("seen?"))],
    "text, not English": [user(text("Welche Farbe? 何色ですか ♥"))],
    "video and sound": [user(part("video", "red_low.mp4"), SEEN)],
    "the same picture, another sound": [user(part("video", "red_high.mp4"), SEEN)],
    "silent video": [user(part("video", "blue_silent.mp4"), SEEN)],
    "video, file": [user(part("video", "red_low.mp4", "file"), text("Which colour?"))],
    "video, http": [user(part("video", "blue_silent.mp4", "http"), text("Which colour?"))],
    "sound ends before the picture": [user(part("video", "long.mp4"), SEEN)],
    "a tenth of a second": [user(part("video", "short.mp4"), SEEN)],
    "audio": [user(part("audio", "low.wav"), text("What is heard?"))],
    "audio, other sound": [user(part("audio", "high.flac"), text("What is heard?"))],
    "input_audio": [user(part("audio", "low.wav", "input"), text("How many beeps?"))],
    "audio, file": [user(part("audio", "beeps.m4a", "file"), text("How many beeps?"))],
    "audio, http": [user(part("audio", "high.flac", "http"), text("How many beeps?"))],
    "the sound of a video alone": [user(part("audio", "red_high.mp4"), text("What is heard?"))],
    "image": [user(part("image", "red.png"), text("Which colour?"))],
    "image, jpeg over http": [user(part("image", "blue.jpg", "http"), text("Which colour?"))],
    "question before the recording": [user(text("Which colour is this?"), part("image", "red.png"))],
    "two videos": [
        user(part("video", "red_low.mp4"), part("video", "blue_silent.mp4"), text("Are they equal?"))
    ],
    "the same image twice": [user(part("image", "red.png"), text("and"), part("image", "red.png"), SEEN)],
    "one of each": [
        user(part("video", "red_low.mp4"), part("audio", "high.flac"), part("image", "blue.jpg"), SEEN)
    ],
    "six recordings": [
        user(
            *(part("video", name) for name in ("red_low.mp4", "blue_silent.mp4", "short.mp4")),
            part("image", "red.png"),
            part("audio", "low.wav"),
            part("audio", "high.flac"),
            SEEN,
        )
    ],
    "two turns about one video": [
        user(part("video", "red_low.mp4"), SEEN),
        said("A star."),
        user(text("And heard?")),
    ],
    "a recording in each turn": [
        user(part("video", "red_low.mp4"), SEEN),
        said("A star."),
        user(part("audio", "high.flac"), text("And this?")),
    ],
}


def for_transformers(messages: list[dict[str, Any]], media: Path) -> list[dict[str, Any]]:
    def translate(piece: dict[str, Any]) -> dict[str, Any]:
        kind = piece["type"]
        return piece if kind == "text" else {"type": kind, kind: media / piece[kind]}

    return [
        message | {"content": [translate(piece) for piece in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


def for_openai(messages: list[dict[str, Any]], media: Path, web: str) -> list[dict[str, Any]]:
    def translate(piece: dict[str, Any]) -> dict[str, Any]:
        kind = piece["type"]
        if kind == "text":
            return piece
        path = media / piece[kind]
        if piece["how"] == "input":
            data = base64.b64encode(path.read_bytes()).decode()
            return {"type": "input_audio", "input_audio": {"data": data, "format": path.suffix[1:]}}
        url = {
            "data": lambda: media_url(path, kind),
            "file": lambda: f"file://{path}",
            "http": lambda: f"{web}/{path.name}",
        }[piece["how"]]()
        return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}

    return [
        message | {"content": [translate(piece) for piece in message["content"]]}
        if isinstance(message["content"], list)
        else message
        for message in messages
    ]


def generate(model, processor, messages) -> tuple[list[int], list[int]]:
    """(prompt ids, new ids)"""
    batch = processor.batch([messages])
    with torch.inference_mode():
        ids = model.generate(**batch, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)[
            0
        ].tolist()
    length = batch["input_ids"].shape[1]
    return ids[:length], ids[length:]


def complete(client, messages, model: str = "nano") -> tuple[list[int], list[int]]:
    """(prompt ids, new ids)"""
    reply = client.chat.completions.create(
        model=model,
        messages=messages,
        max_tokens=TOKENS,
        extra_body={"return_token_ids": True, "min_tokens": TOKENS},
    )
    return reply.prompt_token_ids, reply.choices[0].token_ids


@pytest.fixture(scope="module")
def expected(reference, media) -> dict[str, tuple[list[int], list[int]]]:
    """What Hugging Face answers to every request."""
    return {
        name: generate(*reference, for_transformers(messages, media)) for name, messages in REQUESTS.items()
    }


@pytest.mark.parametrize("name", REQUESTS)
def test_token_by_token(name, expected, client, media, web):
    prompt, answer = complete(client, for_openai(REQUESTS[name], media, web))
    assert prompt == expected[name][0]
    assert answer == expected[name][1]


def test_answers_depend_on_what_is_heard_and_seen(expected):
    def answer(name):
        return expected[name][1]

    assert answer("video and sound") != answer("the same picture, another sound")
    assert answer("audio") != answer("audio, other sound")
    assert answer("image") != answer("image, jpeg over http")


def test_sixteen_at_once(expected, client, media, web):
    requests = {name: for_openai(messages, media, web) for name, messages in REQUESTS.items()}
    with ThreadPoolExecutor(16) as pool:
        answers = dict(
            zip(requests, pool.map(lambda sent: complete(client, sent)[1], requests.values()), strict=True)
        )
    assert {name: answers[name] == expected[name][1] for name in answers} == dict.fromkeys(REQUESTS, True)


def test_streaming_gives_the_same_text(client, reference, expected, media, web):
    decoded = {
        name: reference[1].tokenizer.decode(ids, skip_special_tokens=True)
        for name, (_, ids) in expected.items()
    }
    # Random weights also say bytes that are no text.
    name = max(decoded, key=lambda name: sum(letter.isalpha() for letter in decoded[name]))
    sent = for_openai(REQUESTS[name], media, web)
    with client.chat.completions.create(
        model="nano", messages=sent, max_tokens=TOKENS, extra_body={"min_tokens": TOKENS}, stream=True
    ) as chunks:
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert len(pieces) > 1  # not one for each token: what nobody has read yet, vLLM joins
    assert "".join(pieces) == decoded[name]


def test_adapter_by_name_equals_peft_and_merged(checkpoint, adapter, client, expected, media, web):
    from peft import PeftModel

    model, processor = load(checkpoint)
    tuned = PeftModel.from_pretrained(model, adapter).eval()
    names = ["text", "video and sound", "audio, file", "six recordings"]
    from_peft = {
        name: generate(tuned, processor, for_transformers(REQUESTS[name], media))[1] for name in names
    }
    merged = tuned.merge_and_unload()
    for name in names:
        served = complete(client, for_openai(REQUESTS[name], media, web), model="tuned")[1]
        assert served == from_peft[name]
        assert served == generate(merged, processor, for_transformers(REQUESTS[name], media))[1]
    assert any(from_peft[name] != expected[name][1] for name in names)
