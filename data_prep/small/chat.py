"""Chat by self-distillation: the base's own answers, to prompts of ours and to some that it makes up.

Trained along with recordings, they keep the decoder what it was (Li and Hoiem, "Learning without Forgetting",
2016). Made in batches, each a file of its own below `chat/`, so that a call that was stopped goes on.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from mllm.files import write_atomically
from mllm.records.record import Record
from mllm.yaml_text import read_yaml

BATCH = 48  # conversations answered together
LONGEST = 160  # tokens of an answer; longer ones are left out, since they end in the middle
TEMPERATURE = 0.7
MADE_UP, IN_PATTERNS, SYSTEM, FOLLOWED = 0.3, 0.4, 0.15, 0.3  # shares of prompts
Turns = list[dict[str, str]]


def write_chat(
    out: Path, base: str, number: int, seed: int, progress: Callable[[Iterator], Iterable] = iter
) -> list[Record]:
    """At least `number` conversations without a recording, unless the base repeats itself all the time.

    Args:
        base: name or folder of the decoder.
    """
    rows: list[Record] = []
    speaker: Speaker | None = None
    seen: set[str] = set()
    for batch in progress(iter(range(4 * number // BATCH + 1))):
        path = out / "chat" / f"{seed}-{batch:04d}.json"
        if not path.exists():
            speaker = speaker or Speaker(base)
            write_atomically(path, json.dumps(_batch(speaker, f"{seed}-{batch}"), ensure_ascii=False))
        for turns in json.loads(path.read_text(encoding="utf-8")):
            if (told := " ".join(turn["content"] for turn in turns)) not in seen:
                seen.add(told)
                rows.append(_row(f"chat/{seed}-{len(rows)}", turns))
        if len(rows) >= number:
            break
    return rows[:number]


class Speaker:
    """The base, which answers conversations in its own chat form."""

    def __init__(self, base: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from mllm.models.bases import base_folder

        folder = base_folder(base)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def complete(self, prompts: list[str], tokens: int, temperature: float) -> list[str | None]:
        """What follows each prompt up to the end of the turn; None where that does not come in time."""
        import torch

        end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            ids = self.model.generate(
                **inputs,
                max_new_tokens=tokens,
                do_sample=True,
                temperature=temperature,
                top_k=40,
                eos_token_id=end,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        told = []
        for row in ids[:, inputs["input_ids"].shape[1] :].tolist():
            done = end in row
            told.append(self.tokenizer.decode(row[: row.index(end)]).strip() if done else None)
        return told

    def answer(self, conversations: list[Turns]) -> list[str | None]:
        """The next turn of each conversation; None where it gets too long or repeats itself."""
        prompts = [
            self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            for turns in conversations
        ]
        told = self.complete(prompts, LONGEST, TEMPERATURE)
        return [text if text and not repeats(text) else None for text in told]

    def made_up(self, number: int) -> list[str]:
        """Prompts that the base writes itself, in the turn of the user."""
        form = self.tokenizer.apply_chat_template([{"role": "user", "content": "\0"}], tokenize=False)
        prompts = self.complete([form[: form.index("\0")]] * number, 40, 1.0)
        return [text for text in prompts if text and _plain(text) and not repeats(text)]


def repeats(text: str) -> bool:
    """Whether a text goes round in circles: a line, or four words in a row, three times or more."""
    words = re.findall(r"\w+", text.lower())
    fours = [" ".join(words[i : i + 4]) for i in range(len(words) - 3)]
    lines = [line.strip() for line in text.splitlines() if len(line.strip()) > 3]
    return any(items.count(item) >= 3 for items in (fours, lines) for item in set(items))


def _plain(text: str) -> bool:
    """Whether a prompt is one paragraph of English that needs nothing but itself."""
    return (
        12 <= len(text) <= 240
        and text.isascii()
        and "\n" not in text
        and text[-1] in ".?!"
        and not re.search(
            r"https?:|\bimage\b|\bpicture\b|\bvideo\b|\baudio\b|\bfollowing\b|\babove\b|\[|<", text, re.I
        )
    )


def _batch(speaker: Speaker, key: str) -> list[Turns]:
    """Answered conversations of one batch, a function of its key and the base alone (on one machine)."""
    import torch

    rng = random.Random(key)
    torch.manual_seed(rng.getrandbits(31))
    asked = speaker.made_up(round(BATCH * MADE_UP))
    while len(asked) < BATCH:
        asked.append(_prompt(rng))
    conversations: list[Turns] = []
    for text in asked:
        system = [{"role": "system", "content": rng.choice(_texts()["systems"])}] * (rng.random() < SYSTEM)
        conversations.append([*system, {"role": "user", "content": text}])
    conversations = [turns for turns in _answered(speaker, conversations) if turns]
    for _ in range(2):
        followed = [i for i in range(len(conversations)) if rng.random() < FOLLOWED]
        asked_on: list[Turns] = [
            [*conversations[i], {"role": "user", "content": rng.choice(_texts()["follow_ups"])}]
            for i in followed
        ]
        for i, turns in zip(followed, _answered(speaker, asked_on) if asked_on else [], strict=True):
            conversations[i] = turns or conversations[i]
    return conversations


def _answered(speaker: Speaker, conversations: list[Turns]) -> list[Turns]:
    """Each conversation with its answer; empty where there is none to keep."""
    return [
        [*turns, {"role": "assistant", "content": text}] if text else []
        for turns, text in zip(conversations, speaker.answer(conversations), strict=True)
    ]


def _prompt(rng: random.Random) -> str:
    """A prompt of ours."""
    texts = _texts()
    if rng.random() < IN_PATTERNS:
        return rng.choice(texts["patterns"]).format(topic=rng.choice(texts["topics"]))
    return rng.choice(texts["plain"])


@cache
def _texts() -> dict[str, Any]:
    return read_yaml(Path(__file__).with_name("chat_prompts.yaml"))


def _row(id: str, turns: Turns) -> Record:
    return {"id": id, "messages": turns, "task": "chat", "source": "chat", "answer": turns[-1]["content"]}
