"""Every attention kernel gives what the plain one gives, and so do its gradients, that of the sink among them."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from melodjinn_jax.config import Config
from melodjinn_jax.models.attention import CudnnKernel, fused_attention, splash_attention, windowed_attention
from melodjinn_jax.models.transformer import Compute, Transformer
from melodjinn_jax.training.mesh import open_mesh

ROOT = Path(__file__).resolve().parent.parent
WINDOW = 20
REMATS = ("none", "dots", "full")


def plain(q, k, v, sink):
    return windowed_attention(q, k, v, sink, WINDOW, "xla")


class PlainKernel:
    """What cuDNN's does, by its definition: the backward pass believes the outputs and the sum that it is given."""

    def forward(self, q, k, v, window):
        logits = self._logits(q, k, window)
        log_sum = jax.nn.logsumexp(logits, axis=-1)
        return jnp.einsum("balm,bmap->blap", jnp.exp(logits - log_sum[..., None]), v), log_sum

    def backward(self, q, k, v, mixed, log_sum, grad, window):
        weights = jnp.exp(self._logits(q, k, window) - log_sum[..., None])
        mean = jnp.einsum("blap,blap->bal", grad, mixed)
        slopes = weights * (jnp.einsum("blap,bmap->balm", grad, v) - mean[..., None]) / q.shape[-1] ** 0.5
        return (
            jnp.einsum("balm,bmap->blap", slopes, k),
            jnp.einsum("balm,blap->bmap", slopes, q),
            jnp.einsum("balm,blap->bmap", weights, grad),
        )

    def _logits(self, q, k, window):
        distance = jnp.arange(q.shape[1])[:, None] - jnp.arange(q.shape[1])
        logits = jnp.einsum("blap,bmap->balm", q, k) / q.shape[-1] ** 0.5
        return jnp.where((distance >= 0) & (distance < window), logits, -1e30)


def fused(q, k, v, sink):
    """What cuDNN's path computes, with a plain kernel in its place: the sink, which cuDNN lacks, must be right."""
    return fused_attention(q, k, v, sink, WINDOW, PlainKernel())


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


def cudnn(q, k, v, sink):
    return fused_attention(q, k, v, sink, WINDOW, CudnnKernel())


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="no GPU")
def test_on_a_gpu_cudnn_is_as_near_to_float32_as_the_plain_kernel_in_bfloat16(inputs):
    (q, k, v, sink), weights = inputs
    halved = (*(x.astype(jnp.bfloat16) for x in (q, k, v)), sink)
    with jax.default_matmul_precision("highest"):
        wanted = value_and_gradients(plain, (q, k, v, sink), weights)

    def error(attend):
        found = value_and_gradients(attend, halved, weights)
        pairs = zip(found, wanted, strict=True)
        return np.array(
            [np.linalg.norm(got.astype(np.float32) - right) / np.linalg.norm(right) for got, right in pairs]
        )

    assert np.all(error(cudnn) < 1.5 * error(plain) + 1e-3)


@pytest.mark.parametrize("is_on_mesh", [False, True])
@pytest.mark.parametrize("remat", ["none", "dots"])
def test_for_a_gpu_each_pass_of_cudnn_is_called_once(remat, is_on_mesh):
    """What it needs of JAX is below the public interface; and rematerialisation keeps what cuDNN has found."""
    compute = Compute(jnp.dtype("bfloat16"), remat, "cudnn", unrolled_layers=4)
    graph, params = nnx.split(Transformer(128, 2, 1, WINDOW, compute, nnx.Rngs(0)))

    def loss(params, x):
        return nnx.merge(graph, params)(x).sum()

    with jax.set_mesh(open_mesh(Config())) if is_on_mesh else contextlib.nullcontext():
        traced = jax.jit(jax.grad(loss)).trace(params, jnp.zeros((2, 128, 128)))
        program = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"@__cudnn\$(\w+)", program)
    assert sorted(calls) == ["fmhaSoftmax", "fmhaSoftmaxBackward"]


MESH_TEST = ROOT / "tests" / "tools" / "cudnn_on_mesh.py"


@pytest.mark.parametrize("mesh", ["1 1 1 1", "1 1 1 2", "1 2 2 2"])
def test_on_a_mesh_cudnns_passes_get_the_shares_that_belong_together(mesh):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(MESH_TEST), *mesh.split()]
    finished = subprocess.run(command, capture_output=True, text=True, env=os.environ | flags, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines() == [f"{remat} {layers}: right" for remat in REMATS for layers in (4, 1)]
