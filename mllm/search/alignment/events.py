"""Events: moments at which something happens, and which of them two recordings share (level `event`).

Rasterised to sequences they are aligned as those are; then each event is paired with the one that stands
where the path leads, and the line is fitted to the pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mllm.errors import MediaError
from mllm.search.alignment.engine import Alignment, Calibration, Search, align_sequences
from mllm.search.alignment.fit import robust_line
from mllm.search.alignment.sequence import Sequence, high_passed

RATE = 25.0  # steps/s of the raster
SPREAD = 0.06  # s, deviation of an event in the raster
TREND = 4.0  # s whose mean is subtracted from the raster
APART = 0.1  # s between two peaks
PROMINENT = 1.0  # deviations above the mean, from which a peak is an event
TOLERANCE = 0.2  # s between an event and where the path leads
ALIKE = 0.5  # cosine, below which two events are not the same
FEWEST = 4  # events
RESOLUTION = 0.005  # s, of the times of events


@dataclass(frozen=True)
class Events:
    """What happens in a recording, in the order of time.

    Attributes:
        times: float64 [events] s.
        vectors: float32 [events, dim] of unit length; equal ones where only the time counts.
        seconds: length of the recording.
    """

    name: str
    times: np.ndarray
    vectors: np.ndarray
    seconds: float
    block: float = 0.2

    def __post_init__(self) -> None:
        if len(self.times) < FEWEST:
            raise MediaError(
                f"{self.name}: {len(self.times)} events are too few to align: take --level frame"
            )

    def raster(self) -> Sequence:
        """Each event as a bump of its vector, less the mean of the seconds around."""
        count = max(1, round(self.seconds * RATE))
        values = np.zeros((count, self.vectors.shape[1]))
        reach = round(3 * SPREAD * RATE)
        for shift in range(-reach, reach + 1):
            places = np.round(self.times * RATE).astype(np.int64) + shift
            inside = (places >= 0) & (places < count)
            bump = np.exp(-0.5 * ((places / RATE - self.times) / SPREAD) ** 2)
            np.add.at(values, places[inside], (bump[:, None] * self.vectors)[inside])
        values = high_passed(values, round(TREND * RATE))
        energy = np.sqrt((values**2).sum(1).mean())
        return Sequence(self.name, (values / max(energy, 1e-9)).astype(np.float32), RATE, block=self.block)


def peaks(name: str, values: np.ndarray, times: np.ndarray, seconds: float) -> Events:
    """Events where an envelope, float [steps] at times (s), peaks.

    Raises:
        MediaError: if there are fewer than FEWEST.
    """
    limit = values.mean() + PROMINENT * values.std()
    inner = np.arange(1, len(values) - 1)
    rising = (values[inner] >= values[inner - 1]) & (values[inner] > values[inner + 1])
    found = inner[rising & (values[inner] > limit)]
    kept: list[int] = []
    for place in found:
        if kept and times[place] - times[kept[-1]] < APART:
            if values[place] > values[kept[-1]]:
                kept[-1] = int(place)
        else:
            kept.append(int(place))
    return Events(name, times[kept], np.ones((len(kept), 1), np.float32), seconds)


def align_events(
    first: Events, second: Events, search: Search = Search(), calibration: Calibration = Calibration()
) -> Alignment:
    """Aligns two rows of events; the path is of the pairs.

    Raises:
        MediaError: as `align_sequences`.
    """
    rough = align_sequences(first.raster(), second.raster(), search, calibration)
    pairs = paired(first, second, rough.path)
    rough = replace(rough, matched=len(pairs), events=(len(first.times), len(second.times)))
    if len(pairs) < FEWEST:
        return replace(rough, confidence=0.0)
    times, others = first.times[pairs[:, 0]], second.times[pairs[:, 1]]
    line = robust_line(times, others - times, np.ones(len(pairs)), RESOLUTION)
    return replace(rough, line=line, path=np.stack([times, others], axis=1))


def paired(first: Events, second: Events, path: np.ndarray) -> np.ndarray:
    """int64 [pairs, 2]: events that are each other's nearest along the path, and alike."""
    order = np.unique(path[:, 0], return_index=True)[1]
    led = first.times + np.interp(first.times, path[order, 0], (path[:, 1] - path[:, 0])[order])
    begin = np.searchsorted(second.times, led - TOLERANCE)
    end = np.searchsorted(second.times, led + TOLERANCE, "right")
    nearest: dict[tuple[str, int], tuple[float, int, int]] = {}  # by side and event: distance, and the pair
    for one, (low, high) in enumerate(zip(begin, end, strict=True)):
        cosines = second.vectors[low:high] @ first.vectors[one]
        distances = np.abs(second.times[low:high] - led[one])
        for other in np.flatnonzero(cosines >= ALIKE):
            found = (float(distances[other] - TOLERANCE * cosines[other]), one, int(low + other))
            for event in (("first", found[1]), ("second", found[2])):
                nearest[event] = min(nearest.get(event, found), found)
    mutual = {
        pair[1:] for pair in nearest.values() if nearest["first", pair[1]] == nearest["second", pair[2]]
    }
    pairs = np.array(sorted(mutual), np.int64).reshape(-1, 2)
    rising = pairs[:, 1] > np.maximum.accumulate(np.concatenate([[-1], pairs[:, 1]]))[:-1]
    return pairs[rising]
