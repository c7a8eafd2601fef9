"""What is really said in a recording, by a real Whisper, found by its words and given to the answerer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep.world.voice import say
from mllm.models.transcriber import Transcriber
from mllm.search.embedder import Embedder
from mllm.search.index import Index
from mllm.search.query import Query
from tests.bases import real_base

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def spoken(tmp_path_factory) -> Path:
    """A second of silence, three words, ten seconds of silence, and one more word; and a tone."""
    folder = tmp_path_factory.mktemp("spoken")
    words = [np.pad(say("train", word, "en-us", "calm", 0), (0, 4000)) for word in ("seven", "yes", "three")]
    last = say("train", "nine", "en-us", "calm", 0)
    soundfile.write(
        folder / "words.wav", np.concatenate([np.zeros(16_000), *words, np.zeros(160_000), last]), 16_000
    )
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)
    soundfile.write(folder / "tone.wav", tone, 16_000)
    return folder


def test_a_word_that_is_said_is_found_where_it_is_said(checkpoint, spoken, tmp_path):
    index = Index.open(tmp_path / "index", Embedder.from_pretrained(checkpoint))
    index.add([spoken], transcriber=Transcriber.from_pretrained(real_base("whisper-base"), "en"))
    assert len(index.info().said) == 1
    assert index.info().texts["said"] >= 1
    # Whisper writes "7" where "seven" is said, and takes this voice's "three" for "free".
    (moment,) = [one for one in index.moments(Query("yes", channels=("said",))) if one.matches[0].words]
    assert Path(str(moment.item.source)).name == "words.wav"
    (word,) = moment.matches[0].words
    assert word.text.strip(" .,").lower() == "yes"
    assert 1.0 < word.start < word.end < 3
    assert "said" in [match.modality for match in index.moments("yes", 1)[0].matches]
    assert any("yes" in line.text.lower() for line in index.said(moment))
