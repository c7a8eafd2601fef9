"""How much a hit counts beside the hits of other lists: its evidence, the same measure in every list.

Scores of different lists do not compare, and a list that knows nothing of what is asked has a first hit too;
by ranks that counts as much as the first hit of the list that knows. So cosines are compared with those of
`REFERENCES`, queries that have nothing to do with the index (an impostor cohort, as in Auckenthaler et al.,
2000: "Score normalization for text-independent speaker verification systems"), and the confidence of a hit is
the probability that no row of its list has its score by chance (Altschul et al., 1990: "Basic local alignment
search tool"):

    expected   = rows · P(normal ≥ (cosine - mean) / deviation)
    confidence = exp(-expected)
    evidence   = -ln(1 - confidence)

The confidence of a text that was found by its words is the share of the query's words that it has, times
`SURE`. The best row by chance has a confidence anywhere between 0 and 1, which is evidence of about 1; that
of all words is 4.6. Moments count by their best evidence (CombMAX; Fox & Shaw, 1994), so that lists that know
nothing do not disturb the order of the one that knows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from mllm.search.items import KINDS

Fusion = Literal["evidence", "ranks"]
FUSIONS: tuple[str, ...] = get_args(Fusion)
SURE = 0.99  # confidence of a text that has all words
SAMPLE = 4096  # rows that stand for all
_EXAMPLES = 256  # windows that stand for all examples
_LEAST_DEVIATION = 0.005
_LEAST_EXPECTED = 1e-300

_REFERENCES = """
a dog barks, a man is talking, people walk in a street, music is playing, a car drives by, a woman sings,
rain falls on a roof, children play in a park, a cat sits on a sofa, birds sing in the morning,
somebody cooks a meal, waves break on a beach, a train passes, a crowd cheers, a phone rings,
the news of today, how to repair a bicycle, an interview about politics, a football match, a door is closed,
a red flower, the sky at night, a computer screen with text, two friends laugh, a plane takes off,
water runs from a tap, a guitar, an old house, snow on mountains, a speech in front of an audience,
a horse runs over a field, hands typing on a keyboard, fire burns, a wedding, a map of a country,
a clock ticks
"""
REFERENCES = tuple(" ".join(_REFERENCES.split()).split(", "))


@dataclass(frozen=True)
class Chance:
    """Cosines that rows of a list have by chance: their mean and deviation, and how many rows there are."""

    mean: float
    deviation: float
    rows: float

    def evidence(self, cosine: float) -> float:
        """The evidence of a hit with this cosine, 0 or more."""
        deviations = (cosine - self.mean) / self.deviation
        expected = self.rows * math.erfc(deviations / math.sqrt(2)) / 2
        return -math.log(-math.expm1(-max(expected, _LEAST_EXPECTED)))


@dataclass(frozen=True)
class RowSample:
    """Rows that stand for all rows of an index.

    Attributes:
        modalities: of each.
        vectors: float32 [rows, dim].
        rows: number of all rows of the index.
    """

    modalities: Sequence[str]
    vectors: np.ndarray
    rows: int

    def chance(self, modalities: Collection[str], references: np.ndarray | None) -> Chance | None:
        """The cosines of rows of these modalities with queries that have nothing to do with them.

        Args:
            references: float32 [queries, dim]; None for examples rather than texts: other windows.

        Returns:
            None if the sample has no such row.
        """
        members = np.array([modality in modalities for modality in self.modalities], bool)
        if not members.any():
            return None
        if references is None:
            windows = self.vectors[[modality in KINDS for modality in self.modalities]]
            references = windows[:: -(-len(windows) // _EXAMPLES)]
        cosines = references @ self.vectors[members].T
        share = float(members.mean())
        return Chance(
            float(cosines.mean()), max(float(cosines.std()), _LEAST_DEVIATION), max(1.0, share * self.rows)
        )


def evidence_of_words(share: float) -> float:
    """The evidence of a text that has this share of the words that are asked for, above 0 to 1."""
    return -math.log(1 - SURE * share)
