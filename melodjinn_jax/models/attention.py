"""Attention with a learned sink over a causal sliding window, by the kernel that the device has.

The sink is one logit per head in the softmax's denominator alone. XLA's path writes the weights out, [B, A, L, M];
cuDNN and splash never hold them. B clips, L queries, M keys, A heads, P width of a head.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec


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
        kernel = device_kernel(q.dtype)
    if kernel == "splash" and L % SPLASH_LANES == 0:
        return splash_on_mesh(q, k, v, sink, window)
    if kernel == "cudnn":
        return fused_attention(q, k, v, sink, window, "cudnn")
    positions = jnp.arange(L)
    distance = positions[:, None] - positions
    return masked_attention(q, k, v, sink, (distance >= 0) & (distance < window))


def device_kernel(dtype: jnp.dtype) -> str:
    """The fastest kernel of the default device for a type."""
    if jax.default_backend() == "tpu":
        return "splash"
    return "cudnn" if jax.default_backend() == "gpu" and dtype == jnp.bfloat16 else "xla"


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
    attend = splash_kernel.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)
    heads_first = (x.swapaxes(1, 2) for x in (q / math.sqrt(P), k, v))
    mixed = jax.vmap(lambda q, k, v: attend(q, k, v, sinks=sink))(*heads_first)
    return mixed.swapaxes(1, 2).astype(v.dtype)


def splash_on_mesh(q: jax.Array, k: jax.Array, v: jax.Array, sink: jax.Array, window: int) -> jax.Array:
    """`splash_attention` on the mesh in scope, whose axis `tensor` shares out the heads and whose others the clips.

    The compiler cannot share out a kernel by itself.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return splash_attention(q, k, v, sink, window)
    batch = tuple(axis for axis in mesh.axis_names if axis != "tensor")
    heads = PartitionSpec(batch, None, "tensor", None)
    return jax.shard_map(
        lambda *arrays: splash_attention(*arrays, window),
        in_specs=(heads, heads, heads, PartitionSpec("tensor")),
        out_specs=heads,
        check_vma=False,
    )(q, k, v, sink)


# GPU: cuDNN's attention knows no sink, but tells the logarithm of its softmax's sum. With weights P, outputs O and
# g = sigmoid(logsumexp - sink), the sink only scales: outputs are g O. The gradient of g adds to each logit's
# P_ij c_i with c = g (1 - g) (dO . O), whose sums over keys and queries are themselves attention, with keys for values
# and its transpose; so the backward pass costs one forward and one backward call more.


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def fused_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, sink: jax.Array, window: int, implementation: str
) -> jax.Array:
    """As `windowed_attention`, by JAX's own call (`implementation` xla is there to compare)."""
    return _fused_forward(q, k, v, sink, window, implementation)[0]


def _plain(window: int, implementation: str, **options: bool) -> functools.partial:
    return functools.partial(
        jax.nn.dot_product_attention,
        is_causal=True,
        local_window_size=(window - 1, 0),
        implementation=implementation,
        **options,
    )


def _fused_forward(q, k, v, sink, window, implementation):
    mixed, log_sum = _plain(window, implementation, return_residual=True)(q, k, v)
    gate = jax.nn.sigmoid(log_sum.astype(jnp.float32) - sink)
    return (mixed * gate[..., None]).astype(v.dtype), (q, k, v, mixed, gate)


def _fused_backward(window, implementation, saved, grad):
    q, k, v, mixed, gate = saved
    attend = _plain(window, implementation)
    along = jnp.sum(grad.astype(jnp.float32) * mixed, axis=-1)
    slope = gate * (1 - gate) * along
    dq, dk, dv = jax.vjp(attend, q, k, v)[1]((grad * gate[..., None]).astype(v.dtype))
    scaled = (slope / math.sqrt(q.shape[-1]))[..., None]
    mean_key, transpose = jax.vjp(lambda values: attend(q, k, values), k)
    dq += (scaled * mean_key).astype(q.dtype)
    dk += transpose((scaled * q).astype(k.dtype))[0]
    return dq, dk, dv, -jnp.sum(slope, axis=(0, 1))


fused_attention.defvjp(_fused_forward, _fused_backward)
