"""The causal transformer that the latent action model and the dynamics model share.

Pre-norm blocks with RMSNorm, QK-norm, rotary positions and a sliding window whose softmax holds a learned sink:
one logit per head that takes attention when nothing in the window deserves it (Xiao et al. 2023, "Efficient
streaming language models with attention sinks"; as a bare logit, gpt-oss 2025). A sink without a key needs no place
in the cache, so the ring of a cached step and the band mask of training see the very same positions.
"""

import functools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from melodjinn_jax.models.attention import KEPT, masked_attention, windowed_attention
from melodjinn_jax.models.sharding import pin_batch

ROPE_BASE = 1000.0
ROPE_CIRCLE = 65536

# A loop over layers keeps the compile time of deep stacks in bounds, but costs a small model on a CPU half its speed.
# It copies whatever it keeps for the backward pass: of 16 layers on a GPU that is twice the memory, on a TPU a seventh
# more to read and write.
UNROLLED_LAYERS_CPU = 4
UNROLLED_LAYERS_ACCELERATOR = 32


@dataclass(frozen=True)
class Compute:
    """How a transformer computes; none of it changes what, but for rounding."""

    dtype: jnp.dtype
    """Of the matrix products; parameters, norms and softmax are float32."""
    remat: Literal["none", "dots", "full"]
    """What the backward pass computes anew: nothing, all but matrix products and fused attention, or whole blocks."""
    attention: Literal["auto", "xla", "cudnn", "splash"]
    """The kernel of whole sequences; steps always use XLA's."""
    unrolled_layers: int
    """The most layers that are compiled one by one; 0: what suits the default device."""

    def unrolls(self, num_layers: int) -> bool:
        suits = UNROLLED_LAYERS_CPU if jax.default_backend() == "cpu" else UNROLLED_LAYERS_ACCELERATOR
        return num_layers <= (self.unrolled_layers or suits)


class KVCache(NamedTuple):
    """A ring of the last W rotated keys and values, [B, W, A, P] for each layer."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]


def rotary_turns(head_dim: int) -> np.ndarray:
    """Rotary frequencies int32 [head_dim / 2], in turns per `ROPE_CIRCLE` positions.

    They are whole numbers, so that a stream may count positions modulo that number for ever: angles are exact after
    ten hours as after a second, and a key is rotated only once.
    """
    ideal = ROPE_BASE ** (-np.arange(head_dim // 2) / (head_dim // 2))
    turns: np.ndarray = np.maximum(1, np.round(ideal * ROPE_CIRCLE / (2 * np.pi))).astype(np.int32)
    return turns


def rotary_table(positions: jax.Array, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of rotary angles (Su et al. 2021): [..., head_dim / 2] each, for int positions [...]."""
    turns = rotary_turns(head_dim)
    angles = (positions[..., None] % ROPE_CIRCLE * turns % ROPE_CIRCLE) * (2 * np.pi / ROPE_CIRCLE)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotate heads x [..., L, A, P] by a table of [..., L, P / 2]."""
    cos, sin = (t[..., None, :].astype(x.dtype) for t in table)
    x1, x2 = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([x1 * cos - x2 * sin, x1 * sin + x2 * cos], axis=-1)


class Attention(nnx.Module):
    """Multi-head attention over a causal sliding window."""

    def __init__(self, dim: int, num_heads: int, window: int, num_layers: int, compute: Compute, rngs: nnx.Rngs):
        self.num_heads, self.head_dim, self.window, self.kernel = num_heads, dim // num_heads, window, compute.attention
        linear = functools.partial(nnx.Linear, use_bias=False, dtype=compute.dtype, rngs=rngs)
        self.qkv = linear(dim, 3 * dim)
        # Residual branches start small in proportion to the depth (Radford et al. 2019).
        out_init = nnx.initializers.variance_scaling(1 / (2 * num_layers), "fan_in", "truncated_normal")
        self.out = linear(dim, dim, kernel_init=out_init)
        self.query_norm = nnx.RMSNorm(self.head_dim, dtype=jnp.float32, rngs=rngs)
        self.key_norm = nnx.RMSNorm(self.head_dim, dtype=jnp.float32, rngs=rngs)
        self.sink = nnx.Param(jnp.zeros(num_heads))

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries, keys and values [..., A, P] of x [..., D]; queries and keys normalised, not yet rotated."""
        heads = self.qkv(x).reshape(*x.shape[:-1], 3, self.num_heads, self.head_dim)
        q, k, v = heads[..., 0, :, :], heads[..., 1, :, :], heads[..., 2, :, :]
        return self.query_norm(q).astype(v.dtype), self.key_norm(k).astype(v.dtype), v

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        return self.over(x_BLD)[0]

    def over(self, x_BLD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A whole sequence: outputs [B, L, D], and the keys and values [B, L, A, P] that later positions look at."""
        q, k, v = self.project(x_BLD)
        table = rotary_table(jnp.arange(x_BLD.shape[1]), self.head_dim)
        k = rotate(k, table)
        mixed = windowed_attention(rotate(q, table), k, v, self.sink[...], self.window, self.kernel)
        return self.out(mixed.reshape(x_BLD.shape)), k, v

    def step(self, x_BD, keys_BWAP, values_BWAP, position) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One position against the ring: returns the output [B, D] and the updated keys and values."""
        q, k, v = (heads[:, None] for heads in self.project(x_BD))
        table = rotary_table(position[None], self.head_dim)
        here = position % self.window
        keys = jax.lax.dynamic_update_slice_in_dim(keys_BWAP, rotate(k, table), here, axis=1)
        values = jax.lax.dynamic_update_slice_in_dim(values_BWAP, v, here, axis=1)
        age = (here - jnp.arange(self.window)) % self.window
        mixed = masked_attention(rotate(q, table), keys, values, self.sink[...], (age <= position)[None])
        return self.out(mixed.reshape(x_BD.shape)), keys, values


class Block(nnx.Module):
    """Attention and a layer of four times the width, each on a normalised residual branch.

    The nonlinearity is the squared ReLU (So et al. 2021, "Primer"): as good as GELU, and cheap on every device.
    """

    def __init__(self, dim: int, num_heads: int, window: int, num_layers: int, compute: Compute, rngs: nnx.Rngs):
        norm = functools.partial(nnx.RMSNorm, dim, dtype=jnp.float32, rngs=rngs)
        linear = functools.partial(nnx.Linear, use_bias=False, dtype=compute.dtype, rngs=rngs)
        self.attention_norm, self.mlp_norm = norm(), norm()
        self.attention = Attention(dim, num_heads, window, num_layers, compute, rngs)
        self.up = linear(dim, 4 * dim)
        out_init = nnx.initializers.variance_scaling(1 / (2 * num_layers), "fan_in", "truncated_normal")
        self.down = linear(4 * dim, dim, kernel_init=out_init)

    def mlp(self, x: jax.Array) -> jax.Array:
        return self.down(jnp.square(jax.nn.relu(self.up(self.mlp_norm(x)))))

    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        return self.over(x_BLD)[0]

    def over(self, x_BLD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """A whole sequence, and its keys and values, as `Attention.over` gives them."""
        x_BLD = pin_batch(x_BLD)
        mixed, keys, values = self.attention.over(self.attention_norm(x_BLD))
        x_BLD = x_BLD + mixed
        return pin_batch(x_BLD + self.mlp(x_BLD)), keys, values

    def step(self, x_BD, keys, values, position) -> tuple[jax.Array, jax.Array, jax.Array]:
        mixed, keys, values = self.attention.step(self.attention_norm(x_BD), keys, values, position)
        x_BD = x_BD + mixed
        return x_BD + self.mlp(x_BD), keys, values


class Transformer(nnx.Module):
    """A stack of blocks with a final norm; parameters are stacked by layer and scanned over.

    What steers it, if anything does, is added before block `steered_block`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_layers: int,
        window: int,
        compute: Compute,
        rngs: nnx.Rngs,
        steered_block: int = 0,
    ):
        self.steered_block = steered_block
        self.num_layers, self.num_heads, self.head_dim, self.window = num_layers, num_heads, dim // num_heads, window
        self.dtype, self.remat, self.unroll = compute.dtype, compute.remat, compute.unrolls(num_layers)

        @nnx.vmap
        def stack(rngs: nnx.Rngs) -> Block:
            return Block(dim, num_heads, window, num_layers, compute, rngs)

        self.blocks = stack(rngs.fork(split=num_layers))
        self.norm = nnx.RMSNorm(dim, dtype=jnp.float32, rngs=rngs)

    def __call__(self, x_BLD: jax.Array, steering_BLD: jax.Array | None = None) -> jax.Array:
        """Causal pass over a sequence: [B, L, D] to [B, L, D]."""
        x_BLD = x_BLD.astype(self.dtype)
        if steering_BLD is None:
            return self.norm(self._through(x_BLD, self.blocks))
        if self.steered_block:
            x_BLD = self._through(x_BLD, jax.tree.map(lambda x: x[: self.steered_block], self.blocks))
        steered = jax.tree.map(lambda x: x[self.steered_block :], self.blocks)
        return self.norm(self._through(x_BLD + steering_BLD.astype(self.dtype), steered))

    def _through(self, x_BLD: jax.Array, blocks: Block) -> jax.Array:
        """Through blocks that are stacked by layer."""

        def body(x: jax.Array, block: Block) -> tuple[jax.Array, None]:
            return block(x), None

        saved = None
        if self.remat == "dots":
            policies = jax.checkpoint_policies
            saved = policies.save_from_both_policies(
                policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(KEPT)
            )
        step = body if self.remat == "none" else jax.checkpoint(body, policy=saved, prevent_cse=self.unroll)
        x_BLD, _ = jax.lax.scan(step, x_BLD, blocks, unroll=self.unroll)
        return x_BLD

    def init_cache(self, batch_size: int) -> KVCache:
        shape = (batch_size, self.window, self.num_heads, self.head_dim)
        zeros = tuple(jnp.zeros(shape, self.dtype) for _ in range(self.num_layers))
        return KVCache(zeros, zeros)

    def fill_cache(self, layers: tuple[Block, ...], x_BLD: jax.Array, steering_BLD: jax.Array | None = None) -> KVCache:
        """The ring after a sequence of at least one position: what as many calls of `step` leave, in one pass."""
        x_BLD, length = x_BLD.astype(self.dtype), x_BLD.shape[1]
        kept = min(length, self.window)
        places = np.arange(length - kept, length) % self.window
        cache = self.init_cache(len(x_BLD))
        keys, values = [], []
        for i, (block, empty) in enumerate(zip(layers, cache.keys, strict=True)):
            if steering_BLD is not None and i == self.steered_block:
                x_BLD = x_BLD + steering_BLD.astype(self.dtype)
            x_BLD, layer_keys, layer_values = block.over(x_BLD)
            keys.append(empty.at[:, places].set(layer_keys[:, -kept:]))
            values.append(empty.at[:, places].set(layer_values[:, -kept:]))
        return KVCache(tuple(keys), tuple(values))

    def layers(self) -> tuple[Block, ...]:
        """The blocks one by one. A loop over positions takes them as constants, sliced once, before it begins."""
        return tuple(jax.tree.map(lambda x, i=i: x[i], self.blocks) for i in range(self.num_layers))

    def step(
        self,
        layers: tuple[Block, ...],
        x_BD: jax.Array,
        cache: KVCache,
        position: jax.Array,
        steering_BD: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache]:
        """One position, given the ring of the ones before it: output [B, D] and the new ring.

        Unrolled, because at batch 1 a loop over layers costs more than the layers do.
        """
        x_BD = x_BD.astype(self.dtype)
        keys, values = [], []
        for i, (block, layer_keys, layer_values) in enumerate(zip(layers, cache.keys, cache.values, strict=True)):
            if steering_BD is not None and i == self.steered_block:
                x_BD = x_BD + steering_BD.astype(self.dtype)
            x_BD, layer_keys, layer_values = block.step(x_BD, layer_keys, layer_values, position)
            keys.append(layer_keys)
            values.append(layer_values)
        return self.norm(x_BD), KVCache(tuple(keys), tuple(values))
