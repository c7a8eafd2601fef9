"""The text side without torch says what the whole model says, of the same fingerprint; or it says nothing."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mllm.models.checkpoint import find_shipped, save
from mllm.search.embedder import Embedder
from mllm.search.index import Index
from mllm.search.text_embedder import TextEmbedder
from tests.pretrained import built_from_bases
from tests.tiny import tiny

TEXTS = ["a red star", "", "three <|video|> beeps, <|end|>", "Größe 日本 🎬", "word " * 300]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16])
def checkpoint(request, tmp_path_factory) -> Path:
    model, processor = tiny()
    return save(model, processor, tmp_path_factory.mktemp("run") / "tiny", dtype=request.param)


def test_it_says_what_the_model_says(checkpoint):
    for folder in (checkpoint, find_shipped("nano")):
        whole, text_side = Embedder.from_pretrained(folder), TextEmbedder.from_pretrained(folder)
        assert text_side is not None
        assert (text_side.name, text_side.dim) == (whole.name, whole.dim)
        assert text_side.fingerprint() == whole.fingerprint()
        np.testing.assert_allclose(text_side.embed_text(TEXTS), whole.embed_text(TEXTS), atol=2e-6)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_text_tower_with_its_own_tokenizer_and_base_needs_no_model(tmp_path, dtype):
    model, processor = built_from_bases(tmp_path / "bases")
    model.config.space_prefix = processor.space_prefix = "a red: "
    with torch.no_grad():
        model.model.space.text_tower.encoder.embeddings.word_embeddings.weight[7] += 1
        model.model.space.text_tower.encoder.embeddings.LayerNorm.bias += 1
    folder = save(model, processor, tmp_path / "model", dtype=dtype)
    whole, text_side = Embedder.from_pretrained(folder), TextEmbedder.from_pretrained(folder)
    assert text_side is not None
    assert text_side.fingerprint() == whole.fingerprint()
    texts = ["A red star.", "", "[SEP] bells [PAD] rings", "Größe 日本 🎬", "red " * 300]
    np.testing.assert_allclose(text_side.embed_text(texts), whole.embed_text(texts), atol=2e-6)
    with torch.no_grad():
        model.model.audio_tower.encoder.conv1.bias[0] += 1
    other = save(model, processor, tmp_path / "other", dtype=dtype)
    assert TextEmbedder.from_pretrained(other).fingerprint() != text_side.fingerprint()
    assert Embedder.from_pretrained(other).fingerprint() != whole.fingerprint()


def test_the_fingerprint_is_that_of_earlier_indexes():
    """Indexes are stamped with it: another way to compute it would make all of them foreign."""
    stamp = "dd9565080eb4"
    assert TextEmbedder.from_pretrained(find_shipped("nano")).fingerprint().startswith(stamp)


def changed(checkpoint: Path, folder: Path, file: str, **values) -> Path:
    shutil.copytree(checkpoint, folder)
    written = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(written | values))
    return folder


def test_another_vocabulary_or_cut_is_another_fingerprint(checkpoint, tmp_path):
    known = TextEmbedder.from_pretrained(checkpoint).fingerprint()
    half = changed(checkpoint, tmp_path / "a", "processor_config.json", window_seconds=1.0)
    other = changed(half, tmp_path / "b", "config.json", window_seconds=1.0)
    assert TextEmbedder.from_pretrained(other).fingerprint() != known
    assert Embedder.from_pretrained(other).fingerprint() != known


@pytest.mark.parametrize(
    ("file", "values", "reason"),
    [
        ("config.json", {"space_config": {"model_type": "bert", "hidden_act": "relu"}}, "bert with relu"),
        ("config.json", {"space_config": {"model_type": "roberta"}}, "text tower is roberta"),
        ("config.json", {"space_config": None}, "text tower is None"),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "GPT2Tokenizer"},
            "tokenizer is GPT2Tokenizer, not one of",
        ),
    ],
)
def test_a_kind_that_it_does_not_know_needs_the_whole_model(
    checkpoint, tmp_path, caplog, file, values, reason
):
    with caplog.at_level(logging.INFO, "mllm"):
        assert TextEmbedder.from_pretrained(changed(checkpoint, tmp_path / "it", file, **values)) is None
    (line,) = caplog.messages
    assert line.startswith(f"queries need the whole model of {tmp_path / 'it'}: ")
    assert reason in line


def test_a_folder_that_is_not_one_whole_checkpoint_needs_the_whole_model(checkpoint, tmp_path, caplog):
    adapter, damaged, unprocessed = (
        Path(shutil.copytree(checkpoint, tmp_path / name)) for name in ("adapter", "damaged", "unprocessed")
    )
    (adapter / "adapter").mkdir()
    (adapter / "adapter/adapter_config.json").write_text("{}")
    head = {"base_model.model.model.space.text_head.lora_A.weight": torch.zeros(1)}
    save_file(head, adapter / "adapter/adapter_model.safetensors")
    (damaged / "model.safetensors").write_bytes(b"1234567890")
    (unprocessed / "processor_config.json").write_text("{}")
    for folder, reason in (
        (adapter, "its adapter tunes more than the decoder"),
        (damaged, "it is damaged (ValueError: "),
        (unprocessed, "it is damaged (KeyError: 'video_queries')"),
        (tmp_path / "nowhere", "no checkpoint at "),
        ("owner/hub-id", "it is no folder with model.safetensors"),
    ):
        with caplog.at_level(logging.INFO, "mllm"):
            assert TextEmbedder.from_pretrained(folder) is None
        assert caplog.messages[-1].startswith(f"queries need the whole model of {folder}: {reason}")


def test_an_index_opens_with_the_model_that_filled_it(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("mllm.models.checkpoint.DEFAULT", "nano")
    assert Index.open(tmp_path / "shipped").embedder.name == str(find_shipped("nano").resolve())
    Index.open(tmp_path / "own", Embedder.from_pretrained(checkpoint))
    assert Index.open(tmp_path / "own").embedder.name == str(checkpoint)


def test_a_search_loads_no_torch(checkpoint, tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    embedder = Embedder.from_pretrained(checkpoint)
    index = Index.open(tmp_path / "index", embedder)
    index.add([tmp_path / "red.png"])
    script = """
import sys
from mllm.command.cli import main
try:
    main(["search", "a red star", "--index", sys.argv[1], "--json"])
except SystemExit as done:
    assert not done.code
print([name for name in ("torch", "transformers", "cv2", "av") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "index")], capture_output=True, text=True, check=True
    )
    hits, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    assert json.loads(hits)[0]["score"] == pytest.approx(index.search("a red star")[0].score, abs=1e-5)
