"""A model of another size for `mllm bench serve`, without a download."""

from __future__ import annotations

from pathlib import Path

# SmolLM2-135M's dimensions with random weights, since speed does not depend on them.
DIMENSIONS_135M = {
    "type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "tie_word_embeddings": True,
}
VOCABULARY_135M = 49152


def random_checkpoint(folder: Path) -> Path:
    """A checkpoint with nano's towers and a random decoder of SmolLM2-135M's dimensions, in bfloat16."""
    import torch

    from mllm.experiment import Model
    from mllm.models.build import build_model
    from mllm.models.checkpoint import save
    from serve.bench_engines import PROMPT, QUESTION

    torch.manual_seed(0)
    settings = Model(decoder=DIMENSIONS_135M, tokenizer_vocab=600)
    model, processor = build_model(settings, [PROMPT, QUESTION] * 20)
    model.resize_token_embeddings(VOCABULARY_135M, mean_resizing=False)
    return save(model, processor, folder, dtype=torch.bfloat16)
