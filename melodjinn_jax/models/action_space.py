"""From codes to keys: what a person presses.

A codebook holds several codes for one and the same thing (one drum early or late in its frame). Codes are merged by
what follows them in the sound, measured on unlabelled clips, into keys; codes that change nothing one could hear
become NOOP, key 0. Everything after the latent action model speaks of keys.
"""

import hashlib
import json
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from melodjinn_jax.config import LatentActionConfig


@dataclass(frozen=True)
class ActionSpace:
    """The frozen meaning of actions; checkpoints, datasets and files of actions carry its digest."""

    stride: int
    """Frames per action (S)."""
    key_of_code: tuple[int, ...]
    """Key of every code of the codebook; 0 is NOOP."""
    codebook_digest: str
    """SHA-256 of the codebook's vectors."""

    @property
    def num_keys(self) -> int:
        """Keys beside NOOP."""
        return max(self.key_of_code)

    @property
    def digest(self) -> str:
        content = [self.stride, list(self.key_of_code), self.codebook_digest]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def digest_codebook(vectors: np.ndarray) -> str:
    """SHA-256 of a codebook's vectors [K, Z]."""
    return hashlib.sha256(np.ascontiguousarray(vectors, dtype="<f4").tobytes()).hexdigest()


@dataclass(frozen=True)
class Effects:
    """How the sound changes after every action of some clips."""

    rise: np.ndarray
    """[B, n, C]: rise in log magnitude, the loudest frame of the block over the frame before it."""
    linear_rise: np.ndarray
    """[B, n, C]: root of the rise in linear magnitude, which tells sounds apart more sharply."""

    def strength(self, chosen: np.ndarray) -> float:
        """Norm of the mean rise over the chosen actions, bool [B, n]; 0 where none is chosen."""
        return float(np.linalg.norm(self.rise[chosen].mean(axis=0))) if chosen.any() else 0.0

    def direction(self, chosen: np.ndarray) -> np.ndarray:
        """The mean linear rise [C] over the chosen actions, of unit norm."""
        mean = self.linear_rise[chosen].mean(axis=0) if chosen.any() else np.zeros(self.rise.shape[-1])
        return mean / max(float(np.linalg.norm(mean)), 1e-9)


def measure_effects(mel_BFC: np.ndarray, stride: int) -> Effects:
    """Effects of all actions, from the `mel_features` of clips of whole blocks."""
    starts = np.arange(stride, mel_BFC.shape[1], stride)
    before = mel_BFC[:, starts - 1]
    # No farther than the action's own block: beyond it the action would be credited with the hit after it, which in a
    # dense rhythm makes a key of a code that means silence, and of one that merely heralds a hit.
    after = np.max([mel_BFC[:, starts + i] for i in range(stride)], axis=0)
    return Effects(np.maximum(0, after - before), np.sqrt(np.maximum(0, np.expm1(after) - np.expm1(before))))


def merge_codes(
    codes: np.ndarray, effects: Effects, num_codes: int, noop_code: int, config: LatentActionConfig
) -> np.ndarray:
    """Key of every code, from the effects of the codes on unlabelled clips.

    Strong codes found the keys, weaker ones join the key most like them, or the one that most of their occurrences
    follow at once, but never move it. Two kinds of codes need a
    second look. A code after whose block the sound rises still more is a herald: of something that began at the very
    end of its block, too late to be told from other things; the action that counts is the next one. And a code that
    is weak on the whole may be the tail of a key in most places and its late start in others: it joins that key if
    it is strong where the key has not just sounded (repeats are collapsed anyway).

    Args:
      codes: int [B, N - 1] of the clips that `effects` was measured on.
      effects: of those clips.
      num_codes: codes of the codebook.
      noop_code: the code that is NOOP by definition.
      config: thresholds.

    Returns:
      int [num_codes]: 0 for NOOP, for codes too weak to hear and for unused ones; keys count from 1 by strength.
    """
    strengths = np.array([effects.strength(codes == code) for code in range(num_codes)])
    strong = strengths[strengths > 0.4 * strengths.max()]
    floor = config.noop_threshold * float(np.median(strong)) if len(strong) else 0.0
    key_of_code = np.zeros(num_codes, np.int64)
    founders: list[np.ndarray] = []
    founder_strengths: list[float] = []
    for code in np.argsort(-strengths, kind="stable"):
        chosen = codes == code
        if code == noop_code or effects.strength(_shift(chosen, 1)) > strengths[code]:
            continue
        key, likeness = _most_alike(founders, effects.direction(chosen))
        if strengths[code] <= floor:
            fresh = chosen & ~_sounded_before(chosen | (key_of_code[codes] == key), config.collapse_frames)
            key, likeness = _most_alike(founders, effects.direction(fresh))
            # As strong as a hit that starts in the middle of its frame, or it is not one.
            enough = max(floor, 0.5 * founder_strengths[key - 1]) if key else np.inf
            if likeness > config.merge_cosine and effects.strength(fresh) > enough:
                key_of_code[code] = key
        elif likeness > config.merge_cosine:
            key_of_code[code] = key
        elif predecessor := _usual_predecessor(codes, code, key_of_code, config.collapse_frames):
            key_of_code[code] = predecessor
        else:
            founders.append(effects.direction(chosen))
            founder_strengths.append(strengths[code])
            key_of_code[code] = len(founders)
    return key_of_code


def _most_alike(founders: list[np.ndarray], direction: np.ndarray) -> tuple[int, float]:
    """The key whose founder is most like a direction, and their cosine; (0, -1) without founders."""
    likeness = [float(founder @ direction) for founder in founders]
    return (1 + int(np.argmax(likeness)), max(likeness)) if likeness else (0, -1.0)


def _usual_predecessor(codes: np.ndarray, code: int, key_of_code: np.ndarray, frames: int) -> int:
    """The key that sounds within `frames` actions before most occurrences of a code; 0 if there is none."""
    keys = key_of_code[codes]
    for key in range(1, int(key_of_code.max()) + 1):
        if _sounded_before(keys == key, frames)[codes == code].mean() > 0.5:
            return key
    return 0


def _sounded_before(sounded: np.ndarray, frames: int) -> np.ndarray:
    """Whether any of the `frames` actions before is true: bool [B, n] to the same."""
    return np.any([_shift(sounded, distance) for distance in range(1, max(1, frames) + 1)], axis=0)


def _shift(chosen: np.ndarray, distance: int) -> np.ndarray:
    """The actions that come `distance` after the chosen ones: bool [B, n] to the same."""
    return np.pad(chosen, ((0, 0), (distance, 0)))[:, : chosen.shape[1]]


def collapse_repeats(keys: jax.Array, frames: int) -> jax.Array:
    """Credit a key repeated within `frames` actions to the first: int [B, N - 1] to the same, repeats made NOOP."""
    keep = keys > 0
    for distance in range(1, min(frames, keys.shape[1]) + 1):
        earlier = jnp.pad(keys[:, :-distance], ((0, 0), (distance, 0)))
        keep &= earlier != keys
    return jnp.where(keep, keys, 0)
