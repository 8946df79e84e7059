"""Practice: keys pressed at random, played by the dynamics model, and learnt where the LAM hears what was pressed.

Labels teach the model what music holds, not how a press must sound to be heard as one: pressed where no music had it,
a key is played too weakly. So the model also presses keys itself, in clips of the batch, and where the frozen LAM hears
the key in what it played, that is made likelier: a policy gradient whose reward is 1 or 0 (cf. Zelikman et al. 2022,
"STaR", for learning from one's own successes). All keys that were heard in a batch weigh alike, so that the gradient is
about that of the logarithm of each key's chance to be heard. Nothing of it is kept from step to step.

Only a table of what a press adds to its key learns from this (cf. Lester et al. 2021, "The power of scale for
parameter-efficient prompt tuning"), and only beyond strength 1 is it added: practice takes nothing from what the model
knows of music.

R presses, C blocks of context before each, F frames of both, S frames per block.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from melodjinn_jax.models.dynamics import DynamicsModel, align_actions
from melodjinn_jax.training.state import Models

# Blocks played for each press: it counts if it is heard in the first or in the second, as in `evaluation/effects.py`.
PLAYED_BLOCKS = 2

Listen = Callable[[jax.Array], jax.Array]
"""Keys int [R, N - 1] that the LAM hears in codes int [R, F, Q]."""


class Presses(NamedTuple):
    """What was pressed, and where."""

    context: jax.Array
    """int32 [R, C * S, Q]."""
    actions: jax.Array
    """int32 [R, C + 1]: those of the context, then the key pressed, then NOOP."""

    @property
    def key(self) -> jax.Array:
        """int32 [R]."""
        return self.actions[:, -PLAYED_BLOCKS]


def draw_presses(models: Models, codes: jax.Array, keys: jax.Array, num_keys: jax.Array, key: jax.Array) -> Presses:
    """As many contexts as the clips hold one after the other, and a key for each.

    Args:
      models: of the run.
      codes: int [B, N * S, Q].
      keys: the clips' own, int [B, N - 1].
      num_keys: int [], to draw 1..num_keys from.
      key: random key.
    """
    stride, B, Q = models.config.latent_actions.action_stride, len(codes), codes.shape[-1]
    C = models.config.dynamics.practice_frames // stride
    each = (keys.shape[1] + 1) // C
    context = codes[:, : each * C * stride].reshape(B * each, C * stride, Q).astype(jnp.int32)
    within = jnp.pad(keys, ((0, 0), (0, 1)))[:, : each * C].reshape(B * each, C)[:, :-1]
    pressed = 1 + jax.random.randint(key, (B * each, 1), 0, jnp.maximum(num_keys, 1))
    return Presses(context, jnp.concatenate([within, pressed, jnp.zeros_like(pressed)], axis=1))


def embed_presses(model: DynamicsModel, presses: Presses, strength: float) -> jax.Array:
    """The actions of presses at this strength: [R, C + 1, D]."""
    R, N = presses.actions.shape
    return model.action_embedding(presses.actions.ravel(), jnp.full(R * N, strength)).reshape(R, N, -1)


def play_presses(model: DynamicsModel, presses: Presses, strength: float, key: jax.Array) -> jax.Array:
    """The contexts and what the model plays after them, at temperature 1: codes int32 [R, F, Q]."""
    stride, layers = model.action_stride, model.layers()
    null = model.embed_action(jnp.asarray(model.null_action))
    actions = align_actions(embed_presses(model, presses, strength), null, stride)
    start = presses.context.shape[1]
    state = model.state_after(layers, presses.context, actions[:, :start])

    def step(state: Any, inputs: tuple[jax.Array, ...]) -> tuple[Any, jax.Array]:
        frame_key, action = inputs

        def choose(logits: jax.Array, codebook: int) -> jax.Array:
            return jax.random.categorical(jax.random.fold_in(frame_key, codebook), logits).astype(jnp.int32)

        return model.play(layers, state, action, choose)

    inputs = (jax.random.split(key, PLAYED_BLOCKS * stride), actions[:, start:].swapaxes(0, 1))
    _, played = jax.lax.scan(step, state, inputs)
    return jnp.concatenate([presses.context, played.swapaxes(0, 1)], axis=1)


def is_heard(presses: Presses, heard: jax.Array) -> jax.Array:
    """Whether a press is heard: bool [R], from the keys int [R, N - 1] that the LAM hears in what was played."""
    first, second = heard[:, -PLAYED_BLOCKS], heard[:, 1 - PLAYED_BLOCKS]
    return jnp.where(first > 0, first, second) == presses.key


def success_weights(presses: Presses, succeeded: jax.Array, max_keys: int) -> jax.Array:
    """Weights [R] of the successes, all keys that had one alike whatever their number; they add up to 1, or to 0."""
    by_key = jax.nn.one_hot(presses.key, max_keys + 1) * succeeded[:, None]
    successes = by_key.sum(axis=0)
    own = (by_key / jnp.maximum(successes, 1)).sum(axis=1)
    return own / jnp.maximum(jnp.sum(successes > 0), 1)


def practice_gradient(
    models: Models, params: Any, codes: jax.Array, keys: jax.Array, num_keys: jax.Array, listen: Listen, key: jax.Array
) -> tuple[Any, jax.Array]:
    """What a batch's presses teach.

    Args:
      models: of the run.
      params: of the dynamics model.
      codes: of the batch, int [B, N * S, Q].
      keys: of the batch, int [B, N - 1].
      num_keys: int [].
      listen: of the run's LAM.
      key: random key.

    Returns:
      the gradient of what the successes cost, in nats per token played, by the parameter `embed_press` (not of NOOP,
      which nobody presses), and the share that succeeded.
    """
    key_press, key_play = jax.random.split(key)
    presses = draw_presses(models, codes, keys, num_keys, key_press)
    strength = models.config.dynamics.practice_strength
    played = play_presses(models.dynamics(params), presses, strength, key_play)
    succeeded = is_heard(presses, listen(played))
    weights = success_weights(presses, succeeded, models.num_codes)
    start = presses.context.shape[1]

    def loss(added: Any) -> jax.Array:
        model = models.dynamics({**params, "embed_press": added})
        logits = model(played, embed_presses(model, presses, strength))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, played)[:, start:]
        return jnp.sum(losses.mean(axis=(1, 2)) * weights)

    grads = jax.tree.map(lambda g: g.at[0].set(0), jax.grad(loss)(params["embed_press"]))
    return grads, succeeded.mean()
