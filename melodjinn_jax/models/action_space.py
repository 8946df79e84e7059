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

# A hit is over its peak within three frames; a change that comes later belongs to a later action.
EFFECT_FRAMES = 3


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


def measure_effects(codes: np.ndarray, mel_BFC: np.ndarray, stride: int, num_codes: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean change of the sound after each code.

    Args:
      codes: int [B, N - 1]; code i leads into block i + 1.
      mel_BFC: `mel_features` of the same clips.
      stride: frames per block.
      num_codes: codes of the codebook.

    Returns:
      strengths [K], the norm of the mean rise in log magnitude (0 for unused codes), and directions [K, C] of unit
      norm, from the root of the rise in linear magnitude, which tells sounds apart more sharply.
    """
    frames = mel_BFC.shape[1]
    span = max(stride, EFFECT_FRAMES)
    starts = (np.arange(codes.shape[1]) + 1) * stride
    starts = starts[starts + span <= frames]
    before = mel_BFC[:, starts - 1]
    after = np.max([mel_BFC[:, starts + i] for i in range(span)], axis=0)
    rise = np.maximum(0, after - before)
    linear_rise = np.sqrt(np.maximum(0, np.expm1(after) - np.expm1(before)))
    strengths, directions = np.zeros(num_codes), np.zeros((num_codes, mel_BFC.shape[-1]))
    codes = codes[:, : len(starts)]
    for code in np.unique(codes):
        strengths[code] = np.linalg.norm(rise[codes == code].mean(axis=0))
        direction = linear_rise[codes == code].mean(axis=0)
        directions[code] = direction / max(np.linalg.norm(direction), 1e-9)
    return strengths, directions


def merge_codes(strengths: np.ndarray, directions: np.ndarray, noop_code: int, config: LatentActionConfig) -> np.ndarray:
    """Key of every code, from the codes' effects.

    Strong codes found the keys, weaker ones join the key most like them but never move it.

    Returns:
      int [K]: 0 for NOOP, for codes too weak to hear and for unused ones; keys count from 1 in order of strength.
    """
    strong = strengths[strengths > 0.4 * strengths.max()]
    floor = config.noop_threshold * np.median(strong) if len(strong) else 0.0
    key_of_code = np.zeros(len(strengths), np.int64)
    founders: list[np.ndarray] = []
    for code in np.argsort(-strengths, kind="stable"):
        if code == noop_code or strengths[code] <= floor:
            continue
        likeness = [float(founder @ directions[code]) for founder in founders]
        if likeness and max(likeness) > config.merge_cosine:
            key_of_code[code] = 1 + int(np.argmax(likeness))
        else:
            founders.append(directions[code])
            key_of_code[code] = len(founders)
    return key_of_code


def collapse_repeats(keys: jax.Array, frames: int) -> jax.Array:
    """Credit a key repeated within `frames` actions to the first: int [B, N - 1] to the same, repeats made NOOP."""
    keep = keys > 0
    for distance in range(1, frames + 1):
        earlier = jnp.pad(keys[:, :-distance], ((0, 0), (min(distance, keys.shape[1]), 0)))[:, : keys.shape[1]]
        keep &= earlier != keys
    return jnp.where(keep, keys, 0)
