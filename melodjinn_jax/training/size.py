"""How large a run is: parameters, what it trains on, and the model FLOPs that takes."""

from dataclasses import dataclass

import jax

from melodjinn_jax.models.features import num_channels
from melodjinn_jax.models.flops import dynamics_flops, lam_decoder_flops, lam_encoder_flops
from melodjinn_jax.training.state import Models, count_parameters


@dataclass(frozen=True)
class ModelSize:
    """One model and its training: three forward passes a position, for the backward pass is two."""

    parameters: int
    flops_per_position: float
    """Training FLOPs per token of the dynamics model, or per block of the LAM."""
    positions_per_step: int
    """Tokens, or blocks, of one batch."""


def dynamics_size(models: Models) -> ModelSize:
    """The dynamics model; its positions are tokens."""
    config, codec, training = models.config, models.codec, models.config.training
    tokens = training.crop_frames * codec.num_codebooks
    flops = dynamics_flops(config.dynamics, codec.num_codebooks, codec.codebook_size, training.crop_frames)
    parameters = count_parameters(jax.eval_shape(models.init_dynamics, jax.random.key(0)))
    return ModelSize(parameters, 3 * flops / tokens, training.batch_size * tokens)


def lam_size(models: Models) -> ModelSize:
    """The latent action model, its decoder included; its positions are blocks."""
    actions, codec, training = models.config.latent_actions, models.codec, models.config.training
    channels = num_channels(actions, codec.sample_rate, codec.hop_length)
    blocks = training.crop_frames // actions.action_stride
    flops = lam_encoder_flops(actions, channels, blocks)
    if not models.trains_jointly:
        flops += lam_decoder_flops(actions, channels, blocks)
    parameters = count_parameters(jax.eval_shape(models.init_lam, jax.random.key(0)))
    return ModelSize(parameters, 3 * flops / blocks, training.batch_size * blocks)
