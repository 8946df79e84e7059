"""The decoder-free regime, kept for comparison: the dynamics model's cross entropy alone trains the latent actions.

    python -m melodjinn_jax.train --config experiments/toy_drums_dynamics_gradient.py --workdir runs/dynamics_gradient

The LAM has no decoder and no target of its own; it learns whatever helps to predict codec tokens, artefacts included.
See docs/toy_world.md for what that costs.
"""

from melodjinn_jax.config import Config, LatentActionConfig, PhasesConfig


def get_config() -> Config:
    return Config(
        name="toy_drums_dynamics_gradient",
        latent_actions=LatentActionConfig(gradient="dynamics"),
        # Tokens say less about the actions than features do: it takes longer.
        phases=PhasesConfig(discover_steps=300, freeze_deadline=450),
    )
