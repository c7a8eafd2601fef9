"""vLLM serves other towers as it serves the shipped ones: the same tokens as from transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")

from mllm.experiment import Model
from mllm.models.build import build_model
from mllm.models.checkpoint import load, save
from tests.models.test_towers import PAIRS
from tests.serve.conftest import tone, write_media

# The same tests, of the checkpoint below.
from tests.serve.test_vllm_model import (  # noqa: F401
    engine_config,
    multimodal,
    served,
    test_dummy_inputs_are_as_large_as_a_recording_can_be,
    test_prompt_and_embeddings_are_those_of_transformers,
)
from tests.tiny import SETTINGS, TEXTS

pytestmark = pytest.mark.slow

DECODER = SETTINGS["decoder"] | {"hidden_size": 64, "max_position_embeddings": 1024, "initializer_range": 0.2}


@pytest.fixture(scope="module", params=list(PAIRS)[1:])
def checkpoint(request, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    marks = "seconds" if "efficientnet" in request.param else "clock"
    changes = {"decoder": DECODER, "time_marks": marks}
    settings = Model.model_validate(SETTINGS | PAIRS[request.param] | changes)
    model, processor = build_model(settings, list(TEXTS))
    return save(model, processor, tmp_path_factory.mktemp("towers") / "checkpoint")


@pytest.fixture(scope="module")
def reference(checkpoint):
    return load(checkpoint)


ENGINE = """
import json, os, sys
os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1")
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    folder, *paths, out = sys.argv[1:]
    options = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024}
    engine = LLM(folder, **options, allowed_local_media_path="/")
    answers = []
    for path in paths:
        part = {"type": "video_url", "video_url": {"url": f"file://{path}"}}
        messages = [{"role": "user", "content": [part, {"type": "text", "text": "what colour?"}]}]
        sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
        answers.append(list(engine.chat(messages, sampling)[0].outputs[0].token_ids))
    open(out, "w").write(json.dumps(answers))
"""


def test_the_engine_answers_as_transformers_does(checkpoint, reference, tmp_path: Path):
    model, processor = reference
    paths = [
        write_media(tmp_path / "red.mp4", 4.0, (220, 30, 30), tone(440, 4.0)),
        write_media(tmp_path / "silent.mp4", 2.0, (30, 30, 220)),
    ]
    script = tmp_path / "engine.py"
    script.write_text(ENGINE)
    words = [sys.executable, str(script), str(checkpoint), *map(str, paths), str(tmp_path / "answers.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads((tmp_path / "answers.json").read_text())
    assert answers[0] != answers[1]
    for path, answer in zip(paths, answers, strict=True):
        part = {"type": "video", "video": path}
        batch = processor.batch(
            [[{"role": "user", "content": [part, {"type": "text", "text": "what colour?"}]}]]
        )
        ids = model.generate(**batch, max_new_tokens=8, min_new_tokens=8, do_sample=False, eos_token_id=None)
        assert ids[0, batch["input_ids"].shape[1] :].tolist() == answer
