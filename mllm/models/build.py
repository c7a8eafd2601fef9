"""A new model from the `model` section of an experiment, its tokenizer trained where there is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch

from mllm.errors import ChatError, ConfigError, MllmError
from mllm.media.windows import WindowSpec
from mllm.models.checkpoint_check import in_one_line
from mllm.models.decoders import require_decoder
from mllm.records import chat
from mllm.records.chat_probe import chat_form_of

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

    from mllm.models.config import MllmConfig
    from mllm.models.model import MllmForConditionalGeneration
    from mllm.models.processor import MllmProcessor

WRONG_PART = "give a folder that transformers loads, or a hub id while online"


def build_model(
    settings: Any, texts: Iterable[str] | None = None
) -> tuple[MllmForConditionalGeneration, MllmProcessor]:
    """A new model and its processor from the `model` section of an experiment.

    Each of `decoder`, `video`, `audio`, `text` is a hub id or a folder (weights and config from there), or a
    dict with a `type` and the fields of that type's transformers config (random weights).

    Args:
        settings: `experiment.model`.
        texts: what the tokenizer is trained on where the decoder starts from nothing.

    Raises:
        ConfigError: for an unknown type or field, or sizes that do not fit together.
    """
    from transformers import AutoModelForCausalLM

    from mllm.models.config import MllmConfig
    from mllm.models.model import MllmForConditionalGeneration
    from mllm.models.processor import MllmProcessor

    if isinstance(settings.decoder, str):
        require_decoder(_config(settings.decoder, "decoder"))
    tokenizer = _tokenizer(settings, texts)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in chat.PLACEHOLDERS.items()}
    decoder = None
    if isinstance(settings.decoder, str):
        with in_one_line(f"model.decoder: {settings.decoder}", WRONG_PART):
            decoder = AutoModelForCausalLM.from_pretrained(settings.decoder, dtype=torch.float32)
        if decoder.get_input_embeddings().num_embeddings < len(tokenizer):
            decoder.resize_token_embeddings(len(tokenizer))
        text_config = decoder.config
    else:
        text_config = _config(settings.decoder, "decoder", vocab_size=len(tokenizer))
    text_config.update(
        {
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": _answer_ends(tokenizer, decoder),
            "pad_token_id": tokenizer.pad_token_id,
        }
    )
    space_config = None
    if settings.text is not None:
        space_config = _config(
            settings.text, "text", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id
        )
    try:
        config = MllmConfig(
            text_config=text_config,
            video_config=_config(settings.video, "video", num_frames=settings.frames_per_window),
            audio_config=_config(settings.audio, "audio"),
            space_config=space_config,
            video_queries=settings.video_queries,
            audio_queries=settings.audio_queries,
            qformer_width=settings.qformer.width,
            qformer_layers=settings.qformer.layers,
            qformer_heads=settings.qformer.heads,
            window_seconds=settings.window_seconds,
            frames_per_window=settings.frames_per_window,
            max_windows=settings.max_windows,
            embedding_dim=settings.embedding_dim,
            video_token_id=ids["video"],
            audio_token_id=ids["audio"],
            image_token_id=ids["image"],
        )
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
    for part, tower in (("video", model.model.video_tower), ("audio", model.model.audio_tower)):
        if isinstance(getattr(settings, part), str):
            _load_tower(tower, getattr(settings, part))
    model.generation_config = greedy_generation(config)
    return model, MllmProcessor.from_config(tokenizer, config)


def window_spec(settings: Any) -> WindowSpec:
    """How a model with these settings cuts recordings.

    Raises:
        ConfigError: its video tower cannot be found.
    """
    return WindowSpec(
        settings.window_seconds,
        settings.frames_per_window,
        settings.max_windows,
        _config(settings.video, "video").image_size,
    )


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that can spell anything, with our special tokens among `vocabulary`."""
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


def _tokenizer(settings: Any, texts: Iterable[str] | None) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    if isinstance(settings.decoder, str):
        with in_one_line(f"model.decoder: the tokenizer of {settings.decoder}", WRONG_PART):
            tokenizer = AutoTokenizer.from_pretrained(settings.decoder)
    elif texts is None:
        raise ConfigError(
            "model.decoder starts from nothing: give build_model texts to train its tokenizer on"
        )
    else:
        tokenizer = train_tokenizer(texts, settings.tokenizer_vocab)
    added: dict[str, Any]
    if tokenizer.chat_template:  # the decoder keeps the chat form that it knows
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
    return tokenizer


def _answer_ends(tokenizer: PreTrainedTokenizerFast, decoder: PreTrainedModel | None) -> int | list[int]:
    """Ids of the tokens that end an answer: that of the chat form first, then the decoder's own.

    In our form only <|end|> does: a base model's end marker would end an answer in mid-sentence of a chat.
    """
    end: int = tokenizer.convert_tokens_to_ids(chat_form_of(tokenizer).end_token)
    if decoder is None or not tokenizer.chat_template:
        return end
    own = decoder.generation_config.eos_token_id
    ends = dict.fromkeys([end, tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])])
    return [token for token in ends if token is not None]


def _config(component: str | Mapping[str, Any], part: str, **fixed: Any) -> PreTrainedConfig:
    """The transformers config of one component; `fixed` are the fields that other settings decide."""
    from transformers import CONFIG_MAPPING, AutoConfig

    if isinstance(component, str):
        with in_one_line(f"model.{part}: {component}", WRONG_PART):
            config = AutoConfig.from_pretrained(component)
        config.update(fixed)
        return config
    fields = dict(component)
    kind = fields.pop("type", None)
    if kind not in CONFIG_MAPPING:
        raise ConfigError(
            f"model.{part}.type is {kind!r}: name a transformers model type, such as llama or whisper"
        )
    config_class = CONFIG_MAPPING[kind]
    known = set(config_class().to_dict())
    for name, value in fields.items():
        if value != fixed.get(name, value):
            needed = fixed[name]
            raise ConfigError(
                f"model.{part}.{name} is {value}, but the rest of the model needs {needed}: drop it"
            )
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f": did you mean {near[0]}?" if near else f": see the fields of {config_class.__name__}"
            raise ConfigError(f"model.{part} has no field '{name}'{hint}")
    try:
        return config_class(**fields | fixed)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model.{part}: {error}") from None


def _load_tower(tower: Any, name: str) -> None:
    """Pretrained weights into a tower; time embeddings are stretched to another number of frames."""
    from transformers import AutoModel

    with in_one_line(f"the tower {name}", WRONG_PART):
        source = AutoModel.from_pretrained(name, dtype=torch.float32)
    weights = getattr(source, "encoder", source) if not hasattr(source, "embeddings") else source
    state, wanted = weights.state_dict(), tower.encoder.state_dict()
    for key, value in state.items():
        if key in wanted and value.shape != wanted[key].shape and key.endswith("time_embeddings"):
            length = wanted[key].shape[1]
            state[key] = torch.nn.functional.interpolate(
                value.transpose(1, 2), length, mode="linear"
            ).transpose(1, 2)
    try:
        tower.encoder.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(f"{name} does not fit the tower: {str(error).splitlines()[-1].strip()}") from None


def greedy_generation(config: MllmConfig) -> GenerationConfig:
    """Greedy, with the decoder's own BOS, pad and end tokens."""
    from transformers import GenerationConfig

    decoder = config.text_config
    return GenerationConfig(
        do_sample=False,
        bos_token_id=decoder.bos_token_id,
        eos_token_id=decoder.eos_token_id,
        pad_token_id=decoder.pad_token_id,
    )
