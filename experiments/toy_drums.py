"""The toy drum world: discover the drums of synthetic rhythms, and play them.

    python -m melodjinn_jax.train --config experiments/toy_drums.py --workdir runs/toy_drums

Trains a latent action model (203k parameters) and a dynamics model (182k) on 11 minutes of three synthetic drums
that fall anywhere in time.
"""

from melodjinn_jax.config import Config


def get_config() -> Config:
    return Config(name="toy_drums")
