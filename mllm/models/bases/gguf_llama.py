"""A LLaMA in a GGUF file, dequantised to bfloat16, with its own tokenizer and chat form.

transformers reads such files as well, in minutes, and leaves out how SmolLM2's tokenizer splits numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ENDS = {"bos": "bos", "eos": "eos", "pad": "padding"}  # our names of these tokens and those of GGUF
CONTROL = 3  # the type of a special token in tokenizer.ggml.token_type
Field = Callable[[str], Any]


def convert(files: Sequence[Path], folder: Path) -> None:
    """Writes a transformers folder from one GGUF file."""
    from gguf import GGUFReader, dequantize
    from transformers import GenerationConfig, LlamaConfig

    (file,) = files
    reader = GGUFReader(file)
    field: Field = lambda name: reader.fields[name].contents()  # noqa: E731
    heads = {"attn_q": field("llama.attention.head_count"), "attn_k": field("llama.attention.head_count_kv")}
    state = {}
    for tensor in reader.tensors:
        values = dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads:
            values = _halves(values, heads[part])
        state[_name(tensor.name)] = torch.tensor(values).to(torch.bfloat16)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    ends = {f"{name}_token_id": field(f"tokenizer.ggml.{long}_token_id") for name, long in ENDS.items()}
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=len(state["model.embed_tokens.weight"]),
        hidden_size=field("llama.embedding_length"),
        intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"),
        num_attention_heads=heads["attn_q"],
        num_key_value_heads=heads["attn_k"],
        max_position_embeddings=field("llama.context_length"),
        rms_norm_eps=float(f"{field('llama.attention.layer_norm_rms_epsilon'):.6g}"),  # stored as float32
        rope_parameters={"rope_type": "default", "rope_theta": field("llama.rope.freq_base")},
        tie_word_embeddings="lm_head.weight" not in state,
        dtype=torch.bfloat16,
        **ends,
    ).save_pretrained(folder)
    GenerationConfig(**ends).save_pretrained(folder)
    _tokenizer(field).save_pretrained(folder)


def _name(name: str) -> str:
    """The name of a weight in transformers."""
    *layer, part, kind = name.split(".")
    return f"model.layers.{layer[1]}.{LAYER_NAMES[part]}.{kind}" if layer else f"{NAMES[part]}.{kind}"


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of rotary pairs, side by side in GGUF, as transformers has them: all firsts, then all seconds."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[-1])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)


def _tokenizer(field: Field) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer, with its special tokens and the chat form.

    Raises:
        ValueError: if the model was trained with another way of cutting text than SmolLM2's.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if (cut := field("tokenizer.ggml.pre")) != "smollm":
        raise ValueError(f"its tokenizer cuts text as '{cut}'")
    tokens = field("tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ")) for pair in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: id for id, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = field("tokenizer.ggml.token_type")
    tokenizer.add_special_tokens(
        [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=field("llama.context_length"),
        chat_template=field("tokenizer.chat_template"),
        **{f"{name}_token": tokens[field(f"tokenizer.ggml.{long}_token_id")] for name, long in ENDS.items()},
        unk_token=tokens[field("tokenizer.ggml.unknown_token_id")],
        clean_up_tokenization_spaces=False,
    )
