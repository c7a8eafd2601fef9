"""Reports in the answer's `usage` what a request's recordings cost and how much of them was seen."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any

from mllm.models.encoded import MediaFeatures
from mllm.models.processor import MllmProcessor


@dataclass
class MediaUsage:
    """The usage of one recording, or the sum over several.

    Attributes:
        video_tokens, audio_tokens, image_tokens: in the prompt; the sound of a video counts as audio.
        transcript_tokens: of what is said, if the server writes it down.
        frames: pictures that the model sees.
        seconds: how much of the recordings' time the windows cover.
    """

    video_tokens: int = 0
    audio_tokens: int = 0
    image_tokens: int = 0
    transcript_tokens: int = 0
    frames: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, features: MediaFeatures, processor: MllmProcessor, transcript_tokens: int = 0) -> MediaUsage:
        """The usage of one recording, given its features."""
        if features.modality == "image":
            return cls(image_tokens=processor.queries["video"], frames=1)
        return cls(
            video_tokens=processor.queries.get("video", 0) * sum(window.video for window in features.layout),
            audio_tokens=processor.queries.get("audio", 0) * sum(window.audio for window in features.layout),
            transcript_tokens=transcript_tokens,
            frames=features.seen.frames if features.seen and features.modality == "video" else 0,
            seconds=features.seen.seconds if features.seen else 0.0,
        )

    def __add__(self, other: MediaUsage) -> MediaUsage:
        names = [field.name for field in fields(self)]
        return MediaUsage(*(getattr(self, name) + getattr(other, name) for name in names))

    def fill(self, answer: dict[str, Any]) -> None:
        """Adds this to the details of an answer's usage, in whichever API."""
        holder = answer.get("response") if isinstance(answer.get("response"), dict) else answer
        usage = holder.get("usage") if holder else None
        if not isinstance(usage, dict):
            return
        for side in ("prompt", "input"):  # chat completions; responses
            if f"{side}_tokens" not in usage:
                continue
            details = usage.get(f"{side}_tokens_details") or {}
            if details.get("multimodal_tokens"):
                # vLLM counts by item: it takes the sound of a video, and its time marks, for video.
                sides = {name: getattr(self, f"{name}_tokens") for name in ("video", "audio", "image")}
                details["multimodal_tokens"] = {name: count for name, count in sides.items() if count}
            usage[f"{side}_tokens_details"] = details | vars(self) | {"seconds": round(self.seconds, 3)}

    def fill_event(self, event: bytes) -> bytes:
        """A server-sent event, with the usage added if it closes an answer."""
        if b'"usage"' not in event:
            return event
        lines = event.split(b"\n")
        for place, line in enumerate(lines):
            if line.startswith(b"data: {"):
                answer = json.loads(line[6:])
                if not answer.get("choices"):  # vLLM's counts while it answers have no details
                    self.fill(answer)
                    lines[place] = b"data: " + json.dumps(answer, separators=(",", ":")).encode()
        return b"\n".join(lines)
