"""AdamW with clipping, under a learning rate that is known only at run time."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from melodjinn_jax.config import OptimizerConfig

Params = Any


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping and AdamW (Loshchilov and Hutter 2019) at learning rate 1; `apply_updates` scales."""

    def is_kernel(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(1.0, b2=config.b2, weight_decay=config.weight_decay, mask=is_kernel),
    )


def learning_rate(config: OptimizerConfig, count: jax.Array, total: jax.Array | int) -> jax.Array:
    """Learning rate of step `count` of `total`.

    Both may be traced: a model that starts when another is frozen learns only then how many steps it has.
    """
    warmup = jnp.minimum(1.0, count / max(1, config.warmup_steps))
    progress = jnp.clip((count - config.warmup_steps) / jnp.maximum(1, total - config.warmup_steps), 0.0, 1.0)
    if config.schedule == "cosine":
        decay = 0.1 + 0.9 * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    elif config.schedule == "wsd":
        decay = jnp.clip((1 - progress) / config.decay_fraction, 0.1, 1.0)
    else:
        decay = jnp.ones(())
    return config.learning_rate * warmup * decay


def apply_gradients(
    optimizer: optax.GradientTransformation, params: Params, opt_state: Any, grads: Params, rate: jax.Array
) -> tuple[Params, Any]:
    """One optimiser step at the given learning rate."""
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, jax.tree.map(lambda u: rate * u, updates)), opt_state
