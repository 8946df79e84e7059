"""Where activations lie on the mesh of devices that is in scope (`jax.set_mesh`); without one, nothing happens here."""

import jax
from jax.sharding import PartitionSpec

BATCH_AXES = ("slice", "data", "fsdp")
"""Mesh axes that share the clips of a batch."""


def pin_batch(x: jax.Array) -> jax.Array:
    """x [B, ...] with its clips shared out and all else whole.

    Left to itself the compiler may share out the width of activations instead, where the weights are: then it sums
    partial products over the network at every layer. A batch that the mesh does not divide is left as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    shards = 1
    for axis in BATCH_AXES:
        shards *= mesh.shape[axis]
    return x if x.shape[0] % shards else jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


def replicate(x: jax.Array) -> jax.Array:
    """x whole on every device, so that every host can read it."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())
