"""Builds a new model from the `model` section of an experiment, and trains a tokenizer if there is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from mllm.errors import ChatError, ConfigError, MllmError
from mllm.media.windows import WindowSpec
from mllm.models.bases import base_folder
from mllm.models.checkpoint_check import in_one_line
from mllm.models.decoders import require_decoder
from mllm.models.deltas import ROOTS, PartBase, find_base
from mllm.models.sides import SIDES
from mllm.models.towers import WindowSize
from mllm.models.towers.settings import WRONG_PART, base_of, check_fields, tower_config
from mllm.records import chat
from mllm.records.chat_probe import chat_form_of

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from mllm.models.config import MllmConfig
    from mllm.models.model import MllmForConditionalGeneration
    from mllm.models.processor import MllmProcessor


def build_model(
    settings: Any, texts: Iterable[str] | None = None
) -> tuple[MllmForConditionalGeneration, MllmProcessor]:
    """Builds a new model and its processor from the `model` section of an experiment.

    Each of `decoder`, `video`, `audio`, `text` is a base (see `mllm.models.bases`), a hub id or a folder
    (weights and config from there), or a dict: with a `type` and fields of that type's transformers config
    (random weights), or, for a tower, with `from`, a base, a hub id or a folder, and the fields in which it
    differs. `video`, `audio` or `text` may be None.

    Args:
        settings: `experiment.model`.
        texts: training data of the tokenizer, if the decoder is trained from scratch.

    Raises:
        ConfigError: for an unknown type or field, or sizes that do not fit together.
    """
    from mllm.models.model import MllmForConditionalGeneration
    from mllm.models.processor import MllmProcessor

    if isinstance(settings.decoder, str):
        require_decoder(_config(settings.decoder, "decoder"))
    tokenizer, new_token_ids = _tokenizer(settings, texts)
    text_config, decoder = _decoder(settings, tokenizer)
    space_tokenizer = _space_tokenizer(settings)
    try:
        config = _model_config(settings, text_config, tokenizer, new_token_ids, space_tokenizer is not None)
        model = MllmForConditionalGeneration(config)
    except MllmError:
        raise
    except ValueError as error:
        raise ConfigError(f"model: {error}") from None
    if decoder is not None:
        model.model.language_model.load_state_dict(decoder.get_decoder().state_dict())
        model.lm_head.load_state_dict(decoder.get_output_embeddings().state_dict())
        model.tie_weights()
    model.model.match_projectors()
    _load_towers(model, settings)
    model.bases = _bases(model, settings)
    model.generation_config = greedy_generation(config)
    return model, MllmProcessor.from_config(tokenizer, config, space_tokenizer)


def _decoder(settings: Any, tokenizer: PreTrainedTokenizerFast) -> tuple[Any, Any]:
    """The decoder's config, and the pretrained decoder, or None if it is trained from scratch."""
    from transformers import AutoModelForCausalLM

    decoder = None
    if isinstance(settings.decoder, str):
        with in_one_line(f"model.decoder: {settings.decoder}", WRONG_PART):
            decoder = AutoModelForCausalLM.from_pretrained(base_folder(settings.decoder), dtype=torch.float32)
        if decoder.get_input_embeddings().num_embeddings < len(tokenizer):
            decoder.resize_token_embeddings(len(tokenizer))
        config = decoder.config
    else:
        config = _config(settings.decoder, "decoder", vocab_size=len(tokenizer))
    config.update(
        {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": _answer_ends(tokenizer, decoder),
            "pad_token_id": tokenizer.pad_token_id,
        }
    )
    return config, decoder


def _space_tokenizer(settings: Any) -> Any:
    """The tokenizer of a pretrained text tower; None if the tower reads the decoder's ids."""
    from transformers import AutoTokenizer

    base = base_of(settings.text)
    if base is None:
        if "prefix" in (settings.text or {}):
            raise ConfigError("model.text.prefix is for a text tower with its own tokenizer: give it a base")
        return None
    with in_one_line(f"model.text: the tokenizer of {base}", WRONG_PART):
        return AutoTokenizer.from_pretrained(base_folder(base))


def _model_config(
    settings: Any,
    text_config: Any,
    tokenizer: PreTrainedTokenizerFast,
    new_token_ids: list[int] | None,
    own_space_tokenizer: bool,
) -> MllmConfig:
    from mllm.models.config import MllmConfig, Side

    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in chat.PLACEHOLDERS.items()}
    text_ids: dict[str, Any] = {}
    if not own_space_tokenizer:
        text_ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    window = WindowSize(settings.window_seconds, settings.frames_per_window)
    parts = {side: getattr(settings, side) for side in SIDES}
    return MllmConfig(
        text_config=text_config,
        sides={
            side: Side(tower_config(part, side, window), getattr(settings, f"{side}_queries"))
            for side, part in parts.items()
            if part is not None
        },
        space_config=settings.text and tower_config(settings.text, "text", window, **text_ids),
        space_tokenizer=own_space_tokenizer,
        space_prefix="" if isinstance(settings.text, str) else (settings.text or {}).get("prefix", ""),
        qformer_width=settings.qformer.width,
        qformer_layers=settings.qformer.layers,
        qformer_heads=settings.qformer.heads,
        window_seconds=settings.window_seconds,
        frames_per_window=settings.frames_per_window,
        max_windows=settings.max_windows,
        time_marks=settings.time_marks,
        embedding_dim=settings.embedding_dim,
        video_token_id=ids["video"],
        audio_token_id=ids["audio"],
        image_token_id=ids["image"],
        new_token_ids=new_token_ids,
    )


def _load_towers(model: MllmForConditionalGeneration, settings: Any) -> None:
    """Loads the weights of towers that have a base."""
    towers = dict(model.model.towers)
    if settings.text is not None:
        towers["text"] = model.model.space.text_tower
    for name, tower in towers.items():
        if base := base_of(getattr(settings, name)):
            with in_one_line(f"model.{name}: {base}", WRONG_PART):
                tower.load_pretrained(base)


def _bases(model: MllmForConditionalGeneration, settings: Any) -> dict[str, PartBase]:
    """The bases of the model's parts whose weights can be found again."""
    names = model.state_dict().keys()
    found = {
        part: find_base(part, name, names)
        for part in ROOTS
        if (name := base_of(getattr(settings, part))) is not None
    }
    return {part: base for part, base in found.items() if base is not None}


def window_spec(settings: Any) -> WindowSpec:
    """How a model with these settings cuts recordings.

    Raises:
        ConfigError: if its video tower cannot be found.
    """
    window = WindowSize(settings.window_seconds, settings.frames_per_window)
    size = 1 if settings.video is None else tower_config(settings.video, "video", window).image_size
    return WindowSpec(*window, settings.max_windows, size)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer, which encodes any text; `vocabulary` includes special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(chat.SPECIAL_TOKENS) - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def _tokenizer(
    settings: Any, texts: Iterable[str] | None
) -> tuple[PreTrainedTokenizerFast, list[int] | None]:
    """The decoder's tokenizer with the tokens of prompts, and ids that are new to a pretrained decoder."""
    from transformers import AutoTokenizer

    if isinstance(settings.decoder, str):
        with in_one_line(f"model.decoder: the tokenizer of {settings.decoder}", WRONG_PART):
            tokenizer = AutoTokenizer.from_pretrained(base_folder(settings.decoder))
    elif texts is None:
        raise ConfigError(
            "model.decoder starts from nothing: give build_model texts to train its tokenizer on"
        )
    else:
        tokenizer = train_tokenizer(texts, settings.tokenizer_vocab)
    known = tokenizer.get_vocab()
    added: dict[str, Any]
    if tokenizer.chat_template:  # the decoder keeps its own chat format
        added = {"extra_special_tokens": list(chat.PLACEHOLDERS.values())}
        if tokenizer.pad_token is None:
            added["pad_token"] = chat.PAD_TOKEN
    else:
        added = {
            "bos_token": tokenizer.bos_token or chat.BOS_TOKEN,
            "eos_token": chat.END_TOKEN,
            "pad_token": chat.PAD_TOKEN,
            "extra_special_tokens": list(chat.SPECIAL_TOKENS),
        }
    tokenizer.add_special_tokens(added, replace_extra_special_tokens=False)
    tokenizer.padding_side = "right"
    try:
        chat_form_of(tokenizer)
    except ChatError as error:
        raise ConfigError(f"model.decoder: {settings.decoder}: {error}") from None
    if not isinstance(settings.decoder, str):
        return tokenizer, None
    return tokenizer, sorted(id for token, id in tokenizer.get_vocab().items() if token not in known)


def _answer_ends(tokenizer: PreTrainedTokenizerFast, decoder: PreTrainedModel | None) -> int | list[int]:
    """Ids of the tokens that end an answer: first that of the chat format, then the decoder's own.

    In our own format only <|end|> does: a base model's end-of-text token could end an answer in mid-sentence.
    """
    end: int = tokenizer.convert_tokens_to_ids(chat_form_of(tokenizer).end_token)
    if decoder is None or not tokenizer.chat_template:
        return end
    own = decoder.generation_config.eos_token_id
    ends = dict.fromkeys([end, tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])])
    return [token for token in ends if token is not None]


def _config(component: str | Mapping[str, Any], part: str, **fixed: Any) -> PreTrainedConfig:
    """The transformers config of a decoder; `fixed` holds the fields that follow from other settings."""
    from transformers import CONFIG_MAPPING, AutoConfig

    if isinstance(component, str):
        with in_one_line(f"model.{part}: {component}", WRONG_PART):
            config = AutoConfig.from_pretrained(base_folder(component))
        config.update(fixed)
        return config
    fields = dict(component)
    kind = fields.pop("type", None)
    if kind not in CONFIG_MAPPING:
        raise ConfigError(
            f"model.{part}.type is {kind!r}: name a transformers model type, such as llama or qwen3"
        )
    config_class = CONFIG_MAPPING[kind]
    check_fields(fields, set(config_class().to_dict()), fixed, part, config_class.__name__)
    try:
        return config_class(**fields | fixed)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model.{part}: {error}") from None


def greedy_generation(config: MllmConfig) -> GenerationConfig:
    """Greedy decoding, with the decoder's own BOS, pad and end tokens."""
    from transformers import GenerationConfig

    decoder = config.text_config
    return GenerationConfig(
        do_sample=False,
        bos_token_id=decoder.bos_token_id,
        eos_token_id=decoder.eos_token_id,
        pad_token_id=decoder.pad_token_id,
    )
