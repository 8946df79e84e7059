"""An embedding gives the rows of its table, and its gradient is that of the gather."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from melodjinn_jax.models.embedding import Embed, look_up, look_up_by_product


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("look_up", [look_up, look_up_by_product])
def test_rows_and_gradient_are_those_of_a_gather(rng, look_up, dtype):
    table = rng.normal(size=(5, 3)).astype(np.float32)
    indices = rng.integers(0, 5, (4, 7))
    weights = rng.normal(size=(4, 7, 3)).astype(dtype)

    def total(rows):
        return jnp.sum(rows.astype(jnp.float32) * weights.astype(np.float32))

    np.testing.assert_array_equal(look_up(table, indices, jnp.dtype(dtype)), table[indices].astype(dtype))
    found = jax.grad(lambda table: total(look_up(table, indices, jnp.dtype(dtype))))(table)
    wanted = np.zeros((5, 3))
    np.add.at(wanted, indices, weights.astype(np.float64))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_table_in_groups_has_an_own_part_for_each(rng):
    embed = Embed(3 * 4, 2, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    indices = rng.integers(0, 4, (5, 6, 3))
    np.testing.assert_array_equal(embed.by_group(indices), embed(indices + 4 * np.arange(3)))
    np.testing.assert_array_equal(embed(indices), nnx.Embed(3 * 4, 2, rngs=nnx.Rngs(0))(indices))


def test_the_gradient_of_a_table_in_groups_grows_with_the_codebooks_not_with_their_square():
    def memory(groups):
        def loss(table, indices):
            rows = jax.vmap(lambda t, i: look_up_by_product(t, i, jnp.dtype("float32")), (0, -1), -2)
            return jnp.sum(rows(table.reshape(groups, 64, 8), indices) ** 2)

        table, indices = jnp.zeros((groups * 64, 8)), jnp.zeros((512, groups), int)
        return jax.jit(jax.grad(loss)).lower(table, indices).compile().memory_analysis().temp_size_in_bytes

    assert memory(8) < 3 * memory(4)
