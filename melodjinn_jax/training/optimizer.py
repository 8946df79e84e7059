"""AdamW or Muon with clipping, under a learning rate that is known only at run time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from melodjinn_jax.config import OptimizerConfig

Params = Any


# Muon's updates have the root mean square of AdamW's, so that one learning rate suits both (Liu et al. 2025).
CONSISTENT_RMS = 0.2


def make_optimizer(config: OptimizerConfig, practice_rate: float = 0.0) -> optax.GradientTransformation:
    """Clipping and the algorithm of `config` at learning rate 1; `apply_gradients` scales.

    With a `practice_rate`, its learning rate on the same schedule, the table of presses has its own clipping and Adam.
    """
    algorithm = adamw if config.algorithm == "adamw" else muon
    clip = optax.clip_by_global_norm(config.clip_norm)
    optimizer = optax.chain(clip, algorithm(config))
    if practice_rate == 0:
        return optimizer

    def label(params: Params) -> Params:
        return {name: jax.tree.map(lambda _, own=name == "embed_press": own, x) for name, x in params.items()}

    practice = optax.chain(clip, optax.adam(practice_rate / config.learning_rate, b2=config.b2))
    return optax.partition({False: optimizer, True: practice}, label)


def adamw(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019); only kernels decay."""

    def is_kernel(params: Params) -> Params:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)

    return optax.adamw(1.0, b2=config.b2, weight_decay=config.weight_decay, mask=is_kernel)


def muon(config: OptimizerConfig) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the kernels of blocks, Adam without decay for all else.

    Left to itself, optax would take every table of embeddings for a matrix, and no stack of layers [layers, in, out].
    The fused kernel of queries, keys and values is three matrices. The state keeps the parameters' shapes, so that it
    lies on a mesh as they do.
    """

    def dimensions(params: Params) -> Params:
        def of_leaf(path: tuple, x: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
            is_stacked_kernel = path[-1].key == "kernel" and x.ndim >= 3
            return optax.contrib.MuonDimensionNumbers(1, x.ndim - 1) if is_stacked_kernel else None

        return jax.tree_util.tree_map_with_path(of_leaf, params)

    inner = optax.contrib.muon(
        1.0,
        weight_decay=config.weight_decay,
        adam_b2=config.b2,
        muon_weight_dimension_numbers=dimensions,
        consistent_rms=CONSISTENT_RMS,
    )

    def update(grads: Params, state: Any, params: Params) -> tuple[Params, Any]:
        updates, state = inner.update(_split_qkv(grads), _split_qkv(state), _split_qkv(params))
        return _fuse_qkv(updates), _fuse_qkv(state)

    return optax.GradientTransformation(lambda params: _fuse_qkv(inner.init(_split_qkv(params))), update)


def _split_qkv(tree: Any) -> Any:
    """Fused kernels [layers, D, 3 D] as [layers, D, 3, D], in parameters or a state of the same names."""
    return _reshape_qkv(tree, lambda x: x.reshape(*x.shape[:2], 3, -1))


def _fuse_qkv(tree: Any) -> Any:
    return _reshape_qkv(tree, lambda x: x.reshape(*x.shape[:2], -1))


def _reshape_qkv(tree: Any, reshape: Callable[[jax.Array], jax.Array]) -> Any:
    def of_leaf(path: tuple, x: jax.Array) -> jax.Array:
        return reshape(x) if [getattr(key, "key", None) for key in path[-2:]] == ["qkv", "kernel"] else x

    return jax.tree_util.tree_map_with_path(of_leaf, tree)


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


def update_average(average: Params, params: Params, decay: float, count: jax.Array) -> Params:
    """The moving average of parameters after step `count` (from 0); young averages forget faster, to lose the start."""
    kept = jnp.minimum(decay, (1 + count) / (10 + count))
    return jax.tree.map(lambda mean, x: kept * mean + (1 - kept) * x, average, params)
