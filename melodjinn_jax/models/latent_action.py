"""The latent action model: what happens between one block of sound and the next.

Block features go through a causal encoder; shifted by one block, its outputs are the latents: latent i has seen blocks
0..i+1 and explains the transition i -> i+1 (Bruce et al. 2024, "Genie"; Schmidt and Jiang 2024, "Learning to act
without actions"). A causal decoder predicts block i+1 from blocks 0..i and the latent. The latent is a peek into the
future; the bottleneck between decides what fits through.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from melodjinn_jax.config import LatentActionConfig
from melodjinn_jax.models.transformer import Compute, Transformer


class LatentActionModel(nnx.Module):
    """Encoder and, unless the dynamics model trains it, decoder over block features [B, N, C]."""

    def __init__(
        self, config: LatentActionConfig, num_channels: int, action_dim: int, compute: Compute, rngs: nnx.Rngs
    ):
        """`action_dim` is the width of the model that `embed_latents` conditions: decoder or dynamics."""
        linear = functools.partial(nnx.Linear, dtype=compute.dtype, rngs=rngs)
        transformer = functools.partial(
            Transformer, config.dim, config.num_heads, window=config.window, compute=compute, rngs=rngs
        )
        latent_dim = len(config.fsq_levels) if config.bottleneck == "fsq" else config.latent_dim
        self.embed = linear(num_channels, config.dim)
        self.encoder = transformer(num_layers=config.encoder_layers)
        self.to_latent = linear(config.dim, latent_dim)
        self.embed_latents = linear(latent_dim, action_dim)
        if config.gradient == "reconstruction":
            self.decoder = transformer(num_layers=config.decoder_layers)
            self.to_features = linear(config.dim, config.horizon * num_channels)

    def encode(self, features_BNC: jax.Array) -> jax.Array:
        """Latents [B, N - 1, Z], float32; latent i depends on blocks up to i + 1 within the receptive field."""
        encoded = self.encoder(self.embed(features_BNC))
        # The shift: the output at block i + 1 is the latent of the transition i -> i + 1.
        return self.to_latent(encoded[:, 1:]).astype(jnp.float32)

    def decode(self, features_BNC: jax.Array, latents: jax.Array) -> jax.Array:
        """Predictions [B, N - 1, C] of blocks 1..N-1, each from the blocks before it and its latent."""
        hidden = self.embed(features_BNC[:, :-1]) + self.embed_latents(latents)
        return self.to_features(self.decoder(hidden)).astype(jnp.float32)


def receptive_field(config: LatentActionConfig) -> int:
    """Blocks that one latent depends on, its target included (W of the design)."""
    return config.encoder_layers * (config.window - 1) + 1
