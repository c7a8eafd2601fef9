"""The processor's transformers interface: calls with conversations, or with texts and lists of media.

    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    ids = model.generate(**inputs, max_new_tokens=48)

No recording is silently dropped: it is encoded, or the error names the right call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from transformers import BatchFeature, ProcessorMixin

from mllm.errors import ChatError
from mllm.models.encoded import IGNORE, Encoded
from mllm.records import chat

if TYPE_CHECKING:
    from mllm.models.processor import MllmProcessor

RIGHT_CALL = "processor.apply_chat_template(messages, tokenize=True, return_dict=True) encodes both together"
HUB_KEYS = ("url", "path")  # how transformers names the source of a media part
HONOURED: dict[str, tuple[Any, ...]] = {"return_tensors": ("pt",), "padding": (True, "longest")}


class TransformersCalls(ProcessorMixin):
    """The two processor calls that users of transformers know."""

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        **options: Any,
    ) -> BatchFeature:
        """Encodes rendered texts together with the recordings of their placeholders; see `encode_texts`."""
        media = {"image": images, "video": videos, "audio": audio}
        texts = [text] if isinstance(text, str) else text or []
        if any(token in one for one in texts for token in chat.PLACEHOLDERS.values()) or any(
            sources is not None for sources in media.values()
        ):
            return encode_texts(cast("MllmProcessor", self), text, media, options)
        return super().__call__(text=text, **options)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        **options: Any,
    ) -> Any:
        """Renders a conversation, or a list of them, as text or (`tokenize`) as inputs of `generate()`.

        A media part may also name its source by `url` or `path`, as in transformers.

        Raises:
            ChatError: for malformed messages, or if the recordings would be left out.
            MediaError: for a recording that cannot be read.
        """
        several = isinstance(conversation, list | tuple) and len(conversation) > 0
        batched = several and not isinstance(conversation[0], Mapping)
        conversations = [in_our_form(messages) for messages in (conversation if batched else [conversation])]
        if not tokenize:
            return super().apply_chat_template(
                conversations if batched else conversations[0],
                chat_template,
                add_generation_prompt=add_generation_prompt,
                **options,
            )
        options["chat_template"] = chat_template
        batch = encode_conversations(
            cast("MllmProcessor", self), conversations, add_generation_prompt, options
        )
        if not return_dict and len(batch) > 2:
            raise ChatError("the ids alone leave the recordings out: say return_dict=True")
        return batch if return_dict else batch["input_ids"]


def encode_texts(
    processor: MllmProcessor,
    text: str | Sequence[str] | None,
    media: Mapping[str, Any],
    options: Mapping[str, Any],
) -> BatchFeature:
    """Rendered texts and their recordings -> left-padded inputs of `generate()`.

    Args:
        text: the output of `apply_chat_template(messages, tokenize=False)`.
        media: by modality, a source (path, bytes, data: URI, Clip) or a list of them, one per placeholder in
            the texts.
        options: the call's other arguments; only values that match the fixed behaviour are accepted.

    Raises:
        ChatError: if the number of placeholders differs from the number of recordings.
        MediaError: for a recording that cannot be read.
    """
    _refuse_options(options)
    texts = [text] if isinstance(text, str) else list(text or [])
    sources = {modality: _flat(given) for modality, given in media.items()}
    for modality, given in sources.items():
        token = chat.PLACEHOLDERS[modality]
        _check_each_text(texts, token, media[modality])
        written = sum(one.count(token) for one in texts)
        if written != len(given):
            raise ChatError(
                f"the text has {written} {token} but {len(given)} of {modality} were given: {RIGHT_CALL}"
            )
    waiting = {modality: iter(given) for modality, given in sources.items()}
    return _batch(processor, [_encode_text(processor, one, waiting) for one in texts])


def encode_conversations(
    processor: MllmProcessor,
    conversations: Sequence[list[chat.Message]],
    add_generation_prompt: bool,
    options: Mapping[str, Any],
) -> BatchFeature:
    """Conversations -> left-padded inputs of `generate()`.

    Raises:
        ChatError: for malformed messages, or an option that would not be honoured.
        MediaError: for a recording that cannot be read.
    """
    _refuse_options(options)
    return _batch(processor, [processor.encode(one, add_generation_prompt) for one in conversations])


def in_our_form(messages: Sequence[Mapping[str, Any]]) -> list[chat.Message]:
    """Copies of messages whose media parts name their source the way `mllm.records.chat` expects.

    Raises:
        ChatError: if these are no messages, or a part names two sources.
    """
    if not isinstance(messages, list | tuple) or not all(isinstance(one, Mapping) for one in messages):
        raise ChatError(f"a conversation is a list of messages, not {messages!r:.80}")

    def renamed(part: Any) -> Any:
        if not isinstance(part, Mapping) or part.get("type") not in chat.PLACEHOLDERS:
            return part
        if len(sources := [key for key in (part["type"], *HUB_KEYS) if key in part]) > 1:
            raise ChatError(f"a part of type {part['type']!r} has {' and '.join(sources)}: give one source")
        return {part["type"] if key in HUB_KEYS else key: value for key, value in part.items()}

    return [
        {**message, "content": [renamed(part) for part in message["content"]]}
        if isinstance(message.get("content"), list)
        else dict(message)
        for message in messages
    ]


def _encode_text(processor: MllmProcessor, text: str, waiting: Mapping[str, Iterator[Any]]) -> Encoded:
    modality_of = {token: modality for modality, token in processor.token_ids.items()}
    encoded = Encoded([], [])
    for token in processor.tokenizer.encode(text, add_special_tokens=False):
        modality = modality_of.get(token)
        if modality is None:
            encoded.input_ids.append(token)
            continue
        part = {"type": modality, modality: next(waiting[modality])}
        chat.validate_messages([{"role": "user", "content": [part]}])
        features = processor.media(part[modality], modality)
        encoded.media.append(features)
        encoded.input_ids += processor.placeholder_ids(modality, features.layout)
    encoded.labels = [IGNORE] * len(encoded.input_ids)
    return encoded


def _check_each_text(texts: Sequence[str], token: str, given: Any) -> None:
    """Raises ChatError if a list for each text has another number of recordings than its text."""
    if not (
        isinstance(given, list | tuple) and given and all(isinstance(own, list | tuple) for own in given)
    ):
        return
    if len(given) != len(texts):
        raise ChatError(f"there are {len(texts)} texts but {len(given)} lists of recordings: give each one")
    for index, (text, own) in enumerate(zip(texts, given, strict=True)):
        if (written := text.count(token)) != len(own):
            raise ChatError(f"text {index} has {written} {token} but {len(own)} were given: {RIGHT_CALL}")


def _batch(processor: MllmProcessor, encoded: Sequence[Encoded]) -> BatchFeature:
    tensors = processor.collate(encoded, "left")
    del tensors["labels"]
    return BatchFeature(tensors)


def _refuse_options(options: Mapping[str, Any]) -> None:
    for name, value in options.items():
        if value not in (None, False, *HONOURED.get(name, ())):
            raise ChatError(
                f"{name}={value!r} is not honoured where recordings are encoded (to torch tensors, padded on "
                "the left): leave it out"
            )


def _flat(given: Any) -> list[Any]:
    """Flattens a source, a list of sources, or a list per text."""
    if given is None:
        return []
    if not isinstance(given, list | tuple):
        return [given]
    return [source for item in given for source in _flat(item)]
