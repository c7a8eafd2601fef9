"""What a search asks for: words, pictures, sounds, clips, and any of them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mllm.errors import ConfigError, MllmError
from mllm.search.expressions import Filters
from mllm.search.fusion import FUSIONS, Fusion
from mllm.search.items import KINDS, SAID, WRITTEN

if TYPE_CHECKING:
    from mllm.search.embedder import Embedder, Modality

SEEN, HEARD = "seen", "heard"
CHANNELS = (SEEN, HEARD, SAID, WRITTEN)
NEGATIVE = 0.5  # weight of a text that is not meant, unless `weights` has another
_EMBEDDED_AS: Mapping[str, Modality] = {"image": "image", "audio": "audio", "video": "both"}
PARTS = ("text", *_EMBEDDED_AS, "like", "without")
_NOTHING = 1e-3  # length of a sum of unit vectors that cancel each other


@dataclass(frozen=True)
class Query:
    """A question to an index.

    The parts that are given are added as unit vectors of the shared space, each by its weight, and the mean
    of what is not meant is subtracted: "this picture, but at night, without people".

    Attributes:
        text: what is seen, heard, said or written.
        image, audio, video: examples, as a path or whatever else `media.load_clip` takes.
        like: a unit vector float32 [dim], such as `Index.vector_of` gives of something in the index.
        without: texts; also, words that are not said or written.
        weights: of parts (`PARTS`) in the vector, by default 1, of `without` `NEGATIVE`; and of channels
            (`CHANNELS`) in the order of moments, by default 1.
        channels: of `CHANNELS`, where to look; by default everywhere.
        fusion: how channels are ordered together: by evidence, or by ranks (see `mllm.search.moments`).
        modality: compare only with rows of windows of this modality, rather than with channels.
        filters: see `mllm.search.filters`.
        threshold: least cosine of what is seen and heard.
        excluded: id of an item that is not to be found.

    Raises:
        MllmError: if it asks for nothing.
        ConfigError: for an unknown channel, modality or weight.
    """

    text: str | None = None
    image: Any = None
    audio: Any = None
    video: Any = None
    like: np.ndarray | None = field(default=None, compare=False)
    without: tuple[str, ...] = ()
    weights: Mapping[str, float] = field(default_factory=dict)
    channels: tuple[str, ...] = CHANNELS
    fusion: Fusion = "evidence"
    modality: str | None = None
    filters: Filters | None = None
    threshold: float | None = None
    excluded: str | None = None

    def __post_init__(self) -> None:
        check_modality(self.modality)
        if self.text is not None and not self.text.strip():
            object.__setattr__(self, "text", None)
        if self.text is None and self.like is None and not self.media:
            raise MllmError('nothing to search for: say what is seen or heard, "a dog barks" for one')
        unknown = [channel for channel in self.channels if channel not in CHANNELS]
        if unknown or not self.channels:
            named = f"no channel '{unknown[0]!s:.80}'" if unknown else "no channel is given"
            raise ConfigError(f"{named}: choose from {', '.join(CHANNELS)}")
        if self.modality and self.channels != CHANNELS:
            raise ConfigError("a modality chooses rows of what is seen and heard: give it, or channels")
        if self.fusion not in FUSIONS:
            raise ConfigError(f"no fusion {self.fusion!r:.80}: choose from {', '.join(FUSIONS)}")
        if not self.compares_windows and self.text is None:
            raise ConfigError("what is said and written is found by words: give a text, or other channels")
        for name, weight in self.weights.items():
            if name not in (*PARTS, *CHANNELS) or not 0 <= weight <= 1000:
                known = ", ".join((*PARTS, *CHANNELS))
                raise ConfigError(f"no weight {name}={weight}: give {known} a weight from 0 to 1000")

    @property
    def media(self) -> dict[str, Any]:
        """The examples that are given, by name."""
        return {name: given for name in _EMBEDDED_AS if (given := getattr(self, name)) is not None}

    @property
    def is_plain(self) -> bool:
        """Whether it is a text and nothing else."""
        if self.text is None or self.media or self.like is not None:
            return False
        return self == Query(self.text)

    @property
    def compares_windows(self) -> bool:
        """Whether it compares with what is seen or heard."""
        return bool({SEEN, HEARD} & set(self.channels))

    @property
    def text_channels(self) -> tuple[str, ...]:
        """The channels of text that it looks into."""
        reads = self.text is not None and self.modality is None
        return tuple(channel for channel in (SAID, WRITTEN) if reads and channel in self.channels)

    @property
    def window_lists(self) -> tuple[tuple[str, ...], ...]:
        """The modalities of rows in each list of windows; empty for each window's fullest row.

        Ranks of what is seen, heard, and both of the same window would count threefold.
        """
        if self.modality is not None:
            return ((self.modality,),)
        seen, heard = (("video", "image"),), (("audio",),)
        if not {SEEN, HEARD} <= set(self.channels):
            return seen if SEEN in self.channels else heard if HEARD in self.channels else ()
        return ((),) if self.fusion == "ranks" else (*seen, *heard, ("both",))

    def weight_of(self, modalities: tuple[str, ...]) -> float:
        """How much a list with rows of these modalities counts; what is seen and heard, by their mean."""
        channels = {("video", "image"): [SEEN], ("audio",): [HEARD], (SAID,): [SAID], (WRITTEN,): [WRITTEN]}
        weights = [self.weights.get(channel, 1.0) for channel in channels.get(modalities, [SEEN, HEARD])]
        return sum(weights) / len(weights)

    def vector(self, embedder: Embedder) -> np.ndarray:
        """The sum of its parts, float32 [dim] of length 1.

        Raises:
            MediaError: if an example cannot be read, or has not what its name says.
            ConfigError: if the parts cancel each other, or `like` is no vector of this space.
        """
        parts = [
            (name, embedder.embed_clips([given], _EMBEDDED_AS[name])) for name, given in self.media.items()
        ]
        if self.text is not None:
            parts.append(("text", embedder.embed_text([self.text])))
        if self.like is not None:
            parts.append(("like", check_vector(self.like, embedder.dim)[None]))
        if self.without:
            parts.append(("without", -embedder.embed_text(list(self.without))))
        default = {"without": NEGATIVE}
        rows = [self.weights.get(name, default.get(name, 1.0)) * vectors.mean(0) for name, vectors in parts]
        summed = np.sum(rows, axis=0, dtype=np.float64)
        length = float(np.linalg.norm(summed))
        if length < _NOTHING:
            raise ConfigError("what is searched for and what is not meant cancel out: give other weights")
        return np.asarray(summed / length, np.float32)


def check_modality(modality: str | None) -> None:
    """Raises ConfigError for a modality that no row of windows can have; None means the fullest row."""
    if modality is not None and modality not in KINDS:
        raise ConfigError(f"no modality '{modality}' in an index: choose from {', '.join(KINDS)}")


def check_vector(vector: np.ndarray, dim: int) -> np.ndarray:
    """The vector as float32 [dim].

    Raises:
        ConfigError: if it has another shape, or values that are no numbers.
    """
    found = np.asarray(vector, np.float32)
    if found.shape != (dim,) or not np.isfinite(found).all():
        raise ConfigError(f"a query is a text, or {dim} finite numbers: not an array of shape {found.shape}")
    return found
