"""What several tests of data preparation need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def random_whisper(tmp_path_factory) -> Path:
    """A .pt file as openai-whisper writes them, tiny, with random weights."""
    import whisper

    torch.manual_seed(0)
    sizes = {"state": 8, "head": 1, "layer": 1}
    dims = whisper.ModelDimensions(
        n_mels=80,
        n_audio_ctx=1500,
        n_vocab=51865,
        n_text_ctx=448,
        **{f"n_{side}_{name}": size for side in ("audio", "text") for name, size in sizes.items()},
    )
    path = tmp_path_factory.mktemp("whisper") / "random.pt"
    weights = whisper.model.Whisper(dims).state_dict()
    torch.save({"dims": vars(dims), "model_state_dict": weights}, path)
    return path
