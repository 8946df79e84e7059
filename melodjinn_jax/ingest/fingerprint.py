"""Which recordings are the same: a fingerprint that survives other sample rates, bitrates and levels, and its index.

Ten times a second a word of 20 bits says, for each pair of neighbouring bands from 250 to 4000 Hz, whether the
difference of their log energies has grown in the last 0.3 s (after Haitsma and Kalker 2002, at a rate at which a whole
collection fits in memory). Level, equalisation and what a lossy coder drops hardly touch these signs. The same
recording in two encodings differs in about 3 % of the bits, cut at another place in up to 15 %, other music in 40 % and
more. A recording played faster or slower is another one to it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from melodjinn_jax.data.audio import SAMPLE_RATE

HOP = 2400
MAX_SECONDS = 180
"""Only so much of a recording is fingerprinted: an excerpt from later on is not found."""
_WINDOW = 16384
_NUM_BITS = 20
_LAG = 3
_RANGE_HZ = (250, 4000)
_FLOOR = 1e-9  # below the rounding noise of 16 bits: only digital silence gives the word 0
_EDGES = np.round(np.geomspace(*_RANGE_HZ, _NUM_BITS + 2) / SAMPLE_RATE * _WINDOW).astype(int)
_HANN = np.hanning(_WINDOW).astype(np.float32)

_MAX_ERROR = 0.25  # share of differing bits
_MIN_WORDS = 24  # 2.4 s that sound in both
_KEY_GAP = 6  # words apart, so that their windows' signs are nearly independent
_MAX_BUCKET = 50  # recordings that share a key; more share only something common, like a test tone
_MAX_KEYS = 20_000_000
_OFFSETS_TRIED = 3


class Fingerprinter:
    """Fingerprint of a stream of float32 blocks at 24 kHz; the blocks' sizes do not matter."""

    def __init__(self) -> None:
        self._kept = np.zeros(0, np.float32)
        self._slopes: list[np.ndarray] = []
        self._rows = 0

    def push(self, block: np.ndarray) -> None:
        """The next samples."""
        if self._rows * HOP >= MAX_SECONDS * SAMPLE_RATE:
            return
        samples = np.concatenate([self._kept, block])
        count = max(0, (len(samples) - _WINDOW) // HOP + 1)
        if count:
            windows = np.lib.stride_tricks.sliding_window_view(samples, _WINDOW)[::HOP]
            power = np.abs(np.fft.rfft(windows * _HANN, axis=1)) ** 2
            bands = np.log(np.add.reduceat(power[:, : _EDGES[-1]], _EDGES[:-1], axis=1) + _FLOOR)
            self._slopes.append(np.diff(bands, axis=1))
            self._rows += count
        self._kept = samples[count * HOP :]

    def words(self) -> np.ndarray:
        """uint32 `[words]`, HOP samples apart; 0 stands for silence."""
        slopes = np.concatenate([np.zeros((0, _NUM_BITS)), *self._slopes])[: MAX_SECONDS * SAMPLE_RATE // HOP]
        grown = slopes[_LAG:] > slopes[:-_LAG]
        return (grown @ (1 << np.arange(_NUM_BITS))).astype(np.uint32)


def find_near_duplicates(words: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Pairs `(i, j)`, `i < j`, of fingerprints of one recording, or of one and an excerpt of it, in order.

    An inverted index proposes pairs that share a key of two words; only these are compared.
    """
    return sorted(pair for pair, votes in _candidates(words).items() if _agree(words, pair, votes))


def _candidates(words: Sequence[np.ndarray]) -> Mapping[tuple[int, int], Counter[int]]:
    """For pairs that share a key: the shifts at which they do, counted."""
    keys, owners, places = _index(words)
    order = np.argsort(keys, kind="stable")
    keys, owners, places = keys[order], owners[order], places[order]
    bounds = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]])) if len(keys) else np.zeros(1, int)
    starts, stops = bounds[:-1], bounds[1:]
    shared = owners[starts] != owners[stops - 1]  # owners rise within a bucket
    votes: defaultdict[tuple[int, int], Counter[int]] = defaultdict(Counter)
    for start, stop in zip(starts[shared].tolist(), stops[shared].tolist(), strict=True):
        first = {int(owners[i]): int(places[i]) for i in range(stop - 1, start - 1, -1)}
        for pair, shift in _pairs(first) if len(first) <= _MAX_BUCKET else ():
            votes[pair][shift] += 1
    return votes


def _pairs(places: dict[int, int]) -> Iterator[tuple[tuple[int, int], int]]:
    owners = sorted(places)
    for index, left in enumerate(owners):
        for right in owners[index + 1 :]:
            yield (left, right), places[right] - places[left]


def _index(words: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, whose they are and where; of a large collection a sample by the keys themselves, the same everywhere."""
    stride = 1 + sum(map(len, words)) // _MAX_KEYS
    keys, owners, places = [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for owner, own in enumerate(words):
        early, late = own[:-_KEY_GAP].astype(np.uint64), own[_KEY_GAP:].astype(np.uint64)
        key = early << np.uint64(_NUM_BITS) | late
        place = np.flatnonzero((early != 0) & (late != 0) & (key * np.uint64(0x9E3779B97F4A7C15) % stride == 0))
        keys.append(key[place])
        owners.append(np.full(len(place), owner, np.int32))
        places.append(place.astype(np.int32))
    return np.concatenate(keys), np.concatenate(owners), np.concatenate(places)


def _agree(words: Sequence[np.ndarray], pair: tuple[int, int], votes: Counter[int]) -> bool:
    """Whether two fingerprints agree wherever they overlap, at one of the shifts that have most in common."""
    left, right = (words[index] for index in pair)
    best = sorted(votes.items(), key=lambda vote: (-vote[1], vote[0]))[:_OFFSETS_TRIED]
    return any(_error(left, right, shift + nudge) <= _MAX_ERROR for shift, _ in best for nudge in (0, -1, 1))


def _error(left: np.ndarray, right: np.ndarray, shift: int) -> float:
    """Share of differing bits where `right[i + shift]` stands over `left[i]` and either sounds; 1 if that is short."""
    left, right = left[max(0, -shift) :], right[max(0, shift) :]
    length = min(len(left), len(right))
    left, right = left[:length], right[:length]
    sounding = (left != 0) | (right != 0)
    if sounding.sum() < _MIN_WORDS:
        return 1.0
    return float(np.bitwise_count(left ^ right)[sounding].mean()) / _NUM_BITS


def components(count: int, links: Sequence[tuple[int, int]]) -> list[int]:
    """For each of `count` things the lowest of those that links join it to, directly or through others."""
    root = list(range(count))

    def find(thing: int) -> int:
        while root[thing] != thing:
            root[thing] = root[root[thing]]
            thing = root[thing]
        return thing

    for left, right in links:
        low, high = sorted((find(left), find(right)))
        root[high] = low
    return [find(thing) for thing in range(count)]
