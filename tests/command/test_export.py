"""mllm.command.export: the command, and the model card that it writes."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from mllm.command.card import card_info, write_model_card
from mllm.command.export import export, export_command
from mllm.errors import MllmError
from mllm.models.checkpoint import save
from tests.tiny import tiny


def test_the_model_card_holds_its_tables(tmp_path):
    info = {
        "name": "nano",
        "summary": "A small model.",
        "facts": {"steps": "3,000"},
        "tables": {"Scores": [{"type": "colour", "val": 0.987, "blind": None}], "Empty": []},
        "notes": ["## Limits\n\nIt knows one world.\n"],
    }
    text = write_model_card(tmp_path, info).read_text()
    assert text.startswith("---\nlicense: apache-2.0")
    assert "| colour | 0.99 |  |" in text
    assert "- **steps**: 3,000" in text
    assert text.endswith("## Limits\n\nIt knows one world.\n")


def test_a_card_of_deltas_names_bases_and_what_was_reached(tmp_path):
    sha256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
    bases = {"decoder": {"name": "smollm2-135m", "sha256": sha256, "prefix": "model."}}
    (tmp_path / "bases.json").write_text(json.dumps(bases))
    target = {"title": "digits", "score": 0.9871, "count": 300, "low": 0.97, "high": 0.9951, "majority": 0.1}
    target |= {"blind": 0.1, "probe": None, "floor": 0.97, "aim": 0.985, "mark": "aim"}
    info = card_info(tmp_path, {"benchmark": "real", "splits": {"test": {"targets": [target]}}})
    card = write_model_card(tmp_path, info).read_text()
    model = "SmolLM2-135M-Instruct, a LLaMA, dequantised from 4 bits (Apache-2.0)"
    assert f"| decoder | smollm2-135m | {model} | `{sha256}` |" in card
    assert "| digits | 0.987 | 0.970–0.995 | 300 | 0.100 | 0.100 |  | 0.970 | 0.985 |" in card


def test_the_card_gathers_training_and_scores(tmp_path):
    score = {"count": 9, "score": 0.5, "majority": 0.25, "prior": 0.3, "blind": None}
    split = {
        "overall": score,
        "groups": {"video": score},
        "types": {"colour": score | {"group": "video"}},
        "captions": {"caption_video": {"f1": 0.75}},
        "retrieval": {"video": {"clips": 256, "text_to_media": {"R@1": 0.9}, "media_to_text": {"R@1": 0.8}}},
    }
    scores = {
        "clips": 8,
        "seed": 0,
        "media": "mp4",
        "splits": {"val": split, "comp": split | {"captions": {}}},
    }
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    row = {"step": 5, "loss": 1.5, "caption_loss": 0.25, "seconds": 120.0}
    text = {"stage": "text", "steps": 100, "batch": 8, "machine": "2 CPU cores", "rows": [row]}
    metrics = text | {"stage": "contrastive", "steps": 2000, "earlier": [text]}
    experiment = "name: small\nseed: 3\ndata: {train: 'world:train'}\n"
    files = {"metrics.json": json.dumps(metrics), "experiment.yaml": experiment}
    save(*tiny(), tmp_path / "model", files)
    out = export(tmp_path / "model", tmp_path / "out", scores=tmp_path / "scores.json")
    card = (out / "README.md").read_text()
    for line in (
        "# mllm small",
        "- **training data**: `world:train`, seed 3",
        "- **stage contrastive**: 2,000 steps of 8 clips, 2 minutes; at the end loss 1.500, caption_loss 0.2",
        "- **trained on**: 2 CPU cores",
        "| colour | video | 0.50 | 0.50 | 0.25 | 0.30 |  |",
        "| caption_video | 0.75 |  |",
        "| text → video | 0.90 | 0.90 | 256 |",
    ):
        assert line in card, card
    assert "video timesformer, audio whisper, decoder llama, captions bert; 0." in card
    assert "million weights; windows of 2 s: 2 frames, 3 video tokens and 2 audio tokens" in card
    with pytest.raises(MllmError, match="mllm eval world"):
        export(tmp_path / "model", tmp_path / "out", scores=tmp_path / "none.json")


def test_the_export_command(tmp_path):
    save(*tiny(), tmp_path / "model")
    app = typer.Typer()
    app.command()(export_command)
    result = CliRunner().invoke(app, [str(tmp_path / "model"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "mllm serve" in result.output
    assert (tmp_path / "out/model.safetensors").exists()


def test_a_card_takes_the_scores_of_the_world_alone(tmp_path):
    (tmp_path / "metrics.json").write_text('{"benchmark": "mine.jsonl"}')
    with pytest.raises(MllmError, match="is of mine.jsonl: give the metrics.json that `mllm eval world`"):
        export("nano", tmp_path / "out", scores=tmp_path / "metrics.json")
    with pytest.raises(MllmError, match="limits.md"):
        export("nano", tmp_path / "out", notes=[tmp_path / "limits.md"])
