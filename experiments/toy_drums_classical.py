"""The classical start, kept for comparison: a codebook drawn at random, dead codes re-seeded, no warm-up.

    python -m melodjinn_jax.train --config experiments/toy_drums_classical.py --workdir runs/classical

This is how latent action models are usually trained (Genie, Jasmine). It trains as long as toy_drums.py and mostly
fails: drums share codes, NOOP is split over several, and codes change their meaning. See docs/toy_world.md.
"""

from melodjinn_jax.config import Config, LatentActionConfig, PhasesConfig


def get_config() -> Config:
    return Config(
        name="toy_drums_classical",
        latent_actions=LatentActionConfig(
            codebook_init="random",
            reset_dead_codes=True,
            max_codes=8,
            commitment_weight=0.25,  # the usual weight; the default is relative to the noise of a warm-up
        ),
        phases=PhasesConfig(discover_steps=0),
    )
