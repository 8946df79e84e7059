"""An embedding gives the rows of its table, and its gradient is that of the gather."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melodjinn_jax.models.embedding import look_up


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_and_gradient_are_those_of_a_gather(rng, dtype):
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
