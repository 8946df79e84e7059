"""The frozen meaning of actions: codes, and the keys that a person presses.

Codes are merged by effect into keys (see `merging`). Everything after the latent action model speaks of keys.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


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

    def to_json(self) -> dict[str, Any]:
        """Its fields and its digest."""
        return {**asdict(self), "digest": self.digest}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "ActionSpace":
        """The inverse of `to_json`. Raises `ValueError` if the digest is not that of the fields."""
        space = cls(fields["stride"], tuple(fields["key_of_code"]), fields["codebook_digest"])
        if space.digest != fields["digest"]:
            raise ValueError(f"an action space says that it is {fields['digest']}, but is {space.digest}")
        return space


def digest_codebook(*parts: np.ndarray) -> str:
    """SHA-256 of a codebook's vectors [K, Z], and of what else says which latents get which code."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(part, dtype="<f4").tobytes() for part in parts)).hexdigest()


def collapse_repeats(keys: jax.Array, frames: int) -> jax.Array:
    """Credit a key repeated within `frames` actions to the first: int [B, N - 1] to the same, repeats made NOOP."""
    keep = keys > 0
    for distance in range(1, min(frames, keys.shape[1]) + 1):
        earlier = jnp.pad(keys[:, :-distance], ((0, 0), (distance, 0)))
        keep &= earlier != keys
    return jnp.where(keep, keys, 0)
