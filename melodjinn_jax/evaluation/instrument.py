"""A trained model as its measures use it: it plays, it foretells, it listens. Any number of rows, few compilations."""

import functools
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from melodjinn_jax.codecs import Codec
from melodjinn_jax.data.audio import to_int16
from melodjinn_jax.live.generator import generate, sample
from melodjinn_jax.models.dynamics import strengthen
from melodjinn_jax.training.run import CODEBOOK_PARTS, LAM_PARTS, Run
from melodjinn_jax.training.state import Models, State
from melodjinn_jax.training.step import encode_keys

# Rows foretold or heard at a time: more would need memory for their logits, fewer would waste the device.
ROWS = 64


class Instrument(Protocol):
    """What the measures of `meaning` ask of a model."""

    num_keys: int
    """Keys beside NOOP, which are 1..num_keys."""
    null_action: int
    stride: int
    sample_rate: int
    hop_length: int
    has_lam: bool

    def losses(self, codes: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Nats per token of every frame, [B, F], given all that was before it and its action."""

    def play(
        self, codes: np.ndarray, prompt_frames: int, keys: np.ndarray, temperature: float, seed: int = 0
    ) -> np.ndarray:
        """Sound float32 [B, F * H]: the first frames of codes [B, F, Q], continued under keys [B, N - 1]."""

    def play_along(self, codes: np.ndarray, keys: np.ndarray, temperature: float) -> np.ndarray:
        """The same with the true tokens before every token that is drawn (teacher forcing)."""

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """What the codec alone makes of codes: float32 [B, F * H]."""

    def listen(self, waveform: np.ndarray) -> np.ndarray:
        """The LAM's keys int [B, N - 1] of sound float32 [B, F * H] that the codec made."""

    def listen_to(self, recording: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """The same of a recording float32 [B, F * H] with the codes [B, F, Q]."""


@functools.partial(jax.jit, static_argnames="models")
def _losses(models, params, codes, keys):
    logits = models.dynamics(params)(codes, keys)
    return optax.softmax_cross_entropy_with_integer_labels(logits, codes).mean(axis=-1)


@functools.partial(jax.jit, static_argnames="models")
def _play_along(models, params, codes, keys, key, temperature):
    logits = models.dynamics(params)(codes, keys)
    logits = logits.reshape(-1, logits.shape[-1])
    return sample(logits, jax.random.gumbel(key, logits.shape), temperature, 0).reshape(codes.shape)


class TrainedInstrument:
    """The models of a run."""

    def __init__(self, models: Models, state: State, codec: Codec, num_keys: int, strength: float = 1.0):
        self._models, self._state, self._codec = models, state, codec
        self._played = strengthen(state["dynamics"], models.num_codes, strength)
        self.num_keys, self.null_action = num_keys, models.num_codes
        self.stride = models.config.latent_actions.action_stride
        self.sample_rate, self.hop_length = codec.sample_rate, codec.hop_length
        self.has_lam = "lam" in state

    def losses(self, codes: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """See `Instrument`."""
        params = self._state["dynamics"]
        return _in_rows(lambda first, *given: _losses(self._models, params, *given), codes, keys)

    def play(
        self, codes: np.ndarray, prompt_frames: int, keys: np.ndarray, temperature: float, seed: int = 0
    ) -> np.ndarray:
        """See `Instrument`."""
        given = (self._models, self._played, codes, prompt_frames, keys)
        return self.decode(generate(*given, seed=seed, temperature=temperature))

    def play_along(self, codes: np.ndarray, keys: np.ndarray, temperature: float) -> np.ndarray:
        """See `Instrument`."""
        params = self._played

        def play(first: int, codes: np.ndarray, keys: np.ndarray) -> jax.Array:
            return _play_along(self._models, params, codes, keys, jax.random.key(first), jnp.float32(temperature))

        return self.decode(_in_rows(play, codes, keys))

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """See `Instrument`."""
        return np.asarray(self._codec.decode(codes))

    def listen(self, waveform: np.ndarray) -> np.ndarray:
        """See `Instrument`."""
        networks = {name: self._state[name] for name in (*LAM_PARTS, *CODEBOOK_PARTS)}
        encode = jax.jit(encode_keys, static_argnums=0)
        patches = to_int16(waveform).reshape(len(waveform), -1, self.hop_length)
        return _in_rows(lambda first, patches: encode(self._models, networks, patches), patches)

    def listen_to(self, recording: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """See `Instrument`."""
        hears_codec = self._models.config.latent_actions.hears == "codec"
        return self.listen(self.decode(codes) if hears_codec else recording)


def instrument_of(run: Run, strength: float = 1.0) -> TrainedInstrument:
    """The models of a loaded run, which plays actions with this strength."""
    return TrainedInstrument(run.models, run.state, run.codec, run.action_space.num_keys, strength)


def _in_rows(function: Callable, *arrays: np.ndarray) -> np.ndarray:
    """`function` of the number of the first row and of `ROWS` rows of each array at most, piece by piece."""
    count = len(arrays[0])
    # Pieces of one size, so that they share one compilation, with as little padding as can be.
    size = -(-count // -(-count // ROWS))
    results = []
    for first in range(0, count, size):
        pieces = [array[first : first + size] for array in arrays]
        padded = [np.pad(piece, [(0, size - len(piece))] + [(0, 0)] * (piece.ndim - 1)) for piece in pieces]
        given = [piece if piece.dtype == np.int16 else piece.astype(np.int32) for piece in padded]
        results.append(np.asarray(function(first, *given))[: len(pieces[0])])
    return np.concatenate(results)
