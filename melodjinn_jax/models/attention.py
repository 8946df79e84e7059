"""Attention with a learned sink over a causal sliding window, by the kernel that the device has.

The sink is one logit per head in the softmax's denominator alone. XLA's path writes the weights out, [B, A, L, M];
cuDNN and splash never hold them. B clips, L queries, M keys, A heads, P width of a head.
"""

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

KEPT = "attention"
"""Name of what a kernel's backward pass needs of its forward pass, for policies of rematerialisation."""

SHORTEST_FUSED = 64
"""Positions; a kernel that never holds the weights has no use below."""


def softmax_with_sink(logits: jax.Array, sink: jax.Array) -> jax.Array:
    """Softmax over the last axis of float32 logits, with a further logit `sink` in the denominator alone."""
    peak = jax.lax.stop_gradient(jnp.maximum(logits.max(axis=-1, keepdims=True), sink))
    weights = jnp.exp(logits - peak)
    return weights / (weights.sum(axis=-1, keepdims=True) + jnp.exp(sink - peak))


def masked_attention(q: jax.Array, k: jax.Array, v: jax.Array, sink: jax.Array, mask: jax.Array) -> jax.Array:
    """Queries [B, L, A, P] against keys and values [B, M, A, P] where mask [L, M] allows: [B, L, A, P]."""
    logits = jnp.einsum("blap,bmap->balm", q, k, preferred_element_type=jnp.float32) / q.shape[-1] ** 0.5
    logits = jnp.where(mask, logits, -1e30)
    weights = softmax_with_sink(logits, sink[:, None, None])
    return jnp.einsum("balm,bmap->blap", weights.astype(v.dtype), v)


def windowed_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, sink: jax.Array, window: int, kernel: str
) -> jax.Array:
    """Queries, keys and values [B, L, A, P]; each query sees itself and the window - 1 positions before it.

    Args:
      q: rotated queries.
      k: rotated keys.
      v: values.
      sink: float32 [A].
      window: positions.
      kernel: xla, cudnn, splash (XLA's where L is no multiple of 128), or auto for what the default device has.

    Returns:
      [B, L, A, P].
    """
    L = q.shape[1]
    if kernel == "auto":
        kernel = device_kernel(q.dtype, q.shape[-1]) if L >= SHORTEST_FUSED else "xla"
    if kernel == "splash" and L % SPLASH_LANES == 0:
        return on_mesh(splash_attention, q, k, v, sink, window)
    if kernel == "cudnn":
        return on_mesh(functools.partial(fused_attention, kernel=CudnnKernel()), q, k, v, sink, window)
    positions = jnp.arange(L)
    distance = positions[:, None] - positions
    return masked_attention(q, k, v, sink, (distance >= 0) & (distance < window))


def device_kernel(dtype: jnp.dtype, width: int) -> str:
    """The fastest kernel of the default device for a type and a width of heads."""
    if jax.default_backend() == "tpu":
        return "splash"
    fits = dtype == jnp.bfloat16 and cudnn_takes(width)
    return "cudnn" if jax.default_backend() == "gpu" and fits else "xla"


def cudnn_takes(width: int) -> bool:
    """Whether heads of this width can be cuDNN's, on any GPU from Ampere on."""
    return width % 8 == 0 and width <= 128


Attend = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, int], jax.Array]


def on_mesh(attend: Attend, q: jax.Array, k: jax.Array, v: jax.Array, sink: jax.Array, window: int) -> jax.Array:
    """A kernel on the mesh in scope, which the compiler cannot share out by itself.

    The axis `tensor` shares out the heads, the others the clips if they divide their number.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend(q, k, v, sink, window)
    batch = tuple(axis for axis in mesh.axis_names if axis != "tensor")
    is_shared = len(q) % math.prod(mesh.shape[axis] for axis in batch) == 0
    heads = PartitionSpec(batch if is_shared else None, None, "tensor", None)
    return jax.shard_map(
        lambda q, k, v, sink: attend(q, k, v, sink, window),
        in_specs=(heads, heads, heads, PartitionSpec("tensor")),
        out_specs=heads,
        check_vma=False,
    )(q, k, v, sink)


# TPU: splash attention knows sinks.

SPLASH_LANES = 128
SPLASH_BLOCK = 512


def splash_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, sink: jax.Array, window: int, interpret: bool = False
) -> jax.Array:
    """As `windowed_attention` on one device, for lengths that are multiples of 128."""
    # Imported here, for it costs every command a tenth of its start and only a TPU needs it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

    L, A, P = q.shape[1:]
    block = math.gcd(L, SPLASH_BLOCK)
    sizes = splash_kernel.BlockSizes(
        block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    mask = splash_mask.MultiHeadMask([splash_mask.LocalMask((L, L), (window - 1, 0), 0)] * A)
    attend = splash_kernel.make_splash_mha_single_device(
        mask, block_sizes=sizes, interpret=interpret, residual_checkpoint_name=KEPT
    )
    heads_first = (x.swapaxes(1, 2) for x in (q / math.sqrt(P), k, v))
    mixed = jax.vmap(lambda q, k, v: attend(q, k, v, sinks=sink))(*heads_first)
    return mixed.swapaxes(1, 2).astype(v.dtype)


# GPU: cuDNN's attention knows no sink, but tells the logarithm of its softmax's sum, and its backward pass takes that
# and the outputs as they are given. With weights P, outputs O and g = sigmoid(logsumexp - sink), the sink only scales:
# weights are g P, outputs g O, and the logarithm of the whole sum is log(exp(logsumexp) + exp(sink)). The backward pass
# finds the weights anew from that sum and their mean gradient from the outputs, so that given those of the sink's
# softmax its gradients are the sink's softmax's too.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def fused_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, sink: jax.Array, window: int, kernel: "FusedKernel"
) -> jax.Array:
    """As `windowed_attention`, by a kernel that knows no sink."""
    return _fused_forward(q, k, v, sink, window, kernel)[0]


def _fused_forward(q, k, v, sink, window, kernel):
    mixed, log_sum = kernel.forward(q, k, v, window)
    gate = jax.nn.sigmoid(log_sum - sink[:, None])
    mixed = checkpoint_name((mixed * gate.swapaxes(1, 2)[..., None]).astype(v.dtype), KEPT)
    log_sum = checkpoint_name(jnp.logaddexp(log_sum, sink[:, None]), KEPT)
    return mixed, (q, k, v, sink, mixed, log_sum)


def _fused_backward(window, kernel, saved, grad):
    q, k, v, sink, mixed, log_sum = saved
    dq, dk, dv = kernel.backward(q, k, v, mixed, log_sum, grad, window)
    mean_gradient = jnp.einsum("blap,blap->bal", grad, mixed, preferred_element_type=jnp.float32)
    return dq, dk, dv, -jnp.sum(jnp.exp(sink[:, None] - log_sum) * mean_gradient, axis=(0, 2))


fused_attention.defvjp(_fused_forward, _fused_backward)


class FusedKernel(Protocol):
    """Attention without a sink, whose two passes are called apart."""

    def forward(self, q: jax.Array, k: jax.Array, v: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
        """Outputs [B, L, A, P], and float32 [B, A, L] the logarithm of the softmax's sum."""

    def backward(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        mixed: jax.Array,
        log_sum: jax.Array,
        grad: jax.Array,
        window: int,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Gradients of queries, keys and values, for that of the outputs, which with the sum are taken as given."""


@dataclass(frozen=True)
class CudnnKernel:
    """cuDNN's, by the primitives below `jax.nn.dot_product_attention`, which rounds the sum to the inputs' type and
    whose backward pass takes no other one. JAX does not promise to keep them: imported where they are used."""

    def forward(self, q: jax.Array, k: jax.Array, v: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn

        forward = cudnn._dot_product_attention_fwd_p_wrapper.bind
        mixed, log_sum = forward(q, k, v, *_unused(q), **_cudnn_options(q, window), is_training=True)
        return mixed, log_sum

    def backward(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        mixed: jax.Array,
        log_sum: jax.Array,
        grad: jax.Array,
        window: int,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn

        backward = cudnn._dot_product_attention_bwd_p_wrapper.bind
        dq, dk, dv = backward(q, k, v, *_unused(q), log_sum, mixed, grad, **_cudnn_options(q, window))
        return dq, dk, dv


def _unused(q: jax.Array) -> tuple[jax.Array, ...]:
    """In place of a bias, lengths, offsets and pages."""
    return (jnp.zeros(0, q.dtype),) * 7


def _cudnn_options(q: jax.Array, window: int) -> dict[str, Any]:
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    options = {
        "scale": q.shape[-1] ** -0.5,
        "seed": 0,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),
        "mask_type": cudnn.MaskType.CAUSAL,
        "layout": cudnn.AttentionLayout.BTNH.value,
        "sliding_window_length": window,
    }
    # Since 0.12; the last JAX for Python 3.11 is 0.10.
    is_new = "score_mod" in inspect.signature(cudnn._dot_product_attention_fwd_impl).parameters
    return options | ({"score_mod": None} if is_new else {})
