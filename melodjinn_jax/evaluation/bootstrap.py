"""How sure a number is: 95 % intervals by resampling tracks, and the clips inside each (Efron 1979)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

REPEATS = 1000
_TAILS = (2.5, 97.5)

Statistic = Callable[[np.ndarray], np.ndarray]
"""From how often each clip counts, float [R, B], to one number for each row, [R]."""


@dataclass(frozen=True)
class Estimate:
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """Its fields, rounded; null for what is not defined."""
        fields = {name: round(float(value), 6) for name, value in vars(self).items()}
        return {name: value if np.isfinite(value) else None for name, value in fields.items()}


def resample(tracks: np.ndarray, repeats: int = REPEATS, seed: int = 0) -> np.ndarray:
    """How often each clip counts in each resample: int [repeats, B].

    Tracks are drawn with replacement, and of each as many of its clips as it has, with replacement. Clips of one track
    are alike, so resampling clips alone would make every interval too narrow; with one track there is no other way.

    Args:
      tracks: int [B], the track of each clip.
      repeats: resamples.
      seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    names, sizes = np.unique(tracks, return_counts=True)
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=repeats)
    counts = np.zeros((repeats, len(tracks)), np.int64)
    for index, (name, size) in enumerate(zip(names, sizes, strict=True)):
        counts[:, tracks == name] = rng.multinomial(times[:, index] * size, np.full(size, 1 / size))
    return counts


def estimate(statistic: Statistic, tracks: np.ndarray) -> Estimate:
    """A statistic of all clips with its interval."""
    value = statistic(np.ones((1, len(tracks))))[0]
    drawn = statistic(resample(tracks).astype(np.float64))
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.percentile(drawn, _TAILS) if len(drawn) else (np.nan, np.nan)
    return Estimate(float(value), float(low), float(high))


def mean_of(values: np.ndarray) -> Statistic:
    """The mean of one number for each clip, [B]; NaN ones count for nothing."""
    return ratio_of(np.where(np.isnan(values), 0.0, values), ~np.isnan(values))


def ratio_of(numerator: np.ndarray, denominator: np.ndarray) -> Statistic:
    """The ratio of two sums over clips, [B] each; NaN where the second is zero."""

    def statistic(counts: np.ndarray) -> np.ndarray:
        below = counts @ np.asarray(denominator, np.float64)
        return np.where(below != 0, counts @ np.asarray(numerator, np.float64) / np.where(below == 0, 1, below), np.nan)

    return statistic
