"""Floating-point operations of the models, counted from their shapes.

XLA's own count takes a scanned layer once and a rematerialised one twice. Counted here are matrix products, two
operations for each multiplication and addition, of a forward pass; norms, softmax, rotations, gathers and the mel bands
are not. Attention counts the keys that its window really holds.
"""

from melodjinn_jax.config import DynamicsConfig, LatentActionConfig


def transformer_flops(dim: int, num_layers: int, window: int, length: int) -> float:
    """Forward pass over one sequence: 24 D^2 per token and layer in the matrices (qkv 6, out 2, up and down 16), and
    4 D for each key that a token attends to."""
    full = min(window, length)
    attended = full * (full + 1) / 2 + (length - full) * full
    return num_layers * (24.0 * dim**2 * length + 4.0 * dim * attended)


def dynamics_flops(config: DynamicsConfig, num_codebooks: int, codebook_size: int, frames: int) -> float:
    """Forward pass of the dynamics model over one clip of `frames` frames."""
    length = frames * num_codebooks
    if config.layout == "depth":
        large = transformer_flops(config.dim, config.num_layers, config.window, frames)
        small = frames * transformer_flops(config.depth_dim, config.depth_layers, num_codebooks, num_codebooks)
        return large + small + 2.0 * config.depth_dim * (config.dim + codebook_size) * length
    body = transformer_flops(config.dim, config.num_layers, config.window * num_codebooks, length)
    return body + 2.0 * config.dim * codebook_size * length


def lam_encoder_flops(config: LatentActionConfig, num_channels: int, blocks: int) -> float:
    """Forward pass of the LAM's encoder over one clip of `blocks` blocks, its embedding included."""
    body = transformer_flops(config.dim, config.encoder_layers, config.window, blocks)
    return body + 2.0 * blocks * config.dim * (num_channels + config.latent_dim)


def lam_decoder_flops(config: LatentActionConfig, num_channels: int, blocks: int) -> float:
    """Forward pass of the LAM's decoder over one clip of `blocks` blocks, its embeddings included."""
    body = transformer_flops(config.dim, config.decoder_layers, config.window, blocks - 1)
    outputs = num_channels * (1 + config.horizon) + config.latent_dim
    return body + 2.0 * (blocks - 1) * config.dim * outputs
