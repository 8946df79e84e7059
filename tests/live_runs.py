"""Small runs to play with: random weights, no training."""

from pathlib import Path

import jax
import numpy as np
from conftest import tiny_config

from melodjinn_jax.codecs import Codec, FittedCodec
from melodjinn_jax.codecs.fitted import LATENT_DIM, initial_params
from melodjinn_jax.config import DynamicsConfig, LatentActionConfig
from melodjinn_jax.models.action_space import ActionSpace
from melodjinn_jax.training.phases import PhaseRecord
from melodjinn_jax.training.run import Run, make_models
from melodjinn_jax.training.state import Phase
from melodjinn_jax.training.workdir import WorkDir


def random_codec(codebook_size: int = 16) -> FittedCodec:
    """A codec of two codebooks with random weights."""
    entries = np.random.default_rng(0).normal(size=(2, codebook_size, LATENT_DIM)).astype(np.float32)
    return FittedCodec(initial_params(jax.random.key(0)), entries, 0.2)


def random_run(stride: int = 1, layout: str = "flat", codec: Codec | None = None) -> Run:
    """A run of a random dynamics model with the keys 1 to 3."""
    actions = LatentActionConfig(dim=16, num_heads=2, latent_dim=4, window=6, max_codes=4, action_stride=stride)
    dynamics = DynamicsConfig(dim=16, num_heads=2, num_layers=2, window=6, layout=layout, depth_dim=16)
    config = tiny_config(latent_actions=actions, dynamics=dynamics)
    codec = codec or random_codec()
    models = make_models(config, codec)
    params = models.init_dynamics(jax.random.key(1))
    # Louder actions than at the start of training, so that it shows whether they get through.
    params["embed_action"]["embedding"] = 10 * params["embed_action"]["embedding"]
    return Run(
        workdir=WorkDir(Path("nowhere")),
        config=config,
        codec=codec,
        models=models,
        step=0,
        record=PhaseRecord(Phase.FROZEN),
        action_space=ActionSpace(stride, (0, 1, 2, 3), "random"),
        state={"dynamics": params},
    )
