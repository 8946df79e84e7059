"""Measures that need no ground truth, of the drum world and of any other music."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from melodjinn_jax.codecs import Codec
from melodjinn_jax.data.audio import SILENCE_DB
from melodjinn_jax.evaluation.descriptors import DECIBELS_PER_NEPER
from melodjinn_jax.evaluation.onsets import log_mel
from melodjinn_jax.live.generator import generate
from melodjinn_jax.models.dynamics import DynamicsModel
from melodjinn_jax.training.state import Models, State

FULL_SCALE = np.float32(32768)
FLOOR_DB = -120.0


def clip_losses(dynamics: DynamicsModel, codes: jax.Array, actions: jax.Array) -> jax.Array:
    """Nats [B, F - 1, Q] of the tokens of clips under actions; the first frame is left out, as none foretells it."""
    losses = optax.softmax_cross_entropy_with_integer_labels(dynamics(codes, actions), codes)
    return losses[:, 1:]


def cross_entropies(models: Models, state: State, codes: np.ndarray, keys: np.ndarray) -> dict[str, float]:
    """Teacher-forced cross entropy in nats per token, with true actions, shuffled in time, and none.

    Args:
      models: of the run.
      state: with the parameters of `dynamics`.
      codes: int [B, F, Q].
      keys: int [B, N - 1].
    """

    @jax.jit
    def cross_entropy(params, codes, actions):
        return clip_losses(models.dynamics(params), codes, actions).mean()

    rng = np.random.default_rng(0)
    variants = {
        "true_actions": keys,
        "shuffled_actions": rng.permuted(keys, axis=1),
        "no_actions": np.full_like(keys, models.num_codes),
    }
    tokens = jnp.asarray(codes, jnp.int32)
    return {
        f"cross_entropy_{name}": float(cross_entropy(state["dynamics"], tokens, jnp.asarray(actions)))
        for name, actions in variants.items()
    }


def logmel_correlation(truth: np.ndarray, generated: np.ndarray) -> float:
    """Correlation of the log-mel spectrograms of clips [B, samples], over all clips; 0 if one is all the same."""
    # All clips as one, for a clip may be silent after its prompt.
    true_mel, generated_mel = (np.asarray(log_mel(x)).ravel() for x in (truth, generated))
    if not np.ptp(true_mel) or not np.ptp(generated_mel):
        return 0.0
    return float(np.corrcoef(true_mel, generated_mel)[0, 1])


def logmel_distance(truth: np.ndarray, generated: np.ndarray) -> float:
    """Root mean square difference of the log-mel spectrograms of clips [B, samples], in decibels."""
    difference = np.asarray(log_mel(truth)) - np.asarray(log_mel(generated))
    return float(DECIBELS_PER_NEPER * np.sqrt(np.mean(difference**2)))


def level(waveforms: np.ndarray, hop_length: int) -> tuple[float, float]:
    """Level of clips [B, samples] in decibels of full scale, and the share of their frames that are silent."""
    power = np.mean(waveforms.reshape(-1, hop_length).astype(np.float64) ** 2, axis=1)
    frames = 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DB / 10)))
    return float(10 * np.log10(max(power.mean(), 10 ** (FLOOR_DB / 10)))), float(np.mean(frames < SILENCE_DB))


def real_time_factor(models: Models, state: State, codec: Codec, seconds: float = 10.0, repeats: int = 5) -> float:
    """Seconds of audio per second of work at batch 1, decoding included: the median of several runs."""
    stride = models.config.latent_actions.action_stride
    blocks = -(-round(seconds * codec.sample_rate / codec.hop_length) // stride)
    prompt = np.zeros((1, blocks * stride, codec.num_codebooks), np.int32)
    actions = np.zeros((1, blocks - 1), np.int32)
    walls = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        codes = generate(models, state["dynamics"], prompt, 1, actions)
        np.asarray(codec.decode(codes))
        walls.append(time.perf_counter() - begin)
    # The first run compiles.
    return blocks * stride * codec.hop_length / codec.sample_rate / float(np.median(walls[1:]))
