"""Writes small recordings for requests: an mp4 (H.264 + AAC) in memory."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SAMPLE_RATE = 16_000


def write_mp4(frames: np.ndarray | None, rate: float, waveform: np.ndarray | None) -> bytes:
    """An mp4 file of either or both.

    Args:
        frames: uint8 [frames, height, width, 3]; an odd last row or column is left out.
        rate: frames/s.
        waveform: float32 [samples] at 16 kHz.
    """
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        video = audio = None
        if frames is not None:
            video = container.add_stream("libx264", rate=round(rate), options={"preset": "ultrafast"})
            video.height, video.width = (size - size % 2 for size in frames.shape[1:3])
            video.pix_fmt = "yuv420p"
        if waveform is not None:
            audio = container.add_stream("aac", rate=SAMPLE_RATE)
            audio.layout = "mono"
        if video is not None and frames is not None:
            for pixels in frames[:, : video.height, : video.width]:
                container.mux(video.encode(av.VideoFrame.from_ndarray(pixels.copy(), format="rgb24")))
            container.mux(video.encode())
        if audio is not None and waveform is not None:
            for start in range(0, len(waveform), 1024):
                frame = av.AudioFrame.from_ndarray(
                    waveform[None, start : start + 1024], format="fltp", layout="mono"
                )
                frame.sample_rate, frame.pts = SAMPLE_RATE, start
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return buffer.getvalue()
