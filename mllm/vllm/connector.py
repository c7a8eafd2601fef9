"""vLLM's media connector for our model: http(s), data: and file:// under an allowed folder.

URLs are fetched within limits (`media.fetch`), and never from inside the network; `media.recording` reads
them, as everywhere; every failure is one line with a status from 400 on. If another model is served in the
same environment, this fetches with the same care, and vLLM decodes.

    MLLM_ALLOWED_MEDIA       folders that file:// may name, beside --allowed-local-media-path
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import vllm.envs as envs
from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMValidationError
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector, MediaIO

from mllm.errors import MediaError, MllmError
from mllm.media.decode_pool import MOST_WORKERS
from mllm.media.fetch import Fetcher, FetchLimits
from mllm.media.places import is_data_uri
from mllm.media.sources import data_uri
from mllm.vllm import api as vllm_api
from mllm.vllm.recordings import (
    ServedRecording,
    check_size,
    limits_from_environment,
    read_file,
    read_recording,
    served_processor,
    transcribed,
    wants_transcript,
    with_transcript,
)

_log = logging.getLogger(__name__)

CONNECTOR = "mllm"  # its name in vLLM's registry


class MediaRejected(VLLMValidationError):
    """Status 400 with one line; vLLM would append its own 'parameter=…'."""

    def __str__(self) -> str:
        return str(self.args[0])


class MediaFailed(GracefulHTTPError):
    """One line, with the status of the error behind it."""


class RecordingIO(MediaIO[ServedRecording]):
    """Turns the bytes that the connector has fetched into a recording."""

    def __init__(self, processor: Any, modality: str):
        super().__init__()
        self.processor = processor
        self.modality = modality
        self.limits = limits_from_environment()

    def get_max_bytes(self) -> int | None:
        return self.limits.max_bytes

    def load_bytes(self, data: bytes) -> ServedRecording:
        check_size(len(data), self.limits, f"this {self.modality}")
        return read_recording(self.processor, data, self.modality)

    def load_base64(self, media_type: str, data: str) -> ServedRecording:
        return self.load_data_uri(f"data:{media_type};base64,{data}")

    def load_data_uri(self, uri: str) -> ServedRecording:
        return self.load_bytes(data_uri(uri, self.limits))

    def load_file(self, filepath: Path) -> ServedRecording:
        return self.load_bytes(read_file(filepath, self.limits))


fetcher_for = functools.cache(Fetcher)
# Each waits for a decoding process. vLLM's own pool has eight threads: eight slow recordings would block it.
readers = ThreadPoolExecutor(MOST_WORKERS, thread_name_prefix="mllm-media")


@MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)
class MllmMediaConnector(MediaConnector):
    """The connector; vLLM creates one for each request with media."""

    def load_from_url(self, url: str, media_io: MediaIO, *, fetch_timeout: int | None = None) -> Any:
        with our_words(url, media_io):
            url = checked_url(url)
            if not _is_web(url):
                return self._load_here(url, media_io)
            data = self._get_cached_bytes(url)
            if data is None:
                data = self._fetcher.fetch_blocking(url, **self._options(media_io))
                self._put_cached_bytes(url, data)
            return media_io.load_bytes(data)

    async def load_from_url_async(
        self, url: str, media_io: MediaIO, *, fetch_timeout: int | None = None
    ) -> Any:
        def in_thread(function: Any, *arguments: Any) -> Any:
            return asyncio.get_running_loop().run_in_executor(readers, function, *arguments)

        with our_words(url, media_io):
            url = checked_url(url)
            if not _is_web(url):
                return await in_thread(self._load_here, url, media_io)
            data = await in_thread(self._get_cached_bytes, url) if self._media_cache_dir else None
            if data is None:
                data = await self._fetcher.fetch(url, **self._options(media_io))
                if self._media_cache_dir:
                    await in_thread(self._put_cached_bytes, url, data)
            return await in_thread(media_io.load_bytes, data)

    @property
    def _fetcher(self) -> Fetcher:
        return fetcher_for(FetchLimits.from_environment())

    def _options(self, media_io: MediaIO) -> dict[str, Any]:
        exchange = vllm_api.current.get()
        return {
            "max_bytes": media_io.get_max_bytes() or envs.VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB * (1 << 20) or None,
            "client": exchange.client if exchange else "",
            "domains": frozenset(self.allowed_media_domains or ()),
            "follow": envs.VLLM_MEDIA_URL_ALLOW_REDIRECTS,
            "attempts": max(1, envs.VLLM_MEDIA_FETCH_MAX_RETRIES),
        }

    def _load_here(self, url: str, media_io: MediaIO) -> Any:
        if is_data_uri(url):
            if isinstance(media_io, RecordingIO):
                return media_io.load_data_uri(url)
            return self._load_data_url(url, media_io)
        if _scheme(url) != "file":
            raise MediaError("its URL is neither http(s):// nor data: nor file://")
        try:
            split = urlsplit(url)
            path = Path(url2pathname(split.netloc + split.path)).resolve()
        except (OSError, ValueError, RuntimeError):  # a NUL, a loop of links
            raise MediaError("its URL names no file") from None
        named = os.environ.get("MLLM_ALLOWED_MEDIA", "").split(os.pathsep)
        folders = {Path(folder).resolve() for folder in named if folder} | {self.allowed_local_media_path}
        if not folders & set(path.parents):
            raise MediaError(
                "this server may not read that file: it was not started with its --allowed-media-path"
            )
        return media_io.load_file(path)

    def _read(self, modality: str, url: str) -> ServedRecording | None:
        """The recording, prepared for our model; None if another model is served, for which vLLM reads."""
        processor = served_processor()
        if processor is None:
            return None
        media_io = RecordingIO(processor, modality)
        recording = self.load_from_url(url, media_io)
        if wants_transcript(recording):
            with our_words(url, media_io):
                return with_transcript(processor, recording)
        return recording

    async def _read_async(self, modality: str, url: str) -> ServedRecording | None:
        processor = served_processor()
        if processor is None:
            return None
        media_io = RecordingIO(processor, modality)
        recording = await self.load_from_url_async(url, media_io)
        if wants_transcript(recording):
            with our_words(url, media_io):
                recording = await transcribed(processor, recording)
        vllm_api.note(modality, url, recording.features, processor, len(recording.said))
        return recording

    def fetch_video(self, video_url: str, **options: Any) -> Any:
        return self._read("video", video_url) or super().fetch_video(video_url, **options)

    def fetch_audio(self, audio_url: str) -> Any:
        return self._read("audio", audio_url) or super().fetch_audio(audio_url)

    def fetch_image(self, image_url: str, **options: Any) -> Any:
        return self._read("image", image_url) or super().fetch_image(image_url, **options)

    async def fetch_video_async(self, video_url: str, **options: Any) -> Any:
        recording = await self._read_async("video", video_url)
        return recording or await super().fetch_video_async(video_url, **options)

    async def fetch_audio_async(self, audio_url: str) -> Any:
        return await self._read_async("audio", audio_url) or await super().fetch_audio_async(audio_url)

    async def fetch_image_async(self, image_url: str, **options: Any) -> Any:
        recording = await self._read_async("image", image_url)
        return recording or await super().fetch_image_async(image_url, **options)


def _scheme(url: str) -> str:
    return url.partition(":")[0].lower()


def _is_web(url: str) -> bool:
    return _scheme(url) in ("http", "https")


# --- errors ---------------------------------------------------------------------------------------


def checked_url(url: Any) -> str:
    """A URL without surrounding white space.

    Raises:
        MediaError: if it is empty, or holds characters that no URL can.
    """
    if not isinstance(url, str):
        raise MediaError("its url is no text: give http(s)://…, data:…;base64,… or file://…")
    url = url.strip()
    if not url:
        raise MediaError("its url is empty: give http(s)://…, data:…;base64,… or file://…")
    if is_data_uri(url):
        return url
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in url):
        raise MediaError("its url holds a line break, a control character or half a character")
    return url


@contextmanager
def our_words(url: Any, media_io: MediaIO) -> Iterator[None]:
    """Turns every failure with a client's media into one line for the client.

    vLLM's own connector answers with 422, 500 (missing file, refused connection) or 501.
    """
    modality = media_io.modality if isinstance(media_io, RecordingIO) else "media"
    try:
        yield
    except (MediaRejected, MediaFailed):
        raise
    except Exception as error:
        if modality == "media" and not isinstance(error, MediaError):
            raise  # vLLM's reader for another model
        line = " ".join(f"cannot use {modality}{_name(url)}: {_reason(error)}".split())
        _log.info("%s", line)
        exchange = vllm_api.current.get()
        if exchange is not None and isinstance(error, MllmError):
            exchange.error = error
        status = error.status if isinstance(error, MllmError) else MllmError.status
        if status == HTTPStatus.BAD_REQUEST:
            raise MediaRejected(line, parameter=f"{modality}_url") from error
        raise MediaFailed(line, HTTPStatus(status)) from error


def _name(url: Any) -> str:
    """The name of a URL in messages: an address in full, but never possible content."""
    if not isinstance(url, str) or is_data_uri(url) or not url.strip():
        return ""
    name = "".join(letter if letter.isprintable() else "?" for letter in url.strip()[:200])
    if "://" in name[:8] or len(url) <= 40:
        return f" {name}"
    return f" with a url of {len(url)} letters"


def _reason(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it does not fit into memory: send a shorter or smaller recording"
    text = str(error.args[0]) if isinstance(error, VLLMClientError) else str(error)
    return re.sub(r"^<bytes[^>]*>: ", "", text) or type(error).__name__
