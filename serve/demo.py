"""`make demo`: a real vLLM server, clips that nobody has seen, the official OpenAI client, the right answers.

python -m serve.demo                                       three new clips from the generated world
python -m serve.demo --media clip.mp4 --question "What is heard?"
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mllm.errors import MllmError
from mllm.scores import exact_match
from serve.chat import openai_messages
from serve.launcher import Server, ServerError, stop_signals

CLIPS = 3
QUESTIONS_PER_CLIP = 5
PASS = 0.8  # share of right answers below which the demo fails
OUT = Path("runs/demo")


@dataclass
class Asked:
    """One question and what became of it; latencies in seconds."""

    clip: str
    question: str
    answer: str
    truth: str | None
    first_token: float
    whole: float

    @property
    def right(self) -> bool:
        return self.truth is None or exact_match(self.answer, self.truth)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; the exit status is 0 if at least 80 % of the answers are right."""
    parser = argparse.ArgumentParser(prog="make demo", description="Ask a served model about recordings.")
    parser.add_argument("--media", help="your own recording instead of new clips")
    parser.add_argument("--question", help="what to ask about it")
    parser.add_argument("--model", help="checkpoint folder; by default the one that is shipped")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder for the clips (default {OUT})")
    options = parser.parse_args(arguments)
    if options.question and not options.media:
        parser.error("--question goes with --media (make demo MEDIA=path QUESTION=…)")
    with stop_signals():
        try:
            return run(options.model, options.media, options.question, options.out)
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            return 130
        except (MllmError, ServerError) as error:
            print("error:", error, file=sys.stderr)
            return 1


def run(checkpoint: str | None, media: str | None, question: str | None, out: Path) -> int:
    """Start the server, ask, print. Returns the exit status."""
    from rich.console import Console

    console = Console(highlight=False)
    if checkpoint is None:
        from mllm.checkpoint import find_default_checkpoint

        checkpoint = str(find_default_checkpoint())
    if media is not None and not Path(media).is_file():
        raise MllmError(f"no such file: {media}")
    maker = None if media else make_clips(out)
    server = Server(checkpoint, port=0)
    try:
        with console.status("starting vLLM …") as status:
            server.start(
                lambda seconds, line: status.update(f"starting vLLM, {seconds:.0f} s (less than a minute)")
            )
        console.print(
            f"vLLM serves [bold]{server.model}[/] at {server.api}, ready in {server.seconds_to_start:.0f} s"
        )
        if media:
            conversations = [own_question(media, question)]
        else:
            conversations = questions(finish(maker, out))
            console.print(f"{CLIPS} clips that the model has never seen: {out}")
        asked = ask_all(server, conversations, console)
    finally:
        server.stop()
        if maker is not None and maker.poll() is None:
            maker.kill()
            maker.wait()
    return conclude(asked, console, server, out)


def make_clips(out: Path) -> subprocess.Popen:
    """Begin to make clips with a seed of chance; vLLM starts meanwhile."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    seed = random.SystemRandom().randrange(10**6, 10**9)
    words = ["data", "world", "--clips", str(CLIPS), "--split", "val", "--seed", str(seed), "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "mllm.cli", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(maker: subprocess.Popen | None, out: Path) -> list[dict[str, Any]]:
    """Wait for the clips and read their records.

    Raises:
        MllmError: if they could not be made.
    """
    from mllm.records import read_records

    assert maker is not None
    _, errors = maker.communicate()
    files = sorted(out.rglob("*.jsonl"))
    if maker.returncode or not files:
        raise MllmError(
            f"cannot make clips: {(errors or 'no records were written').strip().splitlines()[-1]}"
        )
    return [record for file in files for record in read_records(file)]


def questions(records: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]], str]]:
    """(clip, messages without the answer, truth): several questions of each clip, of different kinds."""
    clips: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        sources = [part[part["type"]] for part in record["messages"][0]["content"] if part["type"] != "text"]
        if record.get("answer") and len(sources) == 1:
            clips.setdefault(str(sources[0]), []).append(record)
    # Clips with a picture and sound have the most questions; single images and the like the fewest.
    fullest = sorted(clips, key=lambda clip: -len(clips[clip]))[:CLIPS]
    for clip in fullest:
        mine = clips[clip]
        random.shuffle(mine)
        kinds: dict[str, dict[str, Any]] = {}
        for record in mine:
            kinds.setdefault(str(record.get("task")), record)
        chosen = [*kinds.values(), *(record for record in mine if record not in kinds.values())]
        for record in chosen[:QUESTIONS_PER_CLIP]:
            messages = record["messages"]
            if messages[-1]["role"] == "assistant":
                messages = messages[:-1]
            yield clip, messages, record["answer"]


def own_question(media: str, question: str | None) -> tuple[str, list[dict[str, Any]], None]:
    """The user's recording; what kind it is decides how it is sent."""
    from mllm.media import probe

    info = probe(media)
    modality = "image" if info.is_image else "video" if info.has_video else "audio"
    question = question or ("What is heard?" if modality == "audio" else "What is seen?")
    content = [{"type": modality, modality: media}, {"type": "text", "text": question}]
    return media, [{"role": "user", "content": content}], None


def ask_all(server: Server, conversations: Any, console: Any) -> list[Asked]:
    """Ask one after another, streaming; the table grows with the answers."""
    import openai
    from rich.live import Live

    client = openai.OpenAI(base_url=server.api, api_key="none", max_retries=0)
    asked: list[Asked] = []
    with Live(table_of(asked), console=console, refresh_per_second=8) as live:
        for clip, messages, truth in conversations:
            asked.append(ask(client, server.model, clip, messages, truth))
            live.update(table_of(asked))
    return asked


def ask(client: Any, model: str, clip: str, messages: list[dict[str, Any]], truth: str | None) -> Asked:
    """One streamed request."""
    import openai

    sent = openai_messages(messages)
    began = time.perf_counter()
    pieces: list[str] = []
    first = 0.0
    try:
        for chunk in client.chat.completions.create(model=model, messages=sent, max_tokens=64, stream=True):
            if chunk.choices and chunk.choices[0].delta.content:
                first = first or time.perf_counter() - began
                pieces.append(chunk.choices[0].delta.content)
    except openai.OpenAIError as error:
        raise MllmError(f"the server refused {Path(clip).name}: {error}") from None
    texts = [part["text"] for part in messages[-1]["content"] if part["type"] == "text"]
    whole = time.perf_counter() - began
    return Asked(
        Path(clip).name, " ".join(texts).strip(), "".join(pieces).strip(), truth, first or whole, whole
    )


def table_of(asked: list[Asked]) -> Any:
    """The answers so far."""
    from rich.table import Table
    from rich.text import Text

    table = Table("clip", "question", "answer", "truth", "", "first token", "whole", box=None, pad_edge=False)
    clip = None
    for one in asked:
        mark = "" if one.truth is None else "[green]✓[/]" if one.right else "[red]✗[/]"
        table.add_row(
            Text("" if one.clip == clip else one.clip, style="dim"),
            Text(one.question),
            Text(one.answer, style="bold"),
            Text(one.truth or ""),
            mark,
            f"{one.first_token * 1000:.0f} ms",
            f"{one.whole * 1000:.0f} ms",
        )
        clip = one.clip
    return table


def conclude(asked: list[Asked], console: Any, server: Server, out: Path) -> int:
    """Count what is right, say what to try next, return the exit status."""
    judged = [one for one in asked if one.truth is not None]
    right = sum(one.right for one in judged)
    if judged:
        share = right / len(judged)
        console.print(f"\n[bold]{right} of {len(judged)}[/] answers are right.")
    elif not asked:
        console.print("no questions were asked: the clips have no records", style="red")
        share = 0.0
    else:
        share = 1.0
    clip = (
        next(iter(sorted(out.rglob("*.mp4"))), "clip.mp4")
        if judged
        else asked[0].clip
        if asked
        else "clip.mp4"
    )
    console.print("\nTry next:", style="bold")
    for line in (
        'make demo MEDIA=path/to/clip.mp4 QUESTION="What is heard?"',
        f"mllm chat --video {clip}",
        "mllm serve        # then any OpenAI client",
        f'mllm index add {out} && mllm search "a red star"',
    ):
        console.print(f"  {line}", markup=False, soft_wrap=True)
    return 0 if share >= PASS else 1


if __name__ == "__main__":
    sys.exit(main())
