"""`mllm bench serve`: vLLM beside Hugging Face generate, on the same weights and machine, in one run.

Output tokens a second at 1 and at 16 requests at a time, and the time to the first token of a question about
a video: cold (never seen) and cached (asked again). What counts are the ratios; the times are this machine's.
"""

from __future__ import annotations

import io
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from serve.chat import LocalEngine

PROMPT = "Tell me all that you know about the red star, the blue circle and the bell that rings."
QUESTION = "What is seen and heard?"


def bench_serve(
    checkpoint: Annotated[Path | None, typer.Argument(help="Checkpoint; by default the shipped one.")] = None,
    url: Annotated[str | None, typer.Option(help="Measure this server instead of starting one.")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 128,
    concurrency: Annotated[list[int] | None, typer.Option(help="Requests at a time; repeatable.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each measurement; the median counts.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers here.")] = None,
) -> dict[str, Any]:
    """vLLM beside Hugging Face generate: tokens a second, time to the first token of a video question."""
    from rich.console import Console

    from mllm.checkpoint import find_default_checkpoint
    from serve.launcher import Server
    from serve.supervise import stop_signals

    console = Console(stderr=True, highlight=False)
    checkpoint = checkpoint or find_default_checkpoint()
    levels = concurrency or [1, 16]
    clips = [synthetic_clip(seed) for seed in range(repeats + 1)]
    server = None
    with stop_signals():
        try:
            if url is None:
                server = Server(checkpoint, port=0)
                with console.status("starting vLLM …"):
                    server.start()
                url = server.url
            with console.status("measuring vLLM …"):
                vllm = measure_vllm(url, levels, tokens, repeats, clips)
        finally:
            if server is not None:
                server.stop()  # so that Hugging Face has the machine to itself, as vLLM had
    with console.status("measuring Hugging Face generate …"):
        hugging_face = measure_hugging_face(checkpoint, levels, tokens, repeats, clips)
    ratios = {
        name: vllm[name] / hugging_face[name]
        if name.startswith("tokens")
        else hugging_face[name] / vllm[name]
        for name in vllm
    }
    numbers = {
        "checkpoint": checkpoint.name,
        "tokens": tokens,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "seconds_to_start": server.seconds_to_start if server else None,
        "vllm": vllm,
        "hugging_face": hugging_face,
        "times_better": ratios,
    }
    _report(numbers, json_file)
    return numbers


def measure_vllm(
    url: str, levels: Sequence[int], tokens: int, repeats: int, clips: Sequence[bytes]
) -> dict[str, float]:
    """Figures of a running server; `clips` holds one more than `repeats`, the first warms up."""
    import openai

    from mllm.openai_parts import media_url

    client = openai.OpenAI(base_url=f"{url.rstrip('/')}/v1", api_key="none", max_retries=0)
    model = next(iter(client.models.list())).id

    def answer(number: int) -> int:
        # A number in front: without it the prefix cache would spare the later requests their prefill.
        reply = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": f"{number} {PROMPT}"}],
            max_tokens=tokens,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        assert reply.usage is not None
        return reply.usage.completion_tokens

    def first_token(clip: bytes) -> float:
        began = time.perf_counter()
        parts = [
            {"type": "video_url", "video_url": {"url": media_url(clip, "video")}},
            {"type": "text", "text": QUESTION},
        ]
        messages: Any = [{"role": "user", "content": parts}]
        for _ in client.chat.completions.create(
            model=model, messages=messages, max_tokens=1, temperature=0, stream=True
        ):
            pass
        return time.perf_counter() - began

    figures = {}
    numbers = iter(range(10**6))
    for level in levels:
        with ThreadPoolExecutor(level) as pool:

            def together(pool=pool, level=level) -> int:
                return sum(pool.map(answer, [next(numbers) for _ in range(level)]))

            figures[f"tokens_per_second_at_{level}"] = _rate(together, repeats)
    first_token(clips[0])
    figures["first_token_cold"] = statistics.median([first_token(clip) for clip in clips[1:]])
    figures["first_token_cached"] = statistics.median([first_token(clip) for clip in clips[1:]])
    return figures


def measure_hugging_face(
    checkpoint: Path, levels: Sequence[int], tokens: int, repeats: int, clips: Sequence[bytes]
) -> dict[str, float]:
    """The same figures of `generate()` in this process, with the checkpoint's own dtype."""
    import torch

    from mllm.checkpoint import load
    from serve.chat import LocalEngine, user_message

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, processor = load(checkpoint, dtype=_dtype_of(checkpoint), device=device)
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    figures = {}
    for level in levels:
        conversations = [[user_message([], f"{number} {PROMPT}")] for number in range(level)]

        def together(conversations=conversations, level=level) -> int:
            batch = {name: tensor.to(device) for name, tensor in processor.batch(conversations).items()}
            with torch.inference_mode():
                model.generate(**batch, **length)
            return level * tokens

        figures[f"tokens_per_second_at_{level}"] = _rate(together, repeats)
    engine = LocalEngine(model, processor, max_tokens=1)
    figures["first_token_cold"] = statistics.median([_first_answer(engine, clip) for clip in clips][1:])
    # Asked again, each clip right after its first question: an engine keeps the last media.
    cached = []
    for clip in clips[1:]:
        _first_answer(engine, clip)
        cached.append(_first_answer(engine, clip))
    figures["first_token_cached"] = statistics.median(cached)
    return figures


def _first_answer(engine: LocalEngine, clip: bytes) -> float:
    began = time.perf_counter()
    parts = [{"type": "video", "video": clip}, {"type": "text", "text": QUESTION}]
    for _ in engine.stream([{"role": "user", "content": parts}]):
        pass
    return time.perf_counter() - began


def _rate(run: Callable[[], int], repeats: int) -> float:
    """Median tokens a second of `repeats` runs, after one that is not counted."""
    rates = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        count = run()
        rates.append(count / (time.perf_counter() - began))
    return statistics.median(rates[1:])


def _dtype_of(checkpoint: Path) -> str:
    from mllm.checkpoint import resolve
    from mllm.config import MllmConfig

    dtype = MllmConfig.from_pretrained(resolve(checkpoint)[0]).dtype
    return str(dtype or "float32").removeprefix("torch.")


def synthetic_clip(seed: int, seconds: float = 4.0, size: int = 128, rate: int = 12) -> bytes:
    """An mp4 (H.264 + AAC) of drifting colours and a tone; another seed is another recording."""
    import av
    import numpy as np

    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:size, 0:size]
    hue, drift = random.uniform(0, 6, 3), random.uniform(2, 6, 3)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        video.width = video.height = size
        video.pix_fmt = "yuv420p"
        audio = container.add_stream("aac", rate=16000)
        audio.layout = "mono"
        for index in range(int(seconds * rate)):
            waves = [np.sin(rows / 20 + columns / 30 + hue[c] + drift[c] * index / rate) for c in range(3)]
            pixels = ((np.stack(waves, -1) + 1) * 127).astype(np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(video.encode())
        tone = np.sin(2 * np.pi * random.uniform(200, 900) * np.arange(int(16000 * seconds)) / 16000) * 0.3
        for start in range(0, len(tone), 1024):
            frame = av.AudioFrame.from_ndarray(
                tone[None, start : start + 1024].astype(np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = 16000, start
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    return buffer.getvalue()


def _report(numbers: dict[str, Any], json_file: Path | None) -> None:
    from rich.table import Table

    from mllm.bench import report

    table = Table("", "vLLM", "Hugging Face", "vLLM is", box=None)
    for name, value in numbers["vllm"].items():
        other = numbers["hugging_face"][name]
        if name.startswith("tokens"):
            row = (f"{value:.0f} tokens/s", f"{other:.0f} tokens/s")
        else:
            row = (f"{value * 1000:.0f} ms", f"{other * 1000:.0f} ms")
        table.add_row(name.replace("_", " "), *row, f"{numbers['times_better'][name]:.2f}×")
    note = f"{numbers['checkpoint']}, answers of {numbers['tokens']} tokens, {numbers['cpus']} CPUs"
    report(table, numbers, json_file, note)
