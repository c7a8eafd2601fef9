"""Warms up a new server with a first question, which takes a tenth of a second longer than later ones.

Decoders, towers and kernels are loaded on first use; a small recording with picture and sound uses them all.
"""

from __future__ import annotations

import contextlib
import json
import os
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from mllm.records.openai_parts import media_url
from serve.engine_settings import value_of
from serve.mp4 import write_mp4

QUESTIONS = 2  # at once, since several workers decode
TIMEOUT = 120.0  # seconds


def warm_up(api: str, model: str, flags: Sequence[str] = ()) -> None:
    """Sends questions about small recordings; answers and refusals are ignored.

    Args:
        api: base URL of the API, with /v1.
        model: name of the served model.
        flags: the server's flags, which may contain an API key.
    """
    headers = {"Content-Type": "application/json"}
    if key := value_of("--api-key", flags) or os.environ.get("VLLM_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"

    def ask(seed: int) -> None:
        parts = [
            {"type": "video_url", "video_url": {"url": media_url(synthetic_clip(seed), "video")}},
            {"type": "text", "text": "What is seen and heard?"},
        ]
        body = {"model": model, "messages": [{"role": "user", "content": parts}], "max_tokens": 2}
        request = urllib.request.Request(f"{api}/chat/completions", json.dumps(body).encode(), headers)
        # A server without chat or video input refuses; it needs no warm-up to work.
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            response.read()

    with ThreadPoolExecutor(QUESTIONS) as pool:
        list(pool.map(ask, range(QUESTIONS)))


def synthetic_clip(seed: int, seconds: float = 4.0, size: int = 128, rate: int = 12) -> bytes:
    """An mp4 (H.264 + AAC) of drifting colours and a tone, which depend on the seed."""
    import numpy as np

    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:size, 0:size]
    hue, drift = random.uniform(0, 6, 3), random.uniform(2, 6, 3)
    moments = np.arange(int(seconds * rate))[:, None, None, None] / rate
    waves = np.sin((rows / 20 + columns / 30)[None, :, :, None] + hue + drift * moments)
    tone = np.sin(2 * np.pi * random.uniform(200, 900) * np.arange(int(16000 * seconds)) / 16000) * 0.3
    return write_mp4(((waves + 1) * 127).astype(np.uint8), rate, tone.astype(np.float32))
