"""The model as vLLM runs it: towers, Q-Formers and projectors from `models.model`, the decoder from vLLM.

Read top-down: info (the model's inputs) → parser (what clients may send) → dummy inputs (for sizing) →
processor (features and prompt) → model. A video is one item: its windows' time marks are text, its video and
audio tokens are embeddings, in the order of `MllmProcessor.placeholder_ids`, as in training.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import nn
from transformers import BatchFeature
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMultiModal, SupportsPP
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdateDetails,
)

from mllm.errors import MediaError, MllmError
from mllm.media.clip import Clip
from mllm.media.recording import SAMPLE_RATE
from mllm.media.windows import Window, WindowLayout
from mllm.models.checkpoint_check import check_weights
from mllm.models.deltas import is_delta
from mllm.models.encoded import MediaFeatures
from mllm.models.model import SIDE_OF, MediaEncoder, weight_shapes
from mllm.models.processor import PLACEHOLDERS, MllmProcessor
from mllm.models.sides import SIDES
from mllm.vllm.names import NameMapper, numberless
from mllm.vllm.recordings import ServedRecording, read_recording, settings_of, use_processor

Layout = list[WindowLayout]


class MllmProcessingInfo(BaseProcessingInfo):
    """The model's modalities, and how many tokens an item may cost."""

    def __init__(self, ctx):
        super().__init__(ctx)
        use_processor(self.get_hf_processor())

    def get_hf_processor(self, **kwargs: object) -> MllmProcessor:
        # Window settings belong to the checkpoint; requests cannot change them.
        return self.ctx.get_hf_processor(MllmProcessor)

    def get_default_tok_params(self):
        return (
            super().get_default_tok_params().with_kwargs(add_special_tokens=False)
        )  # the template writes BOS

    def get_data_parser(self) -> MultiModalDataParser:
        return RecordingParser(self.get_hf_processor())

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        sides = self.get_hf_processor().sides
        # A model without picture uses the sound of a video.
        return {
            modality: None for modality in PLACEHOLDERS if modality == "video" or SIDE_OF[modality] in sides
        }

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        processor = self.get_hf_processor()
        queries, windows = processor.queries, processor.max_windows
        most = {
            "video": windows * sum(queries.values()),
            "audio": windows * queries.get("audio", 0),
            "image": queries.get("video", 0),
        }
        return {modality: most[modality] for modality in self.get_supported_mm_limits()}


class RecordingItems(ProcessorBatchItems):
    """Recordings of one modality; vLLM's caches identify them by the digest of their content."""

    def get_item_for_hash(self, index: int) -> Any:
        recording = self.data[index]
        return None if recording is None else recording.digest

    def get_processor_data(self) -> Mapping[str, object]:
        return {self.modality: self.get_all()}


class RecordingParser(MultiModalDataParser):
    """Accepts what the connector read; from `LLM.generate` also paths, bytes, Clips, images and sound."""

    def __init__(self, processor: MllmProcessor):
        super().__init__()
        self.processor = processor

    def _get_subparsers(self):
        return {modality: partial(self._recordings, modality) for modality in PLACEHOLDERS}

    def _recordings(self, modality: str, data: Any) -> RecordingItems | None:
        if data is None:
            return None
        items = data if isinstance(data, list) else [data]
        return RecordingItems([self._recording(modality, item) for item in items], modality)

    def _recording(self, modality: str, item: Any) -> ServedRecording | None:
        # None: the client referred to a cached item by its uuid.
        if item is None or isinstance(item, ServedRecording):
            return item
        if isinstance(item, MediaWithBytes):  # from vLLM's own connector
            item = item.original_bytes
        elif isinstance(item, Image.Image):
            item = _png(item)
        elif isinstance(item, tuple) and len(item) == 2 and modality == "audio":
            item = _wav(*item)
        elif isinstance(item, np.ndarray) and item.ndim == 1 and modality == "audio":
            item = _wav(item, SAMPLE_RATE)
        if not isinstance(item, (bytes, str, Path, Clip)):
            raise MediaError(
                f"cannot read {modality} from {type(item).__name__}: give a path, bytes or a Clip"
            )
        return read_recording(self.processor, item, modality)


def _png(image: Image.Image) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, "PNG")
        return buffer.getvalue()


def _wav(waveform: np.ndarray, rate: float) -> bytes:
    with io.BytesIO() as buffer:
        soundfile.write(buffer, np.asarray(waveform, np.float32).T, int(rate), format="WAV", subtype="FLOAT")
        return buffer.getvalue()


class MllmDummyInputsBuilder(BaseDummyInputsBuilder[MllmProcessingInfo]):
    """The largest recording, from which vLLM computes how much memory to reserve."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return "".join(token * mm_counts.get(modality, 0) for modality, token in PLACEHOLDERS.items())

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]):
        processor = self.info.get_hf_processor()
        size, seconds = processor.image_size, processor.window_seconds
        frames = np.zeros((processor.frames_per_window, size, size, 3), np.uint8)
        silence = np.zeros(round(seconds * SAMPLE_RATE), np.float32)
        windows = [
            Window(i * seconds, (i + 1) * seconds, frames, silence) for i in range(processor.max_windows)
        ]

        def dummy(modality: str) -> ServedRecording:
            features = processor.media_from_windows(windows[:1] if modality == "image" else windows, modality)
            return ServedRecording(None, modality, f"dummy {modality}", features, settings_of(processor))

        return {modality: [dummy(modality)] * mm_counts.get(modality, 0) for modality in PLACEHOLDERS}


class MllmMultiModalProcessor(BaseMultiModalProcessor[MllmProcessingInfo]):
    """Turns recordings into tensors for the engine, and each placeholder into its item's tokens."""

    def _call_hf_processor(
        self, hf_data: Mapping[str, object], hf_kwargs: Mapping[str, object]
    ) -> BatchFeature:
        processor = self.info.get_hf_processor()
        tensors: dict[str, Any] = {}
        for modality, recordings in hf_data.items():
            items = [recording.features_for(processor) for recording in recordings]  # type: ignore[attr-defined]
            if modality == "image":
                tensors["image_pixels"] = torch.cat([item.pixel_values for item in items])
            else:
                said = [recording.said for recording in recordings]  # type: ignore[attr-defined]
                tensors[f"{modality}_said"] = [torch.tensor(ids, dtype=torch.long) for ids in said]
                tensors |= self._window_tensors(modality, items, processor)
        return BatchFeature(tensors)

    def _window_tensors(
        self, modality: str, items: Sequence[MediaFeatures], processor: MllmProcessor
    ) -> dict[str, Any]:
        """Concatenated tensors of all items; an item without picture or sound adds no rows."""
        tensors: dict[str, Any] = {
            # Seconds as float64: the model's bfloat16 could not distinguish 01:00 from 01:01.
            f"{modality}_layout": [torch.tensor(item.layout, dtype=torch.float64) for item in items],
        }
        for side in processor.sides:
            if side == "video" and modality == "audio":
                continue  # its windows have no picture
            values, counts = zip(*(_side_tensors(item, side, processor) for item in items), strict=True)
            joined = torch.cat(values)
            if joined.is_floating_point():
                joined = joined.to(self.info.ctx.model_config.dtype)
            tensors[f"{modality}_{side}_values"] = joined
            tensors[f"{modality}_{side}_counts"] = torch.cat(counts)
            tensors[f"{modality}_{side}_sizes"] = torch.tensor([len(count) for count in counts])
        return tensors

    def _get_mm_fields_config(self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]):
        none = torch.zeros(0, dtype=torch.long)
        fields = {"image_pixels": MultiModalFieldConfig.batched("image")}
        for modality in ("video", "audio"):
            for name in ("layout", "said"):
                fields[f"{modality}_{name}"] = MultiModalFieldConfig.batched(modality, keep_on_cpu=True)
            for side in SIDES:
                sizes = hf_inputs.get(f"{modality}_{side}_sizes", none)
                for name in ("values", "counts"):
                    fields[f"{modality}_{side}_{name}"] = MultiModalFieldConfig.flat_from_sizes(
                        modality, sizes
                    )
        return fields

    def _get_prompt_updates(self, mm_items, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs):
        processor = self.info.get_hf_processor()
        token_ids = processor.token_ids

        def tokens_of(modality: str, index: int) -> PromptUpdateDetails:
            layout: Layout = []
            said: list[int] = []
            if modality != "image":
                item = out_mm_kwargs[modality][index]
                layout, said = (
                    layout_of(item[f"{modality}_layout"].data),
                    item[f"{modality}_said"].data.tolist(),
                )
            ids = processor.placeholder_ids(modality, layout) + said
            return PromptUpdateDetails.select_token_ids(ids, list(token_ids.values()))

        return [
            PromptReplacement(modality, [token_ids[modality]], partial(tokens_of, modality))
            for modality in mm_items
        ]


def _side_tensors(
    item: MediaFeatures, side: str, processor: MllmProcessor
) -> tuple[torch.Tensor, torch.Tensor]:
    """A recording's chunks for a side's tower, and how many windows each holds."""
    values, counts = item.input_features, item.window_counts
    if side == "video":
        values = item.pixel_values
        counts = torch.ones(0 if values is None else len(values), dtype=torch.long)
    return processor.no_chunks(side) if values is None else values, counts


def layout_of(table: torch.Tensor) -> Layout:
    """[windows, 3] (the fields of `WindowLayout`) -> `MediaFeatures.layout`."""
    return [WindowLayout(start, bool(video), bool(audio)) for start, video, audio in table.tolist()]


@MULTIMODAL_REGISTRY.register_processor(
    MllmMultiModalProcessor, info=MllmProcessingInfo, dummy_inputs=MllmDummyInputsBuilder
)
class MllmForVllm(nn.Module, MediaEncoder, SupportsMultiModal, SupportsLoRA, SupportsPP):
    """`MllmForConditionalGeneration` for serving; loads the same weights, only renamed."""

    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    hf_to_vllm_mapper = NameMapper(
        orig_to_new_prefix={
            "model.language_model.": "language_model.model.",
            "lm_head.": "language_model.lm_head.",
            "model.space.": None,  # the shared space is for search, not for answers
            "model.": "",
        }
    )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return PLACEHOLDERS[modality.removesuffix("_embeds")]

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__()
        self.folder = Path(vllm_config.model_config.model)
        if is_delta(self.folder):
            raise MllmError(
                f"{self.folder} is bases and deltas, which vLLM does not join: start it by `mllm serve`, or "
                "give what `mllm export` writes"
            )
        self.config = config = vllm_config.model_config.hf_config
        text_config = config.text_config
        self.configure_mm_token_handling(  # type: ignore[operator]
            text_config.vocab_size, [config.video_token_id, config.audio_token_id, config.image_token_id]
        )
        with self._mark_tower_model(vllm_config, set(PLACEHOLDERS)):  # type: ignore[operator]
            self.build_media(config)
        architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[text_config.model_type]]
        with self._mark_language_model(vllm_config):  # type: ignore[operator]
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=text_config,
                architectures=architectures,
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors
        self.hf_to_vllm_mapper = replace(self.hf_to_vllm_mapper, modules=frozenset(self._adaptable_modules()))

    def _adaptable_modules(self) -> Iterator[str]:
        """Names of the decoder's modules; modules that vLLM packs into one have the names of adapters."""
        for name, _ in self.language_model.named_modules(prefix="language_model"):
            before, dot, last = numberless(name).rpartition(".")
            for part in self.packed_modules_mapping.get(last, [last]):
                yield f"{before}{dot}{part}"

    def get_mm_mapping(self) -> MultiModelKeys:
        return MultiModelKeys.from_string_field(
            language_model="language_model",
            connector=[f"{side}_{part}" for side in self.config.sides for part in ("qformer", "projector")],
            tower_model=[f"{side}_tower" for side in self.config.sides],
        )

    def embed_multimodal(self, **tensors: Any) -> list[torch.Tensor]:
        """Embeddings [tokens, hidden], one tensor per item, in the order of the item's placeholders."""
        if "image_pixels" in tensors:
            return list(self.projector("video")(self.image_queries(tensors["image_pixels"])))
        for modality in ("video", "audio"):
            if f"{modality}_layout" in tensors:
                return self._embed_windows(modality, tensors)
        return []

    def _embed_windows(self, modality: str, tensors: Mapping[str, Any]) -> list[torch.Tensor]:
        tokens_of: dict[str, Iterator[torch.Tensor]] = {}
        for side in self.config.sides:
            values = tensors.get(f"{modality}_{side}_values")
            if values is not None and len(values):
                queries = self.side_queries(side, values, tensors[f"{modality}_{side}_counts"])
                tokens_of[side] = iter(self.projector(side)(queries))
        items = []
        for table in tensors[f"{modality}_layout"]:
            tokens = [
                next(tokens_of[side])
                for window in layout_of(table)
                for side in SIDES
                if getattr(window, side)
            ]
            items.append(torch.cat(tokens))
        return items

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None, **kwargs: object):
        """Hidden states of the decoder; `inputs_embeds` already contains the media."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(
            input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds
        )

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(self._whole(weights), mapper=self.hf_to_vllm_mapper)

    def _whole(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields the weights, and checks them against config.json on the way."""
        held: dict[str, tuple[int, ...]] = {}
        wanted = weight_shapes(self.config)
        for name, tensor in weights:
            held[name] = tuple(tensor.shape)
            check_weights(self.folder, {name: held[name]}, {name: wanted[name]} if name in wanted else {})
            yield name, tensor
        check_weights(self.folder, held, wanted)
