"""An embedding gives the rows of its table, and its gradient is that of the gather."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from melodjinn_jax.models.embedding import Embed, look_up, sum_rows, sum_rows_by_product


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (7,), (4, 7)])
def test_rows_and_gradient_are_those_of_a_gather(rng, shape, dtype):
    table = rng.normal(size=(5, 3)).astype(np.float32)
    indices = rng.integers(0, 5, shape)
    weights = rng.normal(size=(*shape, 3)).astype(dtype)

    def total(table):
        return jnp.sum(look_up(table, indices, jnp.dtype(dtype)).astype(jnp.float32) * weights.astype(np.float32))

    np.testing.assert_array_equal(look_up(table, indices, jnp.dtype(dtype)), table[indices].astype(dtype))
    wanted = np.zeros((5, 3))
    np.add.at(wanted, indices, weights.astype(np.float64))
    for found in (jax.grad(total)(table), sum_rows(5, indices, weights), sum_rows_by_product(5, indices, weights)):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_a_table_in_groups_has_an_own_part_for_each(rng):
    embed = Embed(3 * 4, 2, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    indices = rng.integers(0, 4, (5, 6, 3))
    np.testing.assert_array_equal(embed.by_group(indices), embed(indices + 4 * np.arange(3)))
    np.testing.assert_array_equal(embed(indices), nnx.Embed(3 * 4, 2, rngs=nnx.Rngs(0))(indices))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_an_accelerator_multiplies_each_codebook_by_its_own_entries(platform):
    """Whatever device this machine has: `compile` asks for another."""
    codebooks, entries = 3, 64
    graph, params = nnx.split(Embed(codebooks * entries, 8, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0)))

    def loss(params, indices):
        return jnp.sum(nnx.merge(graph, params).by_group(indices) ** 2)

    lowered = (
        jax.jit(jax.grad(loss)).trace(params, jnp.zeros((512, codebooks), int)).lower(lowering_platforms=(platform,))
    )
    program = lowered.as_text()
    assert "stablehlo.scatter" not in program
    assert f"{codebooks}x512x{entries}xf32" in program
    assert f"x{codebooks * entries}xf32" not in program
