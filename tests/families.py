"""Chat templates of families of decoders, written by hand from their public form, and tiny tokenizers."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.tiny import SMALL

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen 3: no default system prompt, and thoughts, which the last answer alone keeps.
QWEN3 = (
    "{% if messages[0].role == 'system' %}{{ '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
    "{% endif %}{% for message in messages %}{% if message.role == 'user' %}"
    "{{ '<|im_start|>user\n' + message.content + '<|im_end|>\n' }}{% elif message.role == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' + ('<think>\n\n</think>\n\n' if loop.last else '') + message.content }}"
    "{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + strftime_now('%d %b %Y') + '\n\n' }}"
    "{{ system + '<|eot_id|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# The first Mistral: markers that are plain text, the system's words in the first turn.
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ ' [INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
# The later one: markers that are special tokens, the system's words in the last turn, wherever that is.
MISTRAL_V3 = MISTRAL.replace("loop.first", "loop.last").replace("' [INST] '", "'[INST] '")
MISTRAL_V7 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST]' + message['content'] + '[/INST]' }}{% elif message['role'] == 'system' %}"
    "{{ '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}{% else %}"
    "{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}"
    "{% else %}{% set first = '' %}{% endif %}{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}"
    "{{ message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Phi 3 ends a conversation with another token than an answer; its markers have the names of ours.
PHI3 = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TURNS = ("<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>")
LLAMA = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>")
V7 = ("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")

# name: template, special tokens, BOS, EOS, kind of tokenizer
FAMILIES: dict[str, tuple[str, tuple[str, ...], str | None, str, str]] = {
    "smollm2": (SMOLLM2, CHATML, "<|im_start|>", "<|im_end|>", "bytes"),
    "qwen3": (QWEN3, CHATML, None, "<|im_end|>", "bytes"),
    "llama3": (LLAMA3, LLAMA, "<|begin_of_text|>", "<|eot_id|>", "bytes"),
    "mistral": (MISTRAL, ("<s>", "</s>"), "<s>", "</s>", "pieces"),
    "mistral_v3": (MISTRAL_V3, V7[:4], "<s>", "</s>", "pieces"),
    "mistral_v7": (MISTRAL_V7, V7, "<s>", "</s>", "bytes"),
    "gemma2": (GEMMA2, TURNS, "<bos>", "<eos>", "pieces"),
    "gemma3": (GEMMA3, TURNS, "<bos>", "<eos>", "pieces"),
    "phi3": (PHI3, ("<s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
             "<s>", "<|endoftext|>", "pieces"),
}  # fmt: skip

# How Llama 3 and Qwen cut text into words: a line break takes the white space before it along.
WORDS = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEXT = ["What is it? A bell.\n\nIt is\n [INST] model system assistant user [/INST] yes. a The a The"] * 9


@cache
def family_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of this family's kind, with its special tokens and template; trained on a few words."""
    template, special, bos, eos, kind = FAMILIES[name]
    backend = Tokenizer(models.BPE(byte_fallback=kind == "pieces"))
    if kind == "bytes":
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(WORDS, "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
    else:  # as SentencePiece: a space belongs to the word behind it, and one stands before the first word
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # while it is trained
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else [],
        special_tokens=list(special),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT, trainer)
    if kind == "pieces":
        backend = _with_bytes(backend)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token=eos,
        additional_special_tokens=list(special),
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def _with_bytes(trained: Tokenizer) -> Tokenizer:
    """The tokenizer with a token for each byte, for characters that it was not trained on."""
    written = json.loads(trained.to_str())
    written["pre_tokenizer"] = None
    vocabulary = written["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    return Tokenizer.from_str(json.dumps(written))


def decoder_folder(name: str, folder: Path, template: str | None = "own", tied: bool = True) -> Path:
    """A tiny LLaMA with the tokenizer of a family, as a folder that a decoder comes from."""
    tokenizer = copy.deepcopy(family_tokenizer(name))
    if template != "own":
        tokenizer.chat_template = template
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=512, tie_word_embeddings=tied, **SMALL
    )
    model = LlamaForCausalLM(config)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(FAMILIES[name][1][0])]
    model.generation_config = GenerationConfig(eos_token_id=ends)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
