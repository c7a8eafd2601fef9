"""How a server reads recordings: within limits, decoded by workers, with a cache of recent features.

Recordings are read with `media.recording`, cut into windows and turned into features in vLLM's media threads:
the model sees what training saw, bit for bit.

    MLLM_MAX_MEDIA_BYTES     largest file accepted (bytes)
    MLLM_MAX_MEDIA_SECONDS   longest recording accepted (s)
    MLLM_MAX_DECODE_SECONDS  how long a recording may take to decode (s)
    MLLM_MAX_DECODE_BYTES    memory that decoding one may take (bytes)
    MLLM_TRANSCRIPTS         a Whisper model: what is said, with times, follows a recording's tokens
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm.errors import MediaError
from mllm.files import open_ordinary
from mllm.media.clip import Clip
from mllm.media.decode_pool import shared_pool
from mllm.media.fetch import FetchLimits, positive_from_environment
from mllm.media.places import is_data_uri
from mllm.media.recording import open_recording
from mllm.media.sources import MediaLimits
from mllm.records.templates import subtitle_block
from mllm.vllm.in_flight import in_flight

if TYPE_CHECKING:
    from mllm.models.encoded import MediaFeatures
    from mllm.models.processor import MllmProcessor
    from mllm.models.transcriber import Transcriber

MEGABYTE = 1_000_000
MOST_WAITING = 16  # recordings to be transcribed
REMEMBERED_TRANSCRIPTS = 4096
CACHE_BYTES = 256 * MEGABYTE  # features of recent recordings: a follow-up question need not decode again


def limits_from_environment() -> MediaLimits:
    """The limits of a server on recordings from clients.

    Raises:
        ValueError: if a variable is not a positive number.
    """
    defaults, number = MediaLimits(), positive_from_environment
    return MediaLimits(
        max_bytes=number("MLLM_MAX_MEDIA_BYTES", defaults.max_bytes, int),
        max_seconds=number("MLLM_MAX_MEDIA_SECONDS", defaults.max_seconds, float),
        max_decode_seconds=number("MLLM_MAX_DECODE_SECONDS", defaults.max_decode_seconds, float),
        max_decode_bytes=number("MLLM_MAX_DECODE_BYTES", defaults.max_decode_bytes, int),
    )


@dataclass(frozen=True)
class ServedRecording:
    """One media item with its features.

    Attributes:
        source: bytes, path or `Clip`, kept for a processor with other settings.
        digest: sha256 of the content, hex, the key in vLLM's caches.
        features: the processor's output.
        key: the settings that `features` were computed with (see `settings_of`).
        said: ids of what is said, as text behind the recording's tokens; empty without transcripts.
    """

    source: Any
    modality: str
    digest: str
    features: MediaFeatures
    key: tuple
    said: tuple[int, ...] = ()

    def features_for(self, processor: MllmProcessor) -> MediaFeatures:
        """Features for this processor; recomputed if they were computed with other settings."""
        if self.key == settings_of(processor):
            return self.features
        return read_recording(processor, self.source, self.modality).features


class RecentFeatures:
    """A thread-safe cache of the features of recent recordings by content; evicts the oldest."""

    def __init__(self, max_bytes: int = CACHE_BYTES):
        self.max_bytes = max_bytes
        self._bytes = 0
        self._items: OrderedDict[tuple, MediaFeatures] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple) -> MediaFeatures | None:
        with self._lock:
            if key in self._items:
                self._items.move_to_end(key)
            return self._items.get(key)

    def put(self, key: tuple, features: MediaFeatures) -> None:
        with self._lock:
            if key in self._items:
                return
            self._items[key] = features
            self._bytes += _size(features)
            while self._bytes > self.max_bytes and self._items:
                self._bytes -= _size(self._items.popitem(last=False)[1])


def _size(features: MediaFeatures) -> int:
    tensors = (features.pixel_values, features.input_features)
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


_features = RecentFeatures()
_processor: MllmProcessor | None = None


def use_processor(processor: MllmProcessor) -> None:
    """Makes the connector read media for our model; called when vLLM builds the model's processor.

    Without this call (another model is served in this environment) the connector behaves like vLLM's own.
    """
    global _processor
    limits_from_environment()
    FetchLimits.from_environment()  # an invalid variable fails the start, not every request
    _processor = processor


def served_processor() -> MllmProcessor | None:
    """The processor given to `use_processor`; None if another model is served."""
    return _processor


def settings_of(processor: MllmProcessor) -> tuple:
    """All settings that a recording's features depend on."""
    return processor.spec, json.dumps(processor.sides, sort_keys=True)


def read_recording(processor: MllmProcessor, source: Any, modality: str) -> ServedRecording:
    """Decodes a recording, cuts it and computes its features, or takes them from the cache.

    Args:
        source: anything `mllm.media.recording.load_clip` takes.
        modality: "video", "audio" or "image".

    Raises:
        MediaError: if the source cannot be read, exceeds a limit, or lacks what the modality needs.
    """
    if isinstance(source, Path) or (isinstance(source, str) and not is_data_uri(source)):
        source = read_file(Path(source).resolve(), limits_from_environment())
    if isinstance(source, Clip):
        digest = source.digest()
    else:
        digest = hashlib.sha256(
            source.encode(errors="replace") if isinstance(source, str) else source
        ).hexdigest()
    settings = settings_of(processor)
    key = (digest, modality, settings)
    features = _features.get(key)
    if features is None:
        size = "" if isinstance(source, Clip) else f" of {len(source):,} bytes"
        with in_flight(f"{modality}{size}, sha256 {digest[:16]}…"):
            features = _read(processor, source, modality)
        _features.put(key, features)
    return ServedRecording(source, modality, digest, features, settings)


def _read(processor: MllmProcessor, source: Any, modality: str) -> MediaFeatures:
    limits = limits_from_environment()
    _warm_decoders()
    with open_recording(source, limits, isolated=True) as recording:
        if modality == "image" and not recording.info.is_image:
            raise MediaError("it is no still picture: send it as video_url or audio_url")
        features = processor.media(recording, modality)
    if modality != "image" and not any(window.video or window.audio for window in features.layout):
        tracks = {"sound": "audio", "picture": "video" if modality == "video" else ""}
        lacking = [track for track, side in tracks.items() if side in processor.sides]
        raise MediaError(f"it has no {' and no '.join(lacking)}")
    return features


# --- what is said -----------------------------------------------------------------------------------------

# vLLM's threads compute beside it, and a second transcription at a time would only slow the first one down.
_listener = ThreadPoolExecutor(1, thread_name_prefix="mllm-transcripts")
_turns = threading.BoundedSemaphore(MOST_WAITING)
_said: OrderedDict[str, tuple[int, ...]] = OrderedDict()  # ids by the recording's digest


class TooManyToTranscribe(MediaError):
    """Status 429: the same request may succeed later."""

    code, status = "busy", 429


def wants_transcript(recording: ServedRecording) -> bool:
    """Whether the server was told to write down what is said, and there may be something."""
    return bool(os.environ.get("MLLM_TRANSCRIPTS")) and recording.modality != "image"


async def transcribed(processor: MllmProcessor, recording: ServedRecording) -> ServedRecording:
    """`with_transcript` without blocking the event loop.

    Raises:
        TooManyToTranscribe: with status 429, if too many wait already.
    """
    if not _turns.acquire(blocking=False):
        raise TooManyToTranscribe(f"{MOST_WAITING} recordings wait to be transcribed: try again later")
    try:
        return await asyncio.get_running_loop().run_in_executor(
            _listener, with_transcript, processor, recording
        )
    finally:
        _turns.release()


def with_transcript(processor: MllmProcessor, recording: ServedRecording) -> ServedRecording:
    """The recording with what is said in it, or as it is if nothing is said."""
    said = _said.get(recording.digest)
    if said is None:
        with in_flight(f"the speech of {recording.modality}, sha256 {recording.digest[:16]}…"):
            limits = limits_from_environment()
            heard = _transcriber().transcribe(recording.source, isolated=True, limits=limits)
        said = _said[recording.digest] = processor.text_ids(subtitle_block(heard.lines, processor.time_marks))
        while len(_said) > REMEMBERED_TRANSCRIPTS:
            _said.popitem(last=False)
    return replace(recording, said=said)


@cache
def _transcriber() -> Transcriber:
    from mllm.models.transcriber import Transcriber

    # The engine has the accelerator, and has reserved its memory.
    return Transcriber.from_pretrained(os.environ["MLLM_TRANSCRIPTS"], device="cpu")


@cache
def _warm_decoders() -> None:
    """Starts the decoders once, in the process that reads media: others import this module, too."""
    shared_pool().warm()


def read_file(path: Path, limits: MediaLimits) -> bytes:
    """The bytes of an ordinary file; never reads more than the limit, even if the file grows meanwhile."""
    if path.is_dir():
        raise MediaError(f"{path.name} is a folder: name a file")
    # The connector has resolved the path: a link there was put in afterwards, to escape the folder.
    with open_ordinary(path, path.name, follow_links=False) as file:
        check_size(os.fstat(file.fileno()).st_size, limits, path.name)
        data = file.read() if limits.max_bytes is None else file.read(limits.max_bytes + 1)
    check_size(len(data), limits, path.name)
    return data


def check_size(size: int, limits: MediaLimits, name: str) -> None:
    if limits.max_bytes is not None and size > limits.max_bytes:
        raise MediaError(
            f"{name} is {size / MEGABYTE:.1f} MB, this server takes up to {limits.max_bytes / MEGABYTE:g} MB"
        )
