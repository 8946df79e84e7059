"""Every attention kernel gives what the plain one gives, and so do its gradients, that of the sink among them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from melodjinn_jax.models.attention import fused_attention, splash_attention, windowed_attention

WINDOW = 20


def plain(q, k, v, sink):
    return windowed_attention(q, k, v, sink, WINDOW, "xla")


def fused(q, k, v, sink):
    """What cuDNN's path computes, with XLA's kernel in its place: the sink, which cuDNN lacks, must be right."""
    return fused_attention(q, k, v, sink, WINDOW, "xla")


def splash(q, k, v, sink):
    return splash_attention(q, k, v, sink, WINDOW, interpret=True)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    q, k, v, weights = rng.normal(size=(4, 1, 128, 2, 128)).astype(np.float32)
    sink = np.array([-1.0, 3.0], np.float32)
    return (q, k, v, sink), weights


def value_and_gradients(attend, arrays, weights):
    def total(*arrays):
        mixed = attend(*arrays)
        return jnp.sum(mixed * weights), mixed

    (_, mixed), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True))(*arrays)
    return jax.device_get((mixed, *gradients))


@pytest.mark.parametrize("attend", [fused, splash])
def test_a_kernel_and_its_gradients_are_those_of_the_plain_one(inputs, attend):
    found, wanted = (value_and_gradients(kernel, *inputs) for kernel in (attend, plain))
    for got, right in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, right, atol=2e-5 * np.abs(right).max())


def test_the_sink_takes_weight_from_the_window_and_nothing_else_does(inputs):
    (q, k, v, sink), _ = inputs
    ones = np.ones_like(v)
    np.testing.assert_allclose(plain(q, k, ones, np.full_like(sink, -1e9)), 1, rtol=1e-5)
    first = np.sum(q[:, 0] * k[:, 0], axis=-1) / np.sqrt(q.shape[-1])
    np.testing.assert_allclose(plain(q, k, ones, sink)[:, 0, :, 0], 1 / (1 + np.exp(sink - first)), rtol=1e-5)
