"""Generation: frame by frame from a ring cache, steered by one action per block, in compiled stretches of frames."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from melodjinn_jax.models.dynamics import DynamicsModel, DynamicsState, align_actions
from melodjinn_jax.models.transformer import Block
from melodjinn_jax.training.state import Models

STRETCHES = {1: 128, 8: 64, 24: 32, 64: 16}
"""Frames that are compiled as one loop, by the rows that are played together.

Rows and frames are padded to these. On the drum world 64 rows of 96 frames take a fifth of the time in which their
program is compiled, so one program for each shape would cost more.
"""


def sample(logits: jax.Array, noise: jax.Array, temperature: jax.Array, top_k: int | jax.Array) -> jax.Array:
    """Tokens int32 [B] from logits [B, K]: greedy at temperature 0, else from the `top_k` likeliest (0: from all).

    Args:
      logits: [B, K].
      noise: Gumbel numbers [B, K]; the token is where logits over temperature plus noise are greatest.
      temperature: float32 [].
      top_k: known at compile time it costs less than as an array, int32 [].
    """
    greedy = jnp.argmax(logits, axis=-1)
    size = logits.shape[-1]
    if isinstance(top_k, jax.Array):
        ranked = jax.lax.top_k(logits, size)[0]
        last = jnp.where(top_k > 0, jnp.minimum(top_k, size), size) - 1
        logits = jnp.where(logits < jnp.take(ranked, last[None], axis=-1), -jnp.inf, logits)
    elif top_k:
        floor = jax.lax.top_k(logits, min(top_k, size))[0][..., -1:]
        logits = jnp.where(logits < floor, -jnp.inf, logits)
    drawn = jnp.argmax(logits / jnp.maximum(temperature, 1e-6) + noise, axis=-1)
    return jnp.where(temperature > 0, drawn, greedy).astype(jnp.int32)


def frame_noise(key: jax.Array, frame: jax.Array, num_codebooks: int, shape: tuple[int, ...]) -> jax.Array:
    """The Gumbel numbers [Q, *shape] with which a stream samples a frame."""
    keys = jax.random.split(jax.random.fold_in(key, frame), num_codebooks)
    return jax.vmap(lambda key: jax.random.gumbel(key, shape))(keys)


def play_frame(
    model: DynamicsModel,
    layers: tuple[Block, ...],
    state: DynamicsState,
    action_B: jax.Array,
    given_BQ: jax.Array,
    is_given_B: jax.Array,
    noise_QBK: jax.Array,
    temperature: jax.Array,
    top_k: int | jax.Array,
) -> tuple[DynamicsState, jax.Array]:
    """One frame: every codebook in turn, sampled, or taken from `given_BQ` where `is_given_B`.

    `action_B` governs the frame: int32, or embeddings [B, D] as `DynamicsModel.action_embedding` gives them. The noise
    is that of `frame_noise`.

    Returns:
      the stream's new state and the frame's codes int32 [B, Q].
    """

    def choose(logits: jax.Array, codebook: int) -> jax.Array:
        return jnp.where(is_given_B, given_BQ[:, codebook], sample(logits, noise_QBK[codebook], temperature, top_k))

    return model.play(layers, state, action_B, choose)


@functools.partial(jax.jit, static_argnames=("models", "rows"))
def _begin(models, params, rows):
    return models.dynamics(params).init_state(rows)


@functools.partial(jax.jit, static_argnames=("models", "top_k"), donate_argnames="state")
def _play_on(models, params, state, given_BTQ, is_given_BT, actions_BT, seeds_B, temperature, top_k):
    """A stretch of frames: the new state, and their codes [B, T, Q]."""
    model = models.dynamics(params)
    layers = model.layers()

    def step(state, inputs):
        action, given, is_given = inputs
        # As a stream of one row draws them, so that a row is the same whatever is played beside it.
        shape = (model.num_codebooks, (1, model.codebook_size))
        noise = jax.vmap(lambda seed: frame_noise(jax.random.key(seed), state.position, *shape))(seeds_B)
        noise = noise[:, :, 0].swapaxes(0, 1)
        return play_frame(model, layers, state, action, given, is_given, noise, temperature, top_k)

    inputs = (actions_BT.T, given_BTQ.transpose(1, 0, 2), is_given_BT.T)
    state, codes = jax.lax.scan(step, state, inputs)
    return state, codes.transpose(1, 0, 2)


def generate(
    models: Models,
    params: Any,
    prompt_BFQ: np.ndarray,
    prompt_frames: int | np.ndarray,
    actions: np.ndarray,
    *,
    seed: int = 0,
    temperature: float = 0.0,
    top_k: int = 0,
) -> np.ndarray:
    """Continue prompts under actions.

    Args:
      models: of the run.
      params: of the dynamics model.
      prompt_BFQ: int codes over the whole length; those from `prompt_frames` on are ignored.
      prompt_frames: frames taken from the prompt, one number or [B].
      actions: int [B, N - 1]; action i leads into block i + 1, those within the prompt describe it.
      seed: of the sampling; row r draws as a stream of seed + r, so seeds of batches that are to be
        independent lie at least B apart.
      temperature: 0 is greedy.
      top_k: tokens to sample from; 0 is all.

    Returns:
      int32 [B, F, Q], the prompt included.
    """
    F, stride = prompt_BFQ.shape[1], models.config.latent_actions.action_stride
    actions_BF = align_actions(np.asarray(actions, np.int32), np.asarray(models.num_codes), stride)[:, :F]
    is_given_BF = np.arange(F) < np.broadcast_to(prompt_frames, len(prompt_BFQ))[:, None]
    # Of a seed JAX takes the last 32 bits.
    seeds_B = ((int(seed) % 2**32 + np.arange(len(prompt_BFQ))) % 2**32).astype(np.uint32)
    largest = max(STRETCHES)
    pieces = []
    for first in range(0, len(prompt_BFQ), largest):
        piece = slice(first, first + largest)
        given = (np.asarray(prompt_BFQ[piece], np.int32), is_given_BF[piece], actions_BF[piece], seeds_B[piece])
        pieces.append(_generate_rows(models, params, *given, temperature, top_k))
    return np.concatenate(pieces)


def _generate_rows(models, params, given, is_given, actions, seeds, temperature, top_k) -> np.ndarray:
    """`generate` for so few rows that they are played together."""
    count, frames = is_given.shape
    rows = min(size for size in STRETCHES if size >= count)
    length = STRETCHES[rows]
    padding = [(0, rows - count), (0, -frames % length)]
    by_frame = [np.pad(x, padding + [(0, 0)] * (x.ndim - 2)) for x in (given, is_given, actions)]
    seeds = np.pad(seeds, padding[:1])
    state, codes = _begin(models, params, rows), []
    for start in range(0, frames, length):
        stretch = [x[:, start : start + length] for x in by_frame]
        state, played = _play_on(models, params, state, *stretch, seeds, np.float32(temperature), top_k)
        codes.append(played)
    return np.concatenate(codes, axis=1)[:count, :frames]
