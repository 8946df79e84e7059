"""Delta control: how much more of the music its own actions bring back than the same actions in another order do.

The music counterpart of Genie's delta PSNR (Bruce et al. 2024), which draws its actions anew where these are shuffled.
"""

import numpy as np
from scipy.signal import find_peaks

from melodjinn_jax.evaluation.bootstrap import Estimate, estimate, mean_of, ratio_of
from melodjinn_jax.evaluation.descriptors import brightness, chroma, correlations, levels, onset_strength, spectrum
from melodjinn_jax.evaluation.effects import Clips
from melodjinn_jax.evaluation.instrument import Instrument
from melodjinn_jax.evaluation.onsets import Onset, match_onsets

# An onset is a peak of the onset strength that stands out by so much, so long after the one before, and is found again
# within 50 ms, as is usual in the field (mir_eval; MIREX).
_ONSET_PROMINENCE = 3.0  # decibels
_ONSET_GAP, _ONSET_TOLERANCE = 0.03, 0.05  # seconds

Curves = dict[str, np.ndarray]
"""What is heard of sounds, by name: [B, T] or [B, T, M]."""


def shuffled(keys: np.ndarray, start: int = 0, seed: int = 0) -> np.ndarray:
    """Actions int [B, N - 1] in another order from `start` on, clip by clip: the same shape."""
    late = np.random.default_rng(seed).permuted(keys[:, start:], axis=1)
    return np.concatenate([keys[:, :start], late], axis=1)


def control(
    instrument: Instrument, clips: Clips, prompt_frames: int, temperature: float, takes: int = 1
) -> dict[str, Estimate]:
    """Likeness to the music after the prompt under its own actions, less that under the same actions shuffled.

    And the log-mel distance of free generation over that of teacher forcing: what it costs that errors go on.

    Args:
      instrument: to be played.
      clips: held-out music.
      prompt_frames: given of each clip, whole blocks.
      temperature: of the sampling.
      takes: continuations of each clip, over which its numbers are averaged: else much of an interval's width (of
        onsets most) is due to the dice of the sampling. What teacher forcing plays is drawn once.
    """
    B, cut = len(clips.codes), prompt_frames * instrument.hop_length
    true, coded, forced = (
        _curves(instrument, sound[:, cut:])
        for sound in (
            clips.waveform,
            instrument.decode(clips.codes),
            instrument.play_along(clips.codes, clips.keys, temperature),
        )
    )
    by_own, by_other, free_error = [], [], []
    for take in range(takes):
        other_keys = shuffled(clips.keys, prompt_frames // instrument.stride - 1, take)
        rows = np.concatenate([clips.keys, other_keys])
        played = instrument.play(np.tile(clips.codes, (2, 1, 1)), prompt_frames, rows, temperature, seed=take)
        own, other = (_curves(instrument, sound[:, cut:]) for sound in (played[:B], played[B:]))
        by_own.append(_likeness(instrument, true, own))
        by_other.append(_likeness(instrument, true, other))
        free_error.append(_squared_error(true, own))
    by_codec = _likeness(instrument, true, coded)
    measures: dict[str, Estimate] = {}
    for name, codec in by_codec.items():
        followed, ignored = (np.mean([take[name] for take in found], axis=0) for found in (by_own, by_other))
        measures[f"control_{name}"] = estimate(mean_of(followed - ignored), clips.tracks)
        measures[f"control_{name}_true"] = estimate(mean_of(followed), clips.tracks)
        measures[f"control_{name}_shuffled"] = estimate(mean_of(ignored), clips.tracks)
        measures[f"control_{name}_codec"] = estimate(mean_of(codec), clips.tracks)
    ratio = ratio_of(np.mean(free_error, axis=0), _squared_error(true, forced))
    measures["free_running_distance_ratio"] = estimate(lambda weights: np.sqrt(ratio(weights)), clips.tracks)
    return measures


def _curves(instrument: Instrument, sound: np.ndarray) -> Curves:
    rate, hop = instrument.sample_rate, instrument.hop_length
    mel = spectrum(sound, rate, hop)
    return {
        "onsets": np.asarray(onset_strength(sound, rate, hop)),
        "envelope": levels(sound, hop),
        "spectrum": mel,
        "brightness": brightness(mel, rate),
        "chroma": np.asarray(chroma(sound, rate, hop)),
    }


def _likeness(instrument: Instrument, true: Curves, other: Curves) -> dict[str, np.ndarray]:
    """By name, of each clip: float64 [B]."""
    points_per_second = 2 * instrument.sample_rate / instrument.hop_length
    found = {name: correlations(true[name], other[name]) for name in ("onsets", "envelope", "spectrum", "brightness")}
    found["chroma"] = _cosines(true["chroma"], other["chroma"])
    found["onset_f1"] = onset_f1(true["onsets"], other["onsets"], points_per_second)
    # In decibels, and negative, so that more is better here too.
    found["log_mel"] = -np.sqrt(_squared_error(true, other))
    return found


def _cosines(true: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Mean over time of the cosine of [B, T, 12] with [B, T, 12]: [B]."""
    norms = np.linalg.norm(true, axis=-1) * np.linalg.norm(other, axis=-1)
    return np.mean(np.sum(true * other, axis=-1) / norms, axis=-1)


def _squared_error(true: Curves, other: Curves) -> np.ndarray:
    return np.mean((true["spectrum"] - other["spectrum"]) ** 2, axis=(1, 2))


def onset_f1(true: np.ndarray, other: np.ndarray, points_per_second: float) -> np.ndarray:
    """F1 of the onsets of each pair of curves of onset strength [B, T], in decibels: [B].

    1 where there is none in either.
    """
    gap, tolerance = (int(seconds * points_per_second) for seconds in (_ONSET_GAP, _ONSET_TOLERANCE))

    def onsets(curve: np.ndarray) -> list[Onset]:
        peaks, _ = find_peaks(curve, prominence=_ONSET_PROMINENCE, distance=max(1, gap))
        return [Onset(float(peak), 0, 1.0) for peak in peaks]

    matchings = [match_onsets([onsets(a)], [onsets(b)], tolerance) for a, b in zip(true, other, strict=True)]
    return np.array([matching.f1 for matching in matchings])
