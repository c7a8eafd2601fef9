"""`make demo`: serves a model with vLLM, asks it about newly generated clips, and counts the right answers.

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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mllm.answerer_remote import RemoteAnswerer
from mllm.command.cli import COMMAND
from mllm.errors import MllmError
from mllm.files import open_ordinary
from mllm.records.answers import Generation
from mllm.records.chat import Message
from mllm.records.record import Record, read_records
from mllm.scores import exact_match
from serve.launcher import Server
from serve.supervise import stop_signals

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Conversation = tuple[str, list[Message], str | None]  # clip, messages without the answer, truth

SCENES = 12  # generated, so that enough of them have both picture and sound
CLIPS = 3  # asked about
QUESTIONS_PER_CLIP = 5
PASS = 2 / 3  # share of right answers below which the demo fails; guessing reaches a quarter
OUT = Path("runs/demo")


@dataclass
class Answered:
    """A question with its answer; latencies in seconds."""

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
    """Runs the demo; the exit status is 0 if at least two thirds of the answers are right."""
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
        except MllmError as error:
            print("error:", error, file=sys.stderr)
            return error.exit_status


def run(checkpoint: str | None, media: str | None, question: str | None, out: Path) -> int:
    """Starts the server, asks and prints. Returns the exit status."""
    from rich.console import Console

    console = Console(highlight=False)
    if checkpoint is None:
        from mllm.models.checkpoint import find_shipped

        checkpoint = str(find_shipped())
    if media is not None:
        if not Path(media).exists():
            raise MllmError(f"no such file: {media}")
        open_ordinary(media).close()
    maker = None if media else make_clips(out)
    server = Server(checkpoint, port=0, fast_start=True)
    try:
        with console.status("starting vLLM …") as status:
            server.start(lambda seconds, line: status.update(f"starting vLLM, {seconds:.0f} s"))
        console.print(
            f"vLLM serves [bold]{server.model}[/] at {server.api}, ready in {server.seconds_to_start:.0f} s"
        )
        conversations: Iterable[Conversation] = []
        if media:
            conversations = [own_question(media, question)]
        else:
            conversations = questions(finish(maker, out))
            console.print(f"{CLIPS} clips that the model has never seen: {out}")
        answers = ask_all(server, conversations, console)
    finally:
        server.stop()
        if maker is not None and maker.poll() is None:
            maker.kill()
            maker.wait()
    return conclude(answers, console, server, out)


def make_clips(out: Path) -> subprocess.Popen:
    """Starts to generate clips with a random seed, while vLLM starts."""
    shutil.rmtree(out, ignore_errors=True)
    seed = random.SystemRandom().randrange(10**6, 10**9)
    words = ["data", "world", "--split", "val", "--clips", str(SCENES), "--questions", "6"]
    words += ["--seed", str(seed), "--workers", "1", "--out", str(out)]
    return subprocess.Popen(
        [*COMMAND, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(maker: subprocess.Popen | None, out: Path) -> list[Record]:
    """Waits for the clips and reads their records.

    Raises:
        MllmError: if they could not be generated.
    """
    assert maker is not None
    _, errors = maker.communicate()
    if maker.returncode:
        raise MllmError(f"cannot make clips: {(errors or 'no reason given').strip().splitlines()[-1]}")
    return list(read_records(out / "records.jsonl"))


def questions(records: list[Record]) -> Iterator[Conversation]:
    """Yields (clip, messages without the answer, truth): several questions of different types per video."""
    videos: dict[str, dict[str, Record]] = {}
    random.shuffle(records)
    for record in records:
        media = [part for part in record["messages"][0]["content"] if part["type"] != "text"]
        if len(media) != 1 or media[0]["type"] != "video" or len(record["messages"]) != 2:
            continue
        # No captions: they can be right in other words.
        if record.get("answer") and not record["task"].startswith("caption"):
            videos.setdefault(str(media[0]["video"]), {}).setdefault(record["task"], record)
    for clip in sorted(videos, key=lambda clip: -len(videos[clip]))[:CLIPS]:
        for record in list(videos[clip].values())[:QUESTIONS_PER_CLIP]:
            yield clip, record["messages"][:1], record["answer"]


def own_question(media: str, question: str | None) -> Conversation:
    """A question about the user's recording, which is sent as the modality it has."""
    from mllm.media.recording import probe

    info = probe(media)
    modality = "image" if info.is_image else "video" if info.has_video else "audio"
    question = question or ("What is heard?" if modality == "audio" else "What is seen?")
    content = [{"type": modality, modality: media}, {"type": "text", "text": question}]
    return media, [{"role": "user", "content": content}], None


def ask_all(server: Server, conversations: Iterable[Conversation], console: Console) -> list[Answered]:
    """Asks one question after another, adding each answer to the table."""
    from rich.live import Live

    answerer = RemoteAnswerer(server.api, server.model, Generation(max_tokens=64))
    answers: list[Answered] = []
    with Live(table_of(answers), console=console, refresh_per_second=8) as live:
        for clip, messages, truth in conversations:
            answers.append(ask(answerer, clip, messages, truth))
            live.update(table_of(answers))
    return answers


def ask(answerer: RemoteAnswerer, clip: str, messages: list[Message], truth: str | None) -> Answered:
    """Sends one streamed request.

    Raises:
        MllmError: if the server refuses it.
    """
    began = time.perf_counter()
    pieces: list[str] = []
    first = 0.0
    for piece in answerer.stream(messages):
        first = first or time.perf_counter() - began
        pieces.append(piece)
    whole = time.perf_counter() - began
    question = " ".join(part["text"] for part in messages[-1]["content"] if part["type"] == "text").strip()
    return Answered(Path(clip).name, question, "".join(pieces).strip(), truth, first or whole, whole)


def table_of(answers: list[Answered]) -> Table:
    """The answers so far, grouped by clip."""
    from rich.table import Table
    from rich.text import Text

    table = Table("question", "answer", "truth", "", "first token", "whole", box=None, pad_edge=False)
    clip = None
    for one in answers:
        if one.clip != clip:
            table.add_row(Text(one.clip, style="dim"))
            clip = one.clip
        mark = "" if one.truth is None else "[green]✓[/]" if one.right else "[red]✗[/]"
        table.add_row(
            Text(one.question),
            Text(one.answer[:60], style="bold"),
            Text(one.truth or ""),
            mark,
            f"{one.first_token * 1000:.0f} ms",
            f"{one.whole * 1000:.0f} ms",
        )
    return table


def conclude(answers: list[Answered], console: Console, server: Server, out: Path) -> int:
    """Counts the right answers and suggests what to try next. Returns the exit status."""
    judged = [one for one in answers if one.truth is not None]
    right = sum(one.right for one in judged)
    if judged:
        share = right / len(judged)
        console.print(f"\n[bold]{right} of {len(judged)}[/] answers are right.")
    elif not answers:
        console.print("no questions were asked: the clips have no records", style="red")
        share = 0.0
    else:
        share = 1.0
    clip: str | Path = answers[0].clip if answers else "clip.mp4"
    if judged:
        clip = min(out.rglob("*.mp4"), default="clip.mp4")
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
