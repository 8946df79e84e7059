"""What the actions mean, in numbers that need no labels, each with a 95 % interval over tracks.

`docs/meaning.md` says how to read them, and `tests/test_meaning.py` holds them to a model that ignores its actions, to
one that obeys them, and to a compressor that passes itself off as one.
"""

from typing import Any

import numpy as np

from melodjinn_jax.data.audio import SILENCE_DB
from melodjinn_jax.evaluation.bootstrap import Estimate, Statistic, estimate, mean_of, ratio_of
from melodjinn_jax.evaluation.delta_control import control, shuffled
from melodjinn_jax.evaluation.descriptors import levels
from melodjinn_jax.evaluation.effects import Clips, Effects, consistency, f_ratio, measure_effects, told_apart
from melodjinn_jax.evaluation.instrument import Instrument

LONG_SECONDS = 10.0
LONG_STREAMS = 8
# An action that hands over more than half of what it cannot know is the sound in other words.
COMPRESSOR_LEAKAGE = 0.5


def measure_meaning(
    instrument: Instrument, clips: Clips, prompt_frames: int, temperature: float, takes: int = 1
) -> tuple[dict[str, Any], Effects | None]:
    """All measures by name, and the effects of the keys; these are None of a model without keys.

    Delta control is measured on so many `takes` of each clip.

    A measure is {value, low, high}, or a list of such by key, or a number; it is left out where it has no meaning.
    """
    measures = {
        "clips": len(clips.codes),
        "tracks": len(np.unique(clips.tracks)),
        **density(instrument, clips.keys, clips.tracks),
        **surprise(instrument, clips),
        **control(instrument, clips, prompt_frames, temperature, takes),
        **long_play(instrument, clips, prompt_frames, temperature, LONG_SECONDS),
    }
    if instrument.has_lam:
        measures |= leakage(instrument, clips)
    effects = None
    if instrument.num_keys:
        effects = measure_effects(instrument, clips, prompt_frames, temperature)
        measures |= recovery(effects) if instrument.has_lam else {}
        measures |= alike(effects)
    return {name: _plain(value) for name, value in measures.items()}, effects


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.to_json() if isinstance(value, Estimate) else value


def starts_of(keys: np.ndarray) -> np.ndarray:
    """Where a key begins, bool [B, N - 1]: a decision of the player. To hold a key, or to let it go, is none."""
    before = np.pad(keys[:, :-1], ((0, 0), (1, 0)))
    return (keys > 0) & (keys != before)


def density(instrument: Instrument, keys: np.ndarray, tracks: np.ndarray) -> dict[str, Any]:
    """How much a player has to do: decisions and bits per second, and the share of each key.

    Args:
      instrument: whose keys they are.
      keys: int [B, N - 1].
      tracks: int [B].
    """
    blocks_per_second = instrument.sample_rate / (instrument.hop_length * instrument.stride)
    B, N = keys.shape
    counts = np.stack([np.count_nonzero(keys == key, axis=1) for key in range(instrument.num_keys + 1)], axis=1)
    seconds = np.full(B, N / blocks_per_second)

    def bits(weights: np.ndarray) -> np.ndarray:
        return _entropy(weights @ counts) * blocks_per_second

    pairs = keys[:, :-1] * (instrument.num_keys + 1) + keys[:, 1:]
    size = (instrument.num_keys + 1) ** 2
    pair_counts = np.stack([np.bincount(row, minlength=size) for row in pairs])
    last_counts = pair_counts.reshape(B, instrument.num_keys + 1, -1).sum(axis=2)

    def bits_after_last(weights: np.ndarray) -> np.ndarray:
        return (_entropy(weights @ pair_counts) - _entropy(weights @ last_counts)) * blocks_per_second

    starts = starts_of(keys)
    return {
        "decisions_per_second": estimate(ratio_of(starts.sum(axis=1), seconds), tracks),
        "bits_per_second": estimate(bits, tracks),
        "bits_per_second_after_last": estimate(bits_after_last, tracks),
        "key_share": [estimate(mean_of(column / N), tracks) for column in counts.T],
    }


def _entropy(counts: np.ndarray) -> np.ndarray:
    """Bits of the distributions that counts [R, n] are of: [R]."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    return -np.sum(shares * np.log2(np.where(shares > 0, shares, 1)), axis=1)


def surprise(instrument: Instrument, clips: Clips) -> dict[str, Any]:
    """Nats per token that the true actions save, against none and against the same shuffled."""
    keys = clips.keys
    rows = np.concatenate([keys, shuffled(keys), np.full_like(keys, instrument.null_action)])
    losses = instrument.losses(np.tile(clips.codes, (3, 1, 1)), rows)[:, 1:].mean(axis=1)
    true, other, none = losses.reshape(3, len(keys))
    return {
        "cross_entropy_gain_over_none": estimate(mean_of(none - true), clips.tracks),
        "cross_entropy_gain_over_shuffled": estimate(mean_of(other - true), clips.tracks),
    }


def recovery(effects: Effects) -> dict[str, Any]:
    """Is the pressed key what the LAM hears in the sound? Balanced over the keys, and what pressing at random gets."""
    keys = np.arange(1, effects.num_keys + 1)[:, None]
    right = (effects.heard == keys).astype(np.float64)
    # For each key, how often it is heard whatever is pressed.
    anyhow = np.mean([[np.mean(context == key) for context in effects.heard.T] for key in keys.ravel()], axis=0)
    by_context = right.mean(axis=0)
    return {
        "recovery": estimate(mean_of(by_context), effects.tracks),
        "recovery_chance": estimate(mean_of(anyhow), effects.tracks),
        "recovery_over_chance": estimate(mean_of(by_context - anyhow), effects.tracks),
        "recovery_by_key": [estimate(mean_of(row), effects.tracks) for row in right],
    }


def alike(effects: Effects) -> dict[str, Any]:
    """Does a key do the same everywhere, and something else than the others? It takes two keys to ask that."""
    if effects.num_keys < 2:
        return {}
    vectors, contexts = effects.vectors(), len(effects.tracks)
    share = estimate(consistency(vectors), effects.tracks)
    right = told_apart(vectors, effects.tracks).astype(np.float64)
    ratio = Estimate(*(f_ratio(value, contexts) for value in (share.value, share.low, share.high)))
    return {
        "effect_consistency": share,
        "effect_f_ratio": ratio,
        "effect_identification": estimate(mean_of(right.mean(axis=0)), effects.tracks),
        "effect_identification_chance": 1 / effects.num_keys,
        "effect_identification_by_key": [estimate(mean_of(row), effects.tracks) for row in right],
    }


def leakage(instrument: Instrument, clips: Clips) -> dict[str, Any]:
    """Clips spliced to others: the share of the far side's first block that its action alone hands over.

    No past can foretell what stands behind a cut. An action that says what happens tells some of it; one that spares
    the model nearly all surprise there is the sound itself in other words: a compressor.
    """
    B, F, _ = clips.codes.shape
    stride, hop = instrument.stride, instrument.hop_length
    cut = F // (2 * stride) * stride
    other = _far_clips(clips.tracks)
    codes = np.concatenate([clips.codes[:, :cut], clips.codes[other, cut:]], axis=1)
    sound = np.concatenate([clips.waveform[:, : cut * hop], clips.waveform[other, cut * hop :]], axis=1)
    keys = instrument.listen_to(sound, codes)
    rows = np.concatenate([keys, np.full_like(keys, instrument.null_action)])
    losses = instrument.losses(np.tile(codes, (2, 1, 1)), rows)[:, cut : cut + stride].mean(axis=1)
    told, untold = losses.reshape(2, B)
    share = estimate(ratio_of(untold - told, untold), clips.tracks)
    return {"leakage": share, "is_compressor": bool(share.value > COMPRESSOR_LEAKAGE)}


def _far_clips(tracks: np.ndarray) -> np.ndarray:
    """For each clip another one, of another track as far as there is one: int [B]."""
    order = np.argsort(tracks, kind="stable")
    other = np.empty_like(order)
    other[order] = np.roll(order, max(1, len(order) // 2))
    return other


def long_play(
    instrument: Instrument, clips: Clips, prompt_frames: int, temperature: float, seconds: float
) -> dict[str, Any]:
    """Seconds on end under held-out actions, one clip's after the other: does it fade, grow, fall silent?

    Level in decibels and silence in shares, both less those of the held-out music, and the level of the last quarter
    less that of the first. The intervals are over the streams.
    """
    stride, hop = instrument.stride, instrument.hop_length
    streams = min(LONG_STREAMS, len(clips.codes))
    start = prompt_frames // stride
    blocks = start + -(-round(seconds * instrument.sample_rate / hop) // stride)
    rng = np.random.default_rng(1)
    keys = np.stack([_endless(clips.keys, first, blocks - 1, rng) for first in range(streams)])
    codes = np.zeros((streams, blocks * stride, clips.codes.shape[2]), np.int32)
    codes[:, :prompt_frames] = clips.codes[:streams, :prompt_frames]
    sound = instrument.play(codes, prompt_frames, keys, temperature)[:, prompt_frames * hop :]
    power = np.mean(sound.reshape(streams, -1, hop).astype(np.float64) ** 2, axis=-1)
    reference = np.mean(clips.waveform.astype(np.float64) ** 2)
    quarter = power.shape[1] // 4
    silent = np.mean(levels(sound, hop) <= SILENCE_DB, axis=1)
    silent_there = float(np.mean(levels(clips.waveform, hop) <= SILENCE_DB))
    first, last = power[:, :quarter].mean(axis=1), power[:, -quarter:].mean(axis=1)
    ones, each = np.ones(streams), np.arange(streams)
    return {
        "long_level_difference_db": estimate(_decibels(ratio_of(power.mean(axis=1), ones * reference)), each),
        "long_silence_difference": estimate(mean_of(silent - silent_there), each),
        "long_drift_db": estimate(_decibels(ratio_of(last, first)), each),
    }


def _endless(keys: np.ndarray, first: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Actions of clip `first`, then of clips at random: int [length]."""
    rows = [first, *rng.integers(len(keys), size=length // keys.shape[1] + 1)]
    return np.concatenate([keys[row] for row in rows])[:length]


def _decibels(statistic: Statistic) -> Statistic:
    def decibels(weights: np.ndarray) -> np.ndarray:
        return 10 * np.log10(np.maximum(statistic(weights), 1e-12))

    return decibels
