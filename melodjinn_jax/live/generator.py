"""Generation: frame by frame from a ring cache, steered by one action per block, all in one compiled loop."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from melodjinn_jax.models.dynamics import DynamicsModel, DynamicsState, align_actions
from melodjinn_jax.models.transformer import Block
from melodjinn_jax.training.state import Models


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


@functools.partial(jax.jit, static_argnames=("models", "top_k"))
def _generate(models, params, prompt_BFQ, prompt_frames_B, actions, key, temperature, top_k):
    model = models.dynamics(params)
    B, F, _ = prompt_BFQ.shape
    by_frame = align_actions(actions, jnp.asarray(model.null_action), model.action_stride)[:, :F]

    layers = model.layers()

    def step(state, inputs):
        frame, action, given = inputs
        noise = frame_noise(key, frame, model.num_codebooks, (B, model.codebook_size))
        return play_frame(model, layers, state, action, given, frame < prompt_frames_B, noise, temperature, top_k)

    inputs = (jnp.arange(F), by_frame.T, prompt_BFQ.transpose(1, 0, 2))
    _, codes = jax.lax.scan(step, model.init_state(B), inputs)
    return codes.transpose(1, 0, 2)


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
      seed: of the sampling.
      temperature: 0 is greedy.
      top_k: tokens to sample from; 0 is all.

    Returns:
      int32 [B, F, Q], the prompt included.
    """
    prompt_frames_B = jnp.broadcast_to(jnp.asarray(prompt_frames), prompt_BFQ.shape[:1])
    return np.asarray(
        _generate(
            models,
            params,
            jnp.asarray(prompt_BFQ, jnp.int32),
            prompt_frames_B,
            jnp.asarray(actions, jnp.int32),
            jax.random.key(seed),
            jnp.float32(temperature),
            top_k,
        )
    )
