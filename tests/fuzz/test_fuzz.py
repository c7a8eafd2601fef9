"""The fuzzer itself, and a small run of it."""

from __future__ import annotations

import random

from mllm.media.recording import load_clip
from tests.fuzz.__main__ import fuzz
from tests.fuzz.corpus import corpus
from tests.fuzz.mutants import mutant


def test_the_corpus_is_whole_and_small():
    recordings = corpus()
    assert len(recordings) >= 35
    assert max(map(len, recordings.values())) < 500_000
    for name, data in recordings.items():
        clip = load_clip(data, size=16)
        assert clip.frames is not None or clip.waveform is not None, name


def test_a_mutant_is_the_same_whenever_it_is_made():
    data = bytes(range(256)) * 20
    mutants = [mutant(data, random.Random(number)) for number in range(50)]
    assert mutants == [mutant(data, random.Random(number)) for number in range(50)]
    assert len(set(mutants)) > 45


def test_no_damage_ends_a_process_or_takes_too_long():
    """`make fuzz` runs more."""
    outcome = fuzz(600, seed=0, workers=2, keep=None)
    assert not outcome.lost
    assert outcome.clips.total() + outcome.refused.total() == 600
    assert outcome.clips.total() > 100
    assert outcome.refused.total() > 100
