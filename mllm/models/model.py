"""The model: windows of picture and sound become decoder tokens, and vectors for the search index.

The layout follows transformers (`model` holds everything but `lm_head`), so Trainer, TRL, PEFT and
`generate()` work unmodified. vLLM shares `MediaEncoder`, with the same attribute names, so the same weights
load in both.

Notation: B batch, S sequence tokens, W windows in the batch, F frames, C channels, K audio chunks, Q queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict, cast

import torch
from torch import nn
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Cache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from mllm.models.adapters import EmbeddingHead, Projector, QFormer
from mllm.models.config import MllmConfig
from mllm.models.decoders import attention_of, behind_head, require_decoder
from mllm.models.deltas import PartBase
from mllm.models.towers import FrameTower, TextTower, Tower, find_tower

SIDE_OF = {"video": "video", "image": "video", "audio": "audio"}  # the side that encodes each modality


class MediaQueries(TypedDict, total=False):
    """Q-Former outputs of a batch, in order of appearance; a modality that does not occur is absent."""

    video: torch.Tensor  # [W, video Q, width]
    image: torch.Tensor  # [images, video Q, width]
    audio: torch.Tensor  # [W, audio Q, width]


class MediaEncoder:
    """Mixin of the Hugging Face model and the vLLM model: a tower, a Q-Former and a projector for each side.

    They are registered as `<side>_tower`, `<side>_qformer` and `<side>_projector`, so a weight has the same
    name in memory, in a checkpoint, in an adapter and in vLLM.
    """

    config: MllmConfig

    def build_media(self, config: MllmConfig) -> None:
        width, layers, heads = config.qformer_width, config.qformer_layers, config.qformer_heads
        for name, side in config.sides.items():
            tower = find_tower(side.tower.model_type)(side.tower, config.window)
            qformer = QFormer(side.queries, width, layers, heads, tower.width)
            setattr(self, f"{name}_tower", tower)
            setattr(self, f"{name}_qformer", qformer)
            setattr(self, f"{name}_projector", Projector(width, config.text_config.hidden_size))

    @property
    def towers(self) -> dict[str, Tower]:
        """The towers by side."""
        return {side: getattr(self, f"{side}_tower") for side in self.config.sides}

    def qformer(self, side: str) -> QFormer:
        return getattr(self, f"{side}_qformer")

    def projector(self, side: str) -> Projector:
        return getattr(self, f"{side}_projector")

    def side_queries(
        self, side: str, values: torch.Tensor, counts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The Q-Former outputs of a side for prepared chunks: [W, Q, qformer width].

        Args:
            values: [K, …]; for pictures, a chunk is a window.
            counts: [K], how many windows each chunk holds, from its start; None means one.
        """
        return self.qformer(side)(self.towers[side].windows(values, counts))

    def image_queries(self, values: torch.Tensor) -> torch.Tensor:
        """uint8 [images, C, height, width] -> [images, Q, qformer width], read as a video of equal frames."""
        tower = cast(FrameTower, self.towers["video"])
        return self.qformer("video")(tower.images(values, self.config.frames_per_window))


class SharedSpace(nn.Module):
    """Maps text, image, video and sound to unit vectors in one space, compared by dot product.

    Attributes:
        kept: a replacement for `pooled` that remembers texts (see `feature_cache.keep_texts`), or None.
    """

    kept: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    def __init__(self, config: MllmConfig):
        super().__init__()
        dim, width = config.embedding_dim, config.qformer_width
        self.text_tower = find_tower(config.space_config.model_type, TextTower)(config.space_config)
        self.text_head = nn.Linear(self.text_tower.width, dim)
        for name, side in config.sides.items():
            setattr(self, f"{name}_head", EmbeddingHead(side.queries, width, dim, config.max_windows))
        # Initialised as in CLIP (Radford et al., 2021): temperature 0.07, learned as a logarithm.
        self.logit_scale = nn.Parameter(torch.tensor(2.659))

    def text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """input_ids, attention_mask [texts, tokens] -> [texts, embedding_dim]."""
        mean = (self.kept or self.pooled)(input_ids, attention_mask)
        return functional.normalize(self.text_head(mean).float(), dim=-1)

    def pooled(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """input_ids, attention_mask [texts, tokens] -> [texts, width], the text tower's mean over tokens."""
        states = self.text_tower(input_ids, attention_mask)
        weights = attention_mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)

    @staticmethod
    def fuse(*vectors: torch.Tensor) -> torch.Tensor:
        """Sound and picture of the same clips, each [clips, embedding_dim] -> one unit vector per clip."""
        return functional.normalize(torch.stack(vectors).sum(0), dim=-1)


class MllmPreTrainedModel(PreTrainedModel):
    config_class = MllmConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules = ["QFormerLayer"]  # besides those of the towers and the decoder
    _skip_keys_device_placement = ["past_key_values"]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, QFormer):
            module.reset_queries()

    def enable_input_require_grads(self) -> None:
        """Does nothing: gradient checkpointing is never re-entrant here, so its inputs need no gradients.

        transformers and PEFT call this; their hook breaks on TimeSformer, whose patch embedding returns a
        tuple.
        """


class MllmModel(MllmPreTrainedModel, MediaEncoder):
    """Everything but the language-model head."""

    def __init__(self, config: MllmConfig):
        super().__init__(config)
        require_decoder(config.text_config)
        self.build_media(config)
        self.language_model = AutoModel.from_config(config.text_config, **attention_of(config.text_config))
        if config.space_config is not None:
            self.space = SharedSpace(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @torch.no_grad()
    def word_embeddings(self) -> torch.Tensor:
        """[vocabulary, hidden], looked up, since some families scale what they look up."""
        every = torch.arange(self.config.text_config.vocab_size, device=self.device)
        embeddings: torch.Tensor = self.get_input_embeddings()(every)
        return embeddings

    def match_projectors(self) -> None:
        """Scales media tokens to the norm of the word embeddings, before the adapters are first trained."""
        words = self.word_embeddings()
        for side in self.config.sides:
            self.projector(side).match(words)

    def query_outputs(
        self,
        pixel_values: torch.Tensor | None = None,
        image_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        window_counts: torch.Tensor | None = None,
    ) -> MediaQueries:
        """Runs towers and Q-Formers. The outputs do not depend on the question: reuse them across turns."""
        queries: MediaQueries = {}
        if pixel_values is not None and len(pixel_values):
            queries["video"] = self.side_queries("video", pixel_values)
        if image_values is not None and len(image_values):
            queries["image"] = self.image_queries(image_values)
        if input_features is not None and len(input_features):
            queries["audio"] = self.side_queries("audio", input_features, window_counts)
        return queries

    def embed_tokens_and_media(self, input_ids: torch.Tensor, queries: MediaQueries) -> torch.Tensor:
        """Token embeddings [B, S, hidden] with every placeholder replaced, in order, by a projected query.

        Raises:
            ValueError: if the number of placeholders differs from the number of media tokens.
        """
        embeds = self.get_input_embeddings()(input_ids)
        for modality, outputs in queries.items():
            projector = self.projector(SIDE_OF[modality])
            features = projector(outputs).flatten(0, 1).to(embeds.dtype)
            mask = torch.eq(input_ids, getattr(self.config, f"{modality}_token_id"))
            if int(mask.sum()) != len(features):
                raise ValueError(
                    f"found {int(mask.sum())} {modality} placeholders for {len(features)} {modality} tokens"
                )
            embeds = embeds.masked_scatter(mask.unsqueeze(-1), features)
        return embeds

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        window_counts: torch.Tensor | None = None,
        media_queries: MediaQueries | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states of the decoder [B, S, hidden].

        Args:
            attention_mask: [B, S], or boolean [B, 1, S, S] if several questions share one media prefix.
            media_queries: outputs of `query_outputs`; if given, the towers do not run.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            assert input_ids is not None
            if media_queries is None:
                media_queries = self.query_outputs(pixel_values, image_values, input_features, window_counts)
            inputs_embeds = self.embed_tokens_and_media(input_ids, media_queries)
        if attention_mask is not None and attention_mask.dim() == 4:
            attention_mask = self._block_mask(attention_mask, inputs_embeds.dtype)
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )

    def _block_mask(self, allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        # SDPA takes a boolean mask; eager attention would add it to the scores, silently wrong.
        if self.language_model.config._attn_implementation == "sdpa":
            return allowed
        return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min)

    def embed(self, side: str, queries: torch.Tensor, windows_per_clip: torch.Tensor) -> torch.Tensor:
        """A side's query outputs [W, Q, width] -> unit vectors [clips, embedding_dim]."""
        return getattr(self.space, f"{side}_head")(queries, windows_per_clip)


@dataclass
class MllmOutput(CausalLMOutputWithPast):
    """What `forward` returns: loss (if labels), logits [B, S, vocabulary], past_key_values."""


class MllmForConditionalGeneration(MllmPreTrainedModel, GenerationMixin):
    """The model with its language-model head: `generate()` answers, `model` embeds.

    Attributes:
        bases: the pretrained models that its parts were built from, by part (see `deltas`).
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: MllmConfig):
        super().__init__(config)
        self.bases: dict[str, PartBase] = {}
        self.model = MllmModel(config)
        self.lm_head: nn.Module = nn.Linear(
            config.text_config.hidden_size, config.text_config.vocab_size, bias=False
        )
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_head = value

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states of the decoder [..., hidden] -> logits [..., vocabulary], scaled as in its family."""
        return behind_head(self.lm_head(hidden), self.config.text_config)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        window_counts: torch.Tensor | None = None,
        media_queries: MediaQueries | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> MllmOutput:
        """Next-token logits, and the loss if labels [B, S] are given (-100 is not trained).

        Arguments as in `MllmModel.forward`; `logits_to_keep` counts from the end (0: all).
        """
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_values=image_values,
            input_features=input_features,
            window_counts=window_counts,
            media_queries=media_queries,
            use_cache=use_cache,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.logits(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.text_config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
        return MllmOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None = None,
        image_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        window_counts: torch.Tensor | None = None,
        media_queries: MediaQueries | None = None,
        is_first_iteration: bool = False,
        **kwargs,
    ) -> dict:
        inputs = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get(
            "use_cache", True
        ):  # later steps read the media from the cache
            inputs.update(
                pixel_values=pixel_values,
                image_values=image_values,
                input_features=input_features,
                window_counts=window_counts,
                media_queries=media_queries,
            )
        return inputs


def weight_shapes(config: MllmConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of a checkpoint's weights by name, given its config; without the head if it is tied."""
    with torch.device("meta"):
        state = MllmForConditionalGeneration(config).state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


AutoModel.register(MllmConfig, MllmModel, exist_ok=True)
AutoModelForCausalLM.register(MllmConfig, MllmForConditionalGeneration, exist_ok=True)
