"""One model, one set of small recordings and one real vLLM server for all tests here."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from mllm.models.checkpoint import find_shipped, load

RATE = 16000
MAX_MB, MAX_SECONDS = 60.0, 700.0  # what the test server accepts


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    return find_shipped("nano")


@pytest.fixture(scope="session")
def reference(checkpoint) -> tuple[Any, Any]:
    """The model as transformers runs it, in float32."""
    torch.set_num_threads(1)
    return load(checkpoint)


@pytest.fixture(scope="session")
def adapter(checkpoint, tmp_path_factory) -> Path:
    """A PEFT adapter on the decoder that changes its answers."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model, _ = load(checkpoint)
    settings = LoraConfig(r=8, target_modules=r".*language_model.*\.(q_proj|v_proj|down_proj)")
    tuned = get_peft_model(model, settings)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("adapter") / "tuned"
    tuned.save_pretrained(folder)
    return folder


# --- recordings -----------------------------------------------------------------------------------


def tone(frequency: float, seconds: float) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * frequency * np.arange(round(RATE * seconds)) / RATE)).astype(np.float32)


def picture(colour: tuple[int, int, int], place: float, size: int = 96) -> np.ndarray:
    """A square of one colour on grey; `place` 0..1 from left to right."""
    frame = np.full((size, size, 3), 90, np.uint8)
    left = int(place * (size - 32))
    frame[32:64, left : left + 32] = colour
    return frame


def write_media(
    path: Path, seconds: float, colour=None, sound: np.ndarray | None = None, rate: int = 12
) -> Path:
    """A recording with a moving square, a sound, or both."""
    with av.open(str(path), "w") as container:
        video = audio = None
        if colour is not None:
            video = container.add_stream(
                "libx264", rate=rate, options={"preset": "ultrafast", "threads": "1"}
            )
            video.width = video.height = 96
            video.pix_fmt = "yuv420p"
        if sound is not None:
            codec = {".wav": "pcm_s16le", ".flac": "flac"}.get(path.suffix, "aac")
            audio = container.add_stream(codec, rate=RATE)
            audio.layout = "mono"
        if video is not None:
            count = max(1, round(seconds * rate))
            for index in range(count):
                frame = picture(colour, index / count)
                container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(video.encode())
        if audio is not None:
            samples = (sound * 32767).astype(np.int16)
            for start in range(0, len(samples), 1024):
                frame = av.AudioFrame.from_ndarray(
                    samples[None, start : start + 1024], format="s16", layout="mono"
                )
                frame.sample_rate, frame.pts = RATE, start
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


@pytest.fixture(scope="session")
def media(tmp_path_factory) -> Path:
    """A folder of small recordings, good ones."""
    folder = tmp_path_factory.mktemp("media")
    red, blue = (230, 30, 30), (30, 30, 230)
    write_media(folder / "red_low.mp4", 3.0, red, tone(300, 3.0))
    write_media(folder / "red_high.mp4", 3.0, red, tone(2500, 3.0))
    write_media(folder / "blue_silent.mp4", 3.0, blue)
    write_media(folder / "long.mp4", 7.5, blue, tone(800, 5.2))
    write_media(folder / "short.mp4", 0.1, red, tone(500, 0.1))
    write_media(folder / "low.wav", 2.5, sound=tone(300, 2.5))
    write_media(folder / "high.flac", 1.0, sound=tone(2500, 1.0))
    write_media(
        folder / "beeps.m4a", 9.0, sound=np.tile(np.r_[tone(700, 0.5), np.zeros(RATE, np.float32)], 6)
    )
    Image.fromarray(picture(red, 0.2)).save(folder / "red.png")
    Image.fromarray(picture(blue, 0.8, 130)).save(folder / "blue.jpg")
    return folder


@pytest.fixture(scope="session")
def web(media) -> Iterator[str]:
    """The folder of recordings over http on this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(media))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


# --- the server -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def server(request, checkpoint, adapter, media, tmp_path_factory) -> Iterator[Any]:
    """The one vLLM server: float32, chunked prefill in small steps, and an adapter under the name 'tuned'."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        grouped = any(item.nodeid.endswith("@server") for item in request.session.items)
        assert grouped, "pytest-xdist did not group the tests by server: each process would start its own"
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from serve.launcher import Server

    flags = ["--dtype", "float32", "--max-num-batched-tokens", "64", "--max-num-seqs", "16", "--enable-lora"]
    flags += ["--lora-modules", f"tuned={adapter}", "--max-lora-rank", "8", "--served-model-name", "nano"]
    with Server(
        checkpoint,
        port=0,
        allowed_media=[media],
        allow_private_media=True,  # the test's web server is on this machine
        media_fetch_seconds=5.0,
        max_media_mb=MAX_MB,
        max_media_seconds=MAX_SECONDS,
        flags=flags,
        environment={"VLLM_MEDIA_FETCH_MAX_RETRIES": "1"},
        log=tmp_path_factory.mktemp("log") / "vllm.log",
    ) as running:
        yield running


@pytest.fixture(scope="session")
def client(server) -> Any:
    import openai

    return openai.OpenAI(base_url=server.api, api_key="none", max_retries=0, timeout=120)
