"""What keys do: each pressed in many contexts, next to the same contexts under NOOP."""

from dataclasses import dataclass

import numpy as np

from melodjinn_jax.evaluation.bootstrap import Statistic
from melodjinn_jax.evaluation.descriptors import brightness, chroma, levels, onset_strength, spectrum
from melodjinn_jax.evaluation.instrument import Instrument

# Frames (at 75 a second, a fifth of a second) in which a press is judged, and their first part, in which a hit sounds.
WINDOW_FRAMES, ATTACK_FRAMES = 16, 4
BANDS = 16
TIMES = 4


@dataclass(frozen=True)
class Clips:
    """Held-out music with its actions."""

    waveform: np.ndarray
    """float32 [B, F * H]."""
    codes: np.ndarray
    """int32 [B, F, Q]."""
    keys: np.ndarray
    """int [B, N - 1]."""
    tracks: np.ndarray
    """int [B]: clips of one track are no independent witnesses."""


@dataclass(frozen=True)
class Effects:
    """What each of K keys changed in each of C contexts. Differences to NOOP in the same context, in the window."""

    attack: np.ndarray
    """[K, C]: level at once, in decibels."""
    sustain: np.ndarray
    """[K, C]: level in the second half of the window, in decibels."""
    onsets: np.ndarray
    """[K, C]: the strongest onset, in decibels."""
    brightness: np.ndarray
    """[K, C]: in octaves."""
    pitch: np.ndarray
    """[K, C, 12]: share of each pitch class."""
    spectrum: np.ndarray
    """[K, C, W, BANDS]: bands over time, in decibels."""
    heard: np.ndarray
    """[K, C]: the key that a LAM heard first at the press or one block later (0: none); -1 without a LAM."""
    tracks: np.ndarray
    """[C]."""
    sound: np.ndarray
    """float32 [K + 1, C, samples]: the context, then what was played; row 0 is NOOP."""
    prompt_frames: int

    @property
    def num_keys(self) -> int:
        return len(self.attack)

    def vectors(self) -> np.ndarray:
        """The spectrum in a few steps of time, as one vector for each press: [K, C, TIMES * BANDS]."""
        K, C, W, _ = self.spectrum.shape
        steps = self.spectrum[:, :, : W // TIMES * TIMES].reshape(K, C, TIMES, W // TIMES, BANDS)
        return steps.mean(axis=3).reshape(K, C, -1)


def window_frames(stride: int) -> int:
    """Frames in which a press is judged, whole blocks and two at least."""
    return max(2, -(-WINDOW_FRAMES // stride)) * stride


def natural_holds(keys: np.ndarray, num_keys: int) -> list[int]:
    """Blocks that each of keys 1.. usually lasts in actions [B, N - 1]: the median, 1 for a key that never comes."""
    lengths: list[list[int]] = [[] for _ in range(num_keys + 1)]
    for row in keys:
        edges = np.flatnonzero(np.diff(row)) + 1
        for run in np.split(row, edges):
            lengths[run[0]].append(len(run))
    return [int(np.median(own)) if own else 1 for own in lengths[1:]]


def measure_effects(
    instrument: Instrument, clips: Clips, prompt_frames: int, temperature: float, frames: int = 0
) -> Effects:
    """Press every key once after the start of every clip, as long as it usually lasts, and compare with NOOP.

    Args:
      instrument: to be played.
      clips: their first `prompt_frames` frames, whole blocks, are the contexts.
      prompt_frames: of each context.
      temperature: of the sampling.
      frames: to play after the press, whole blocks; those of `window_frames` are measured, and played at least.
    """
    stride, num_keys, C = instrument.stride, instrument.num_keys, len(clips.codes)
    window = window_frames(stride)
    start, blocks = prompt_frames // stride, (prompt_frames + max(window, frames)) // stride
    holds = natural_holds(clips.keys, num_keys)
    keys = np.zeros((num_keys + 1, C, blocks - 1), np.int64)
    keys[:, :, : start - 1] = clips.keys[:, : start - 1]
    for key, hold in enumerate(holds, start=1):
        keys[key, :, start - 1 : start - 1 + hold] = key
    codes = np.zeros((C, blocks * stride, clips.codes.shape[2]), np.int32)
    codes[:, :prompt_frames] = clips.codes[:, :prompt_frames]
    sound = instrument.play(
        np.tile(codes, (num_keys + 1, 1, 1)), prompt_frames, keys.reshape(-1, blocks - 1), temperature
    )
    heard = np.full((num_keys, C), -1)
    if instrument.has_lam:
        listened = instrument.listen(sound)[C:, start - 1 : start + 1]
        heard = np.where(listened[:, 0] > 0, listened[:, 0], listened[:, -1]).reshape(num_keys, C)
    described = _describe(instrument, sound, prompt_frames, window)
    changes = {}
    for name, values in described.items():
        by_key = values.reshape(num_keys + 1, C, *values.shape[1:])
        changes[name] = by_key[1:] - by_key[:1]
    return Effects(
        **changes,
        heard=heard,
        tracks=clips.tracks,
        sound=sound.reshape(num_keys + 1, C, -1),
        prompt_frames=prompt_frames,
    )


def _describe(instrument: Instrument, sound: np.ndarray, start: int, window: int) -> dict[str, np.ndarray]:
    """Absolute descriptors of the `window` frames from `start` on of sounds [R, samples]."""
    rate, hop = instrument.sample_rate, instrument.hop_length
    attack = slice(start, start + max(ATTACK_FRAMES, instrument.stride))
    late = slice(start + window // 2, start + window)
    level = levels(sound, hop)
    mel = spectrum(sound, rate, hop)
    onsets = np.asarray(onset_strength(sound, rate, hop))
    bands = mel[:, start : start + window].reshape(len(sound), window, BANDS, -1).mean(axis=-1)
    return {
        "attack": level[:, attack].mean(axis=1),
        "sustain": level[:, late].mean(axis=1),
        "onsets": onsets[:, 2 * attack.start : 2 * attack.stop].max(axis=1),
        "brightness": brightness(mel[:, attack], rate).mean(axis=1),
        "pitch": np.asarray(chroma(sound, rate, hop))[:, start : start + window].mean(axis=1),
        "spectrum": bands,
    }


def consistency(vectors: np.ndarray) -> Statistic:
    """How far a key does the same everywhere: the share of the keys' differing effects that the key alone explains.

    The intra-class correlation of effects, without the bias that a variance of few means has: what two *different*
    contexts have in common under the same key, over all there is. 0 if keys do nothing of their own, 1 if each does
    one and the same thing everywhere.

    Args:
      vectors: [K, C, D], of at least two keys. What all keys do alike in a context is no difference between them, and
        is left out.
    """
    centred = vectors - vectors.mean(axis=0)
    squares = np.sum(centred**2, axis=2)

    def statistic(counts: np.ndarray) -> np.ndarray:
        own = counts @ squares.T
        sums = np.einsum("rc,kcd->rkd", counts, centred)
        common = np.sum(sums**2, axis=2) - (counts**2) @ squares.T
        size = counts.sum(axis=1)
        pairs = size**2 - np.sum(counts**2, axis=1)
        total = own.sum(axis=1) / size
        defined = (total > 0) & (pairs > 0)
        share = common.sum(axis=1) / np.where(pairs > 0, pairs, 1) / np.where(total > 0, total, 1)
        return np.where(defined, share, np.nan)

    return statistic


def f_ratio(share: float, contexts: int) -> float:
    """The F-ratio that belongs to a `consistency` over that many contexts: 1 if keys do nothing of their own."""
    return 1 + contexts * share / max(1 - share, 1e-6)


def told_apart(vectors: np.ndarray, tracks: np.ndarray) -> np.ndarray:
    """Whether the key of each press can be told from its effect alone: bool [K, C].

    The press has the key whose mean effect in the other tracks (of one track: in the other contexts) is nearest.
    """
    K, C, _ = vectors.shape
    groups = tracks if len(np.unique(tracks)) > 1 else np.arange(C)
    right = np.zeros((K, C), bool)
    for group in np.unique(groups):
        own = groups == group
        if own.all():
            continue
        means = vectors[:, ~own].mean(axis=1)
        distances = np.sum((vectors[:, own][:, :, None] - means) ** 2, axis=-1)
        right[:, own] = distances.argmin(axis=-1) == np.arange(K)[:, None]
    return right
