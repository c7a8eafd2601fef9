"""Conversation and media in; ids, loss mask and features out. Training, `generate()` and vLLM all call this.

Ids and mask are built in one pass over the same segments, so they cannot drift apart, and an inference
prompt is by construction a prefix of what training saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, takewhile
from operator import eq
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor, AutoTokenizer

from mllm.errors import MediaError
from mllm.experiment import TimeMarks
from mllm.media.clip import Clip
from mllm.media.recording import SAMPLE_RATE, load_clip
from mllm.media.windows import Seen, Window, WindowLayout, WindowSpec, cut, load_windows, time_mark
from mllm.models.config import MllmConfig
from mllm.models.encoded import IGNORE, Encoded, MediaFeatures, block_mask, collate_media
from mllm.models.processor_calls import TransformersCalls
from mllm.models.sides import SIDES, SPACE_TOKENIZER, Described, inputs_of, sides_of_processor
from mllm.models.towers import find_tower
from mllm.models.towers.base import windows_per_chunk
from mllm.records import chat
from mllm.records.chat_form import Segment, escape, render, special_tokens
from mllm.records.chat_form import chat_template as template_of
from mllm.records.chat_probe import chat_form_of

REMEMBERED_TEXTS = 20_000

PLACEHOLDERS = {"video": chat.VIDEO_TOKEN, "audio": chat.AUDIO_TOKEN, "image": chat.IMAGE_TOKEN}


class MllmProcessor(TransformersCalls):
    """The tokenizer plus the preprocessing of pixels and sound that the towers expect.

    Args:
        tokenizer: any fast tokenizer whose vocabulary contains `chat.PLACEHOLDERS`.
        chat_template: Jinja; by default the tokenizer's own chat format, with media placeholders.
        sides: for each side, how its tower's input is prepared and how many tokens a window costs; see
            `mllm.models.sides`.
        window_seconds, frames_per_window, max_windows: see `windows.WindowSpec`.
        time_marks: the form of the text before each window, see `windows.time_mark`.
        space_prefix: text before each text of the shared space, for `space_tokenizer`.

    Attributes:
        space_tokenizer: the text tower's own tokenizer, if it has one; saved in a subfolder of that name.
    """

    attributes = ["tokenizer"]
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        tokenizer=None,
        chat_template: str | None = None,
        sides: Described | None = None,
        window_seconds: float = 2.0,
        frames_per_window: int = 8,
        max_windows: int = 32,
        time_marks: TimeMarks = "clock",
        space_prefix: str = "",
        **kwargs,
    ):
        super().__init__(tokenizer, chat_template=chat_template)
        self.sides = sides or {}
        self.window_seconds = window_seconds
        self.frames_per_window = frames_per_window
        self.max_windows = max_windows
        self.time_marks = time_marks
        self.space_prefix = space_prefix
        self.queries = {name: side["queries"] for name, side in self.sides.items()}
        self.inputs = {
            name: find_tower(side["type"]).inputs_class(**inputs_of(side))
            for name, side in self.sides.items()
        }
        self.image_size = self.inputs["video"].image_size if "video" in self.sides else 1
        self.spec = WindowSpec(window_seconds, frames_per_window, max_windows, self.image_size)
        self.special_tokens = special_tokens(tokenizer)
        self.form = chat_form_of(tokenizer, chat_template)
        self.end_id: int = tokenizer.convert_tokens_to_ids(self.form.end_token)
        self.token_ids = {
            name: tokenizer.convert_tokens_to_ids(token) for name, token in PLACEHOLDERS.items()
        }
        # The tokenizer's own template would silently drop the media.
        self.chat_template = tokenizer.chat_template = chat_template or template_of(self.form)
        self.space_tokenizer: Any = None
        self._no_chunks: dict[str, torch.Tensor] = {}
        self._ids: dict[str, tuple[int, ...]] = {}

    @classmethod
    def from_config(cls, tokenizer, config: MllmConfig, space_tokenizer: Any = None) -> MllmProcessor:
        """The processor that fits a model."""
        processor = cls(
            tokenizer,
            sides=config.described_sides(),
            window_seconds=config.window_seconds,
            frames_per_window=config.frames_per_window,
            max_windows=config.max_windows,
            time_marks=config.time_marks,
            space_prefix=config.space_prefix,
        )
        processor.space_tokenizer = space_tokenizer
        return processor

    @classmethod
    def from_args_and_dict(cls, args, processor_dict: dict[str, Any], **kwargs):
        """See ProcessorMixin; also reads files written by earlier versions."""
        values = processor_dict | {"sides": sides_of_processor(processor_dict)}
        return super().from_args_and_dict(args, values, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs) -> MllmProcessor:
        """See ProcessorMixin."""
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        folder = Path(pretrained_model_name_or_path, SPACE_TOKENIZER)
        if folder.is_dir():
            processor.space_tokenizer = AutoTokenizer.from_pretrained(folder)
        return processor

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **kwargs):
        """See ProcessorMixin."""
        if self.space_tokenizer is not None:
            self.space_tokenizer.save_pretrained(Path(save_directory, SPACE_TOKENIZER))
        return super().save_pretrained(save_directory, push_to_hub, **kwargs)

    @property
    def windows_per_chunk(self) -> int:
        """Windows of sound in one chunk of the audio tower; 1 without an audio tower."""
        sound = self.inputs.get("audio")
        return windows_per_chunk(sound.chunk_seconds, self.window_seconds) if sound else 1

    def media(self, source: Any, modality: str, **options) -> MediaFeatures:
        """Reads one recording. `options` go to `media.load_clip` (start, end, audio, limits).

        Raises:
            MediaError: if the source cannot be read or lacks what the modality needs.
        """
        if modality == "image":
            if "video" not in self.sides:
                raise MediaError("this model looks at nothing (model.video is null): ask it about sound")
            clip = source
            if not isinstance(source, Clip):
                # One frame is enough to tell a video from an image.
                clip = load_clip(source, size=self.image_size, choose=lambda _: np.zeros(1), **options)
            if clip.frames is None:
                raise MediaError(f"{clip.source}: it has no picture to take as an image: send it as audio")
            if clip is not source and not clip.is_image:
                raise MediaError(f"{clip.source}: it is no still picture: send it as video")
            return self.media_from_windows(cut(clip, self.spec)[:1], "image")
        if modality == "audio" and "audio" not in self.sides:
            raise MediaError("this model hears nothing (model.audio is null): ask it about pictures")
        wanted = self.wanted(modality)
        wanted["want_audio"] &= options.pop("want_audio", True)
        windows, seen = load_windows(source, self.spec, **wanted, **options)
        if modality == "audio" and not seen.has_audio:
            name = source if isinstance(source, str | Path) and len(str(source)) < 500 else "this recording"
            raise MediaError(
                f"{getattr(source, 'source', name)}: it has no sound: send it as video, or as an image"
            )
        return self.media_from_windows(windows, modality, seen)

    def wanted(self, modality: str) -> dict[str, bool]:
        """Which tracks of a recording are decoded, as options of `media.load_clip`."""
        return {
            "want_video": modality != "audio" and "video" in self.sides,
            "want_audio": modality != "image" and "audio" in self.sides,
        }

    def media_from_windows(
        self, windows: Sequence[Window], modality: str, seen: Seen | None = None
    ) -> MediaFeatures:
        """Features of windows that are already cut; an audio item keeps only the sound."""
        if modality == "image":
            return MediaFeatures(
                "image", _pixels(windows)[:, 0], None, torch.zeros(0, dtype=torch.long), [], seen
            )
        looks, listens = modality == "video" and "video" in self.sides, "audio" in self.sides
        layout = [
            WindowLayout(
                window.start, looks and window.frames is not None, listens and window.waveform is not None
            )
            for window in windows
        ]
        pictured = [window for window, row in zip(windows, layout, strict=True) if row.video]
        sounding = [window.waveform for window, row in zip(windows, layout, strict=True) if row.audio]
        features, counts = self.sound_features(sounding)  # type: ignore[arg-type]
        return MediaFeatures(
            modality, _pixels(pictured) if pictured else None, features, counts, layout, seen
        )

    def sound_features(self, waveforms: Sequence[np.ndarray]) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Windows of sound -> prepared chunks [chunks, …] and the number of windows in each [chunks].

        Windows are packed into the audio tower's native chunk; the rest of the last chunk is silence.
        """
        if not waveforms:
            return None, torch.zeros(0, dtype=torch.long)
        sound, per_chunk = self.inputs["audio"], self.windows_per_chunk
        per_window = round(self.window_seconds * SAMPLE_RATE)
        counts = [min(per_chunk, len(waveforms) - first) for first in range(0, len(waveforms), per_chunk)]
        samples = np.zeros((len(counts), round(sound.chunk_seconds * SAMPLE_RATE)), np.float32)
        lengths = torch.zeros(len(counts), dtype=torch.long)
        for index, waveform in enumerate(waveforms):
            chunk, slot = divmod(index, per_chunk)
            waveform = waveform[:per_window]
            lengths[chunk] = slot * per_window + len(waveform)
            samples[chunk, slot * per_window : lengths[chunk]] = waveform
        return sound.prepare(torch.from_numpy(samples), lengths), torch.tensor(counts)

    def no_chunks(self, side: str) -> torch.Tensor:
        """An empty batch [0, …] with the shape and dtype of the side's tower input."""
        if side not in self._no_chunks:
            size, sound = self.image_size, self.inputs[side]
            if side == "video":
                empty = torch.zeros(0, self.frames_per_window, 3, size, size, dtype=torch.uint8)
            else:
                silence = torch.zeros(1, round(sound.chunk_seconds * SAMPLE_RATE))
                empty = sound.prepare(silence, torch.zeros(1, dtype=torch.long))[:0]
            self._no_chunks[side] = empty
        return self._no_chunks[side]

    def placeholder_ids(self, modality: str, layout: Sequence[WindowLayout] = ()) -> list[int]:
        """The ids that replace one media item: per window its time mark, video tokens, audio tokens.

        vLLM's prompt replacement calls this too, so both produce the same prompt.
        """
        if modality == "image":
            return [self.token_ids["image"]] * self.queries["video"]
        ids: list[int] = []
        for window in layout:
            ids += self._tokens(time_mark(window.start, self.time_marks))
            for side in SIDES:
                ids += [self.token_ids[side]] * (self.queries[side] if getattr(window, side) else 0)
        return ids

    def text_ids(self, text: str) -> tuple[int, ...]:
        """The ids of a text that nobody has checked: special tokens in it are escaped."""
        return self._tokens(escape(text, self.form.escaped))

    def _tokens(self, text: str) -> tuple[int, ...]:
        """Ids of a text without added tokens; short ones are cached: time marks and questions recur."""
        ids = self._ids.get(text)
        if ids is None:
            ids = tuple(self.tokenizer.encode(text, add_special_tokens=False))
            if len(self._ids) < REMEMBERED_TEXTS and len(text) < 200:
                self._ids[text] = ids
        return ids

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = False,
        media: list[MediaFeatures] | None = None,
    ) -> Encoded:
        """Turns one conversation into ids and labels, in one pass.

        Args:
            messages: see `chat.validate_messages`.
            add_generation_prompt: end with the assistant's role marker, for inference.
            media: features already read, in order of appearance; by default they are read from the messages.

        Raises:
            ChatError: for malformed messages, or if `media` does not match their number of recordings.
            MediaError: for a recording that cannot be read.
        """
        conversation = chat.validate_messages(messages)
        parts = conversation.media
        if media is None:
            media = [self.media(part.source, part.modality, **part.options) for part in parts]
        if len(media) != len(parts):
            raise chat.ChatError(f"the messages name {len(parts)} recordings but {len(media)} were given")
        ids, trained = self._ids_and_mask(render(conversation, self.form, add_generation_prompt))
        encoded = Encoded([], [], list(media))
        placeholders = set(self.token_ids.values())
        waiting = iter(media)
        for token, learned in zip(ids, trained, strict=True):
            expanded = [token]
            if token in placeholders:
                features = next(waiting)
                expanded = self.placeholder_ids(features.modality, features.layout)
            encoded.input_ids += expanded
            encoded.labels += expanded if learned else [IGNORE] * len(expanded)
        return encoded

    def _ids_and_mask(self, segments: Sequence[Segment]) -> tuple[tuple[int, ...], list[bool]]:
        """Ids of a conversation, with one placeholder per recording, and which of them are trained.

        The whole text is tokenized at once, as in vLLM: tokenizing its pieces may give other ids.
        """
        ids = self._tokens("".join(segment.text for segment in segments))
        trained = [False] * len(ids)
        before = ""
        for trains, answer in groupby(segments, lambda segment: segment.trained):
            if trains:
                start = sum(1 for _ in takewhile(bool, map(eq, self._tokens(before), ids)))
                stop = ids.index(self.end_id, start) + 1
                trained[start:stop] = [True] * (stop - start)
            before += "".join(segment.text for segment in answer)
        return ids, trained

    def encode_group(self, conversations: Sequence[Sequence[Mapping[str, Any]]]) -> Encoded:
        """Packs several conversations about the same recordings behind one copy of the media.

        They share the prefix up to the last placeholder or, without recordings, the longest common prefix.
        The remainders follow, each with positions that continue from the prefix, and the block mask of
        `collate` hides them from each other. Each question's loss is what it would be alone, at a third of
        the cost.

        Raises:
            ChatError: if the conversations don't begin with the same recordings.
        """
        first = self.encode(conversations[0])
        encodings = [first] + [self.encode(messages, media=first.media) for messages in conversations[1:]]
        if len(encodings) == 1:
            return first
        placeholders = set(self.token_ids.values())
        shared = 1 + max((i for i, token in enumerate(first.input_ids) if token in placeholders), default=-1)
        if not shared:
            columns = zip(*(encoding.input_ids for encoding in encodings), strict=False)
            shared = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, columns))
        packed = Encoded(
            first.input_ids[:shared], first.labels[:shared], first.media, list(range(shared)), [0] * shared
        )
        for number, encoding in enumerate(encodings, start=1):  # also the segment
            rest = encoding.input_ids[shared:]
            if encoding.input_ids[:shared] != packed.input_ids[:shared] or placeholders & set(rest):
                raise chat.ChatError(f"conversation {number} does not begin with the recordings of the first")
            packed.input_ids += rest
            packed.labels += encoding.labels[shared:]
            packed.position_ids += range(shared, shared + len(rest))  # type: ignore[operator]
            packed.segment_ids += [number] * len(rest)  # type: ignore[operator]
        return packed

    def collate(
        self, batch: Sequence[Encoded], padding_side: str = "right", pad_to_multiple_of: int = 1
    ) -> dict[str, torch.Tensor]:
        """Pads to the longest and stacks into the arguments of `model(**…)`; media are concatenated."""
        length = max(len(encoded.input_ids) for encoded in batch)
        length += -length % pad_to_multiple_of
        pad = self.tokenizer.pad_token_id

        def padded(rows: list[list[int]], value: int) -> torch.Tensor:
            table = torch.full((len(rows), length), value, dtype=torch.long)
            for row, values in zip(table, rows, strict=True):
                span = (
                    slice(0, len(values)) if padding_side == "right" else slice(length - len(values), length)
                )
                row[span] = torch.tensor(values)
            return table

        tensors = {
            "input_ids": padded([encoded.input_ids for encoded in batch], pad),
            "labels": padded([encoded.labels for encoded in batch], IGNORE),
            "attention_mask": padded([[1] * len(encoded.input_ids) for encoded in batch], 0),
        }
        if any(encoded.segment_ids for encoded in batch):
            segments = padded([encoded.segment_ids or [0] * len(encoded.input_ids) for encoded in batch], -1)
            positions = [encoded.position_ids or list(range(len(encoded.input_ids))) for encoded in batch]
            tensors["position_ids"] = padded(positions, 0)
            tensors["attention_mask"] = block_mask(segments)
        tensors.update(collate_media([item for encoded in batch for item in encoded.media]))  # type: ignore[arg-type]
        return tensors

    def batch(self, conversations: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, torch.Tensor]:
        """Conversations that end with a user message -> left-padded inputs for `generate()`."""
        tensors = self.collate(
            [self.encode(messages, add_generation_prompt=True) for messages in conversations], "left"
        )
        tensors.pop("labels")
        return tensors


def _pixels(windows: Sequence[Window]) -> torch.Tensor:
    """uint8 [windows, frames, 3, height, width]"""
    frames = np.stack([window.frames for window in windows])  # type: ignore[misc]
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 1, 4, 2, 3)))


AutoProcessor.register(MllmConfig, MllmProcessor, exist_ok=True)
