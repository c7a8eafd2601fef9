"""vLLM's way in: every vLLM process calls `register()`, through the entry point group `vllm.general_plugins`.

It names the model class and a media connector. The connector reads a recording with `mllm.media`, picture and
sound together, cuts its windows and computes its features in vLLM's media threads: what the model sees is
what training saw, bit for bit, and bad media end as one line with status 400.

    MLLM_MAX_MEDIA_BYTES     largest file accepted (bytes)
    MLLM_MAX_MEDIA_SECONDS   longest recording accepted (s)
    MLLM_MAX_DECODE_SECONDS  how long a recording may take to decode (s)
    MLLM_MAX_DECODE_BYTES    memory that decoding one may take (bytes)
    MLLM_ALLOWED_MEDIA       folders that file:// may name, beside --allowed-local-media-path
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import url2pathname

import aiohttp
import pybase64
import requests
from vllm.connections import HTTPResponseSizeExceededError, MediaDownloadSizeExceededError
from vllm.exceptions import VLLMClientError, VLLMValidationError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector, MediaIO

from mllm import vllm_api
from mllm.decode_pool import shared_pool
from mllm.errors import MediaError
from mllm.media import Clip, MediaLimits, probe
from mllm.sources import is_data_uri, open_ordinary

if TYPE_CHECKING:
    from mllm.processor import MediaFeatures, MllmProcessor

ARCHITECTURE = "MllmForConditionalGeneration"
CONNECTOR = "mllm"
MEGABYTE = 1_000_000
CACHE_BYTES = 256 * MEGABYTE  # features of recent recordings: a follow-up question need not decode again


def register() -> None:
    """Make vLLM know the model, its config, its processor and its media connector. Safe to call again."""
    from vllm import ModelRegistry

    import mllm.processor  # noqa: F401  registers the config and the processor with transformers

    # Lazily, as a string: importing the model here would start torch's accelerator in every process.
    ModelRegistry.register_model(ARCHITECTURE, "mllm.vllm_model:MllmForVllm")
    os.environ.setdefault("VLLM_MEDIA_CONNECTOR", CONNECTOR)
    # Servers have read their command line with this module; workers and offline use need no HTTP.
    if "vllm.entrypoints.launchers.cli_args" in sys.modules:
        vllm_api.attach()


def limits_from_environment() -> MediaLimits:
    """What a server accepts from strangers.

    Raises:
        ValueError: if a variable does not hold a positive number.
    """
    defaults = MediaLimits()
    return MediaLimits(
        max_bytes=_positive("MLLM_MAX_MEDIA_BYTES", defaults.max_bytes, int),
        max_seconds=_positive("MLLM_MAX_MEDIA_SECONDS", defaults.max_seconds, float),
        max_decode_seconds=_positive("MLLM_MAX_DECODE_SECONDS", defaults.max_decode_seconds, float),
        max_decode_bytes=_positive("MLLM_MAX_DECODE_BYTES", defaults.max_decode_bytes, int),
    )


def _positive(name: str, default: Any, kind: type) -> Any:
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if value <= 0:
        raise ValueError(
            f"the environment variable {name} is {text!r}: set it to a number above 0, or unset it"
        )
    return value


# --- recordings -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """One media item on its way to the model.

    Attributes:
        source: what was read (bytes, path or `Clip`), kept in case another model asks.
        digest: sha256 of the content, hex; vLLM's caches go by it.
        features: what the processor made of it.
        key: the settings `features` were made with (see `settings_of`).
    """

    source: Any
    modality: str
    digest: str
    features: MediaFeatures
    key: tuple

    def features_for(self, processor: MllmProcessor) -> MediaFeatures:
        """Features for this processor; computed again if they were made with other settings."""
        if self.key == settings_of(processor):
            return self.features
        return read_recording(processor, self.source, self.modality).features


class FeatureCache:
    """Features of the recordings read last, by content; the oldest go first. Several threads may use it."""

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


_features = FeatureCache()
_processor: MllmProcessor | None = None


def use_processor(processor: MllmProcessor) -> None:
    """Called when vLLM builds our model's processor: from now on the connector reads media for it.

    Until then (another model is served in this environment) the connector is vLLM's own.
    """
    global _processor
    _processor = processor


def settings_of(processor: MllmProcessor) -> tuple:
    """All that decides what a recording's features look like."""
    return processor.spec, processor.mel_bins, processor.chunk_seconds


def read_recording(processor: MllmProcessor, source: Any, modality: str) -> Recording:
    """Decode, cut and compute features; or take them from the cache.

    Args:
        source: anything `mllm.media.load_clip` takes.
        modality: "video", "audio" or "image".

    Raises:
        MediaError: if the source cannot be read, breaks a limit, or lacks what the modality needs.
    """
    if isinstance(source, Path) or (isinstance(source, str) and not is_data_uri(source)):
        source = _read_file(Path(source).resolve(), limits_from_environment())
    if isinstance(source, Clip):
        digest = source.fingerprint()
    else:
        digest = hashlib.sha256(source.encode() if isinstance(source, str) else source).hexdigest()
    settings = settings_of(processor)
    key = (digest, modality, settings)
    features = _features.get(key)
    if features is None:
        features = _read(processor, source, modality)
        _features.put(key, features)
    return Recording(source, modality, digest, features, settings)


def _read(processor: MllmProcessor, source: Any, modality: str) -> MediaFeatures:
    limits = limits_from_environment()
    _warm_decoders()
    if modality == "image" and not probe(source, limits, isolated=True).is_image:
        raise MediaError("it is no still picture: send it as video_url or audio_url")
    features = processor.media(source, modality, limits=limits, isolated=True)
    if modality != "image" and not any(picture or sound for _, picture, sound in features.layout):
        raise MediaError(f"it has no sound{'' if modality == 'audio' else ' and no picture'}")
    return features


@cache
def _warm_decoders() -> None:
    """Once, in the process that reads media: others import this module, too."""
    shared_pool().warm()


def _read_file(path: Path, limits: MediaLimits) -> bytes:
    """The bytes of an ordinary file; no more are read than the limit allows, even if it grows meanwhile."""
    if path.is_dir():
        raise MediaError(f"{path.name} is a folder: name a file")
    # The connector has resolved the path: a link there now was put in after that, to lead out of the folder.
    with open_ordinary(path, path.name, follow_links=False) as file:
        _check_size(os.fstat(file.fileno()).st_size, limits, path.name)
        data = file.read() if limits.max_bytes is None else file.read(limits.max_bytes + 1)
    _check_size(len(data), limits, path.name)
    return data


def _check_size(size: int, limits: MediaLimits, name: str) -> None:
    if limits.max_bytes is not None and size > limits.max_bytes:
        raise MediaError(
            f"{name} is {size / MEGABYTE:.1f} MB, this server takes up to {limits.max_bytes / MEGABYTE:g} MB"
        )


# --- the connector --------------------------------------------------------------------------------


class MediaRejected(VLLMValidationError):
    """Status 400 with one line; vLLM would append its own 'parameter=…'."""

    def __str__(self) -> str:
        return str(self.args[0])


class RecordingIO(MediaIO[Recording]):
    """What the connector does with the bytes that it has fetched."""

    def __init__(self, processor: MllmProcessor, modality: str):
        super().__init__()
        self.processor = processor
        self.modality = modality
        self.limits = limits_from_environment()

    def get_max_bytes(self) -> int | None:
        return self.limits.max_bytes

    def load_bytes(self, data: bytes) -> Recording:
        _check_size(len(data), self.limits, f"this {self.modality}")
        return read_recording(self.processor, data, self.modality)

    def load_base64(self, media_type: str, data: str) -> Recording:
        _check_size(len(data) * 3 // 4, self.limits, f"this {self.modality}")
        try:
            decoded = pybase64.b64decode(data, validate=True)
        except ValueError as error:
            raise MediaError(f"the data: URI is not valid base64 ({error})") from None
        return self.load_bytes(decoded)

    def load_file(self, filepath: Path) -> Recording:
        return self.load_bytes(_read_file(filepath, self.limits))


@MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)
class MllmMediaConnector(MediaConnector):
    """vLLM's connector (http, data:, file:// under the allowed folder), reading media for our model."""

    def _load_file_url(self, url_spec, media_io):
        path = Path(url2pathname((url_spec.netloc or "") + (url_spec.path or ""))).resolve()
        named = os.environ.get("MLLM_ALLOWED_MEDIA", "").split(os.pathsep)
        folders = {Path(folder).resolve() for folder in named if folder} | {self.allowed_local_media_path}
        if not folders & set(path.parents):
            raise MediaError(
                "this server may not read that file: it was not started with its --allowed-media-path"
            )
        return media_io.load_file(path)

    def _fetch(self, url: str, modality: str) -> Recording:
        assert _processor is not None
        try:
            return self.load_from_url(url, RecordingIO(_processor, modality))
        except Exception as error:
            raise _rejection(error, url, modality) from error

    async def _fetch_async(self, url: str, modality: str) -> Recording:
        assert _processor is not None
        try:
            return await self.load_from_url_async(url, RecordingIO(_processor, modality))
        except Exception as error:
            raise _rejection(error, url, modality) from error

    def fetch_video(self, video_url: str, **options):
        return (
            super().fetch_video(video_url, **options)
            if _processor is None
            else self._fetch(video_url, "video")
        )

    def fetch_audio(self, audio_url: str):
        return super().fetch_audio(audio_url) if _processor is None else self._fetch(audio_url, "audio")

    def fetch_image(self, image_url: str, **options):
        return (
            super().fetch_image(image_url, **options)
            if _processor is None
            else self._fetch(image_url, "image")
        )

    async def fetch_video_async(self, video_url: str, **options):
        if _processor is None:
            return await super().fetch_video_async(video_url, **options)
        return await self._fetch_async(video_url, "video")

    async def fetch_audio_async(self, audio_url: str):
        if _processor is None:
            return await super().fetch_audio_async(audio_url)
        return await self._fetch_async(audio_url, "audio")

    async def fetch_image_async(self, image_url: str, **options):
        if _processor is None:
            return await super().fetch_image_async(image_url, **options)
        return await self._fetch_async(image_url, "image")


def _rejection(error: Exception, url: str, modality: str) -> Exception:
    """Whatever went wrong while reading a client's media is the client's to know: status 400, one line.

    Raised by vLLM's stock connector these are 422, 500 (missing file, refused connection) or 501.
    """
    if isinstance(error, MediaRejected):
        return error
    name = url.partition(",")[0][:40] + ",…" if url[:5].lower() == "data:" else url[:200]
    if isinstance(error, (HTTPResponseSizeExceededError, MediaDownloadSizeExceededError)):
        reason = f"it is larger than {error.max_bytes / MEGABYTE:g} MB, the most that this server takes"
    elif isinstance(error, aiohttp.ClientResponseError):
        reason = f"the server answered with status {error.status}"
    elif isinstance(error, (asyncio.TimeoutError, TimeoutError, requests.Timeout)):
        reason = "it took too long to fetch"
    elif isinstance(error, (aiohttp.ClientError, requests.RequestException)):
        reason = f"cannot fetch it ({error})"
    elif isinstance(error, MemoryError):
        reason = "it does not fit into memory: send a shorter or smaller recording"
    elif isinstance(error, VLLMClientError):
        reason = str(error.args[0])
    else:
        reason = re.sub(r"^<bytes[^>]*>: ", "", str(error)) or type(error).__name__
    line = " ".join(f"cannot use {modality} {name}: {reason}".split())
    return MediaRejected(line, parameter=f"{modality}_url")
