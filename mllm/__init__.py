"""mllm: a recording becomes a row of time windows, and every window becomes a few tokens.

    answerer = mllm.Answerer.from_pretrained("nano")
    question = [{"type": "audio", "audio": "bell.wav"}, {"type": "text", "text": "What is heard?"}]
    (answer,) = answerer.answer([[{"role": "user", "content": question}]])

Names are imported when they are first used, so that `import mllm` loads neither torch nor transformers.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mllm.models.auto import add_to_transformers

if TYPE_CHECKING:
    from mllm.answerer import Answerer
    from mllm.answerer_remote import RemoteAnswerer
    from mllm.command.export import export
    from mllm.errors import ChatError, ConfigError, MediaError, MllmError, RecordError
    from mllm.experiment import Experiment, load_experiment
    from mllm.media.clip import Clip
    from mllm.media.recording import load_clip, open_recording, probe
    from mllm.models.checkpoint import load, save
    from mllm.records.answers import Generation, Ranking, Unread
    from mllm.records.record import read_records, write_records
    from mllm.search.embedder import Embedder
    from mllm.search.index import Index
    from mllm.search.items import Item
    from mllm.search.moments import Hit, Moment
    from mllm.search.query import Query

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())  # quiet unless a program, or MLLM_LOG, asks

_HOMES = {
    "mllm.answerer": ("Answerer",),
    "mllm.answerer_remote": ("RemoteAnswerer",),
    "mllm.command.export": ("export",),
    "mllm.errors": ("ChatError", "ConfigError", "MediaError", "MllmError", "RecordError"),
    "mllm.experiment": ("Experiment", "load_experiment"),
    "mllm.media.clip": ("Clip",),
    "mllm.media.recording": ("load_clip", "open_recording", "probe"),
    "mllm.models.checkpoint": ("load", "save"),
    "mllm.records.answers": ("Generation", "Ranking", "Unread"),
    "mllm.records.record": ("read_records", "write_records"),
    "mllm.search.embedder": ("Embedder",),
    "mllm.search.index": ("Index",),
    "mllm.search.items": ("Item",),
    "mllm.search.moments": ("Hit", "Moment"),
    "mllm.search.query": ("Query",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Answerer",
    "ChatError",
    "Clip",
    "ConfigError",
    "Embedder",
    "Experiment",
    "Generation",
    "Hit",
    "Index",
    "Item",
    "MediaError",
    "MllmError",
    "Moment",
    "Query",
    "Ranking",
    "RecordError",
    "RemoteAnswerer",
    "Unread",
    "__version__",
    "export",
    "load",
    "load_clip",
    "load_experiment",
    "open_recording",
    "probe",
    "read_records",
    "save",
    "write_records",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mllm' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})


add_to_transformers()
