"""The toy drum world: clips of drum hits at known times, the smallest music with dynamics and actions.

Clips of the splits differ by their seed, and clip `i` is the same however many clips there are.
"""

from typing import Literal, NamedTuple

import numpy as np

from melodjinn_jax.config import DataConfig
from melodjinn_jax.data.audio import HOP_LENGTH, SAMPLE_RATE
from melodjinn_jax.data.one_shots import OneShots
from melodjinn_jax.errors import UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


class Hit(NamedTuple):
    """One drum hit: the sample of its attack, the index of its drum, its gain."""

    sample: int
    drum: int
    gain: float


class Clip(NamedTuple):
    """A waveform float32 `[F * H]` that starts in silence, and the hits in it, by time."""

    waveform: np.ndarray
    hits: tuple[Hit, ...]


def make_clips(data: DataConfig, drums: OneShots, split: Split) -> list[Clip]:
    """All clips of a split. Attacks are at least `data.min_gap` frames apart; tails overlap and add.

    Raises `UserError` naming the field of `data` that no clip can be made from.
    """
    check_data(data)
    count = data.train_clips if split == "train" else data.heldout_clips
    return [_make_clip(data, drums, (data.seed, SPLITS.index(split), index)) for index in range(count)]


def render(hits: tuple[Hit, ...], drums: OneShots, num_samples: int) -> np.ndarray:
    """The sum of the drums at their hits, float32 `[num_samples]`; tails end with the clip."""
    length = drums.waveforms.shape[1]
    waveform = np.zeros(num_samples + length, np.float32)
    for hit in hits:
        waveform[hit.sample : hit.sample + length] += np.float32(hit.gain) * drums.waveforms[hit.drum]
    return waveform[:num_samples]


def check_data(data: DataConfig) -> None:
    """Raise `UserError` naming the field if no clip can be made from these settings."""
    for field in ("min_gap", "clip_frames", "train_clips", "heldout_clips"):
        if getattr(data, field) < 1:
            raise UserError(f"data.{field} is {getattr(data, field)}: it must be at least 1")
    if data.seed < 0:
        raise UserError(f"data.seed is {data.seed}: it must not be negative")
    if not 0 < data.min_velocity <= 1:
        raise UserError(f"data.min_velocity is {data.min_velocity}: it must be above 0 and at most 1")
    if data.rhythm == "loop" and data.loop_frames < 2 * data.min_gap:
        raise UserError(f"data.loop_frames is {data.loop_frames}: it must be at least twice data.min_gap")
    most = SAMPLE_RATE / HOP_LENGTH / data.min_gap
    if data.rhythm == "random" and not 0 < data.hits_per_second < most:
        raise UserError(
            f"data.hits_per_second is {data.hits_per_second:g}: with data.min_gap {data.min_gap} "
            f"it must be above 0 and below {most:g}"
        )


def _make_clip(data: DataConfig, drums: OneShots, seed: tuple[int, ...]) -> Clip:
    rng = np.random.default_rng(seed)
    num_samples = data.clip_frames * HOP_LENGTH
    pattern = _loop_hits if data.rhythm == "loop" else _random_hits
    hits = tuple(sorted(pattern(data, len(drums.names), num_samples, rng)))
    return Clip(render(hits, drums, num_samples), hits)


def _random_hits(data: DataConfig, num_drums: int, num_samples: int, rng: np.random.Generator) -> list[Hit]:
    """After each attack `min_gap` frames of rest, then a geometric wait that gives the wanted mean rate."""
    unit = 1 if data.offsets else HOP_LENGTH
    rest = data.min_gap * HOP_LENGTH // unit
    mean_wait = SAMPLE_RATE / data.hits_per_second / unit - rest
    probability = 1 / (1 + mean_wait)
    hits = []
    time = int(rng.geometric(probability)) - 1
    while time * unit < num_samples:
        hits.append(_draw_hit(time * unit, data, num_drums, rng))
        time += rest + int(rng.geometric(probability)) - 1
    return hits


def _loop_hits(data: DataConfig, num_drums: int, num_samples: int, rng: np.random.Generator) -> list[Hit]:
    """Two or three hits on a grid of `min_gap` frames, repeated from a random phase.

    With offsets the phase is any sample, shared by the whole clip: each hit keeps its place within a frame from one
    repetition to the next, and the gap between hits holds.
    """
    slots = data.loop_frames // data.min_gap
    chosen = rng.choice(slots, size=min(slots, int(rng.integers(2, 4))), replace=False)
    period = data.loop_frames * HOP_LENGTH
    phase = int(rng.integers(period) if data.offsets else rng.integers(data.loop_frames) * HOP_LENGTH)
    hits = []
    for slot in chosen:
        first = _draw_hit((int(slot) * data.min_gap * HOP_LENGTH + phase) % period, data, num_drums, rng)
        hits += [first._replace(sample=sample) for sample in range(first.sample, num_samples, period)]
    return hits


def _draw_hit(sample: int, data: DataConfig, num_drums: int, rng: np.random.Generator) -> Hit:
    return Hit(sample, int(rng.integers(num_drums)), float(rng.uniform(data.min_velocity, 1)))
