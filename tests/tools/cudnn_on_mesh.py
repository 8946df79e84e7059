"""A transformer on cuDNN's path over a mesh of CPU devices, with plain code in the place of cuDNN's two primitives.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/tools/cudnn_on_mesh.py SLICE DATA FSDP TENSOR

Prints, for every policy of rematerialisation, with layers unrolled and in a loop, whether loss and gradients are those
of XLA's kernel on one device.
"""

import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax.interpreters import mlir
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from melodjinn_jax.models.sharding import BATCH_AXES
from melodjinn_jax.models.transformer import Compute, Transformer
from melodjinn_jax.training.mesh import AXES, state_shardings

DIM, HEADS, LAYERS, WINDOW = 32, 4, 2, 20


def logits(q, k, window, scale):
    distance = jnp.arange(q.shape[1])[:, None] - jnp.arange(q.shape[1])
    return jnp.where((distance >= 0) & (distance < window), jnp.einsum("blap,bmap->balm", q, k) * scale, -1e30)


def forward(q, k, v, *unused, scale, sliding_window_length, **options):
    weights = logits(q, k, sliding_window_length, scale)
    log_sum = jax.nn.logsumexp(weights, axis=-1)
    return [jnp.einsum("balm,bmap->blap", jnp.exp(weights - log_sum[..., None]), v), log_sum]


def backward(q, k, v, *others, scale, sliding_window_length, **options):
    log_sum, mixed, grad = others[7:10]
    assert log_sum.shape == (q.shape[0], q.shape[2], q.shape[1]), "cuDNN would read beyond the end"
    weights = jnp.exp(logits(q, k, sliding_window_length, scale) - log_sum[..., None])
    mean = jnp.einsum("blap,blap->bal", grad, mixed)
    slopes = weights * (jnp.einsum("blap,bmap->balm", grad, v) - mean[..., None]) * scale
    return [
        jnp.einsum("balm,bmap->blap", slopes, k),
        jnp.einsum("balm,blap->bmap", slopes, q),
        jnp.einsum("balm,blap->bmap", weights, grad),
    ]


def loss_and_gradients(kernel: str, remat: str, unrolled_layers: int, mesh: Mesh) -> Any:
    rng = np.random.default_rng(0)
    x, weights = rng.normal(size=(2, 8, 64, DIM)).astype(np.float32)
    compute = Compute(jnp.dtype("float32"), remat, kernel, unrolled_layers)  # type: ignore[arg-type]
    graph, params = nnx.split(Transformer(DIM, HEADS, LAYERS, WINDOW, compute, nnx.Rngs(0)))
    params = nnx.to_pure_dict(params)
    params["blocks"]["attention"]["sink"] = rng.normal(size=(LAYERS, HEADS)).astype(np.float32)

    def loss(params, x):
        return (nnx.merge(graph, params)(x) * weights).sum()

    with jax.set_mesh(mesh):
        params = jax.device_put(params, state_shardings({"dynamics": params}, mesh)["dynamics"])
        x = jax.device_put(x, NamedSharding(mesh, PartitionSpec(BATCH_AXES)))
        return jax.device_get(jax.jit(jax.value_and_grad(loss))(params, x))


def mesh_of(shape: tuple[int, ...]) -> Mesh:
    devices = np.array(jax.devices()[: math.prod(shape)]).reshape(shape)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def main() -> None:
    mlir.register_lowering(
        cudnn._dot_product_attention_fwd_p, mlir.lower_fun(forward, multiple_results=True), platform="cpu"
    )
    mlir.register_lowering(
        cudnn._dot_product_attention_bwd_p, mlir.lower_fun(backward, multiple_results=True), platform="cpu"
    )
    wanted = loss_and_gradients("xla", "none", LAYERS, mesh_of((1, 1, 1, 1)))
    for remat in ("none", "dots", "full"):
        for unrolled_layers in (4, 1):
            found = loss_and_gradients("cudnn", remat, unrolled_layers, mesh_of(tuple(map(int, sys.argv[1:]))))
            pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
            is_right = all(np.allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max()) for a, b in pairs)
            print(f"{remat} {unrolled_layers}: {'right' if is_right else 'wrong'}")


if __name__ == "__main__":
    main()
