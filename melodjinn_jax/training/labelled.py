"""A run on labels: frozen from its first step, with the action space of the labels, and no LAM."""

from typing import Any

import jax.numpy as jnp

from melodjinn_jax.errors import UserError
from melodjinn_jax.models.action_space import ActionSpace
from melodjinn_jax.training.phases import PhaseRecord
from melodjinn_jax.training.state import Models, Phase, State, commit, seed_data, with_dynamics


class LabelledMachine:
    """Stands where the phase machine of other runs stands; there is nothing to switch."""

    def __init__(self, models: Models, space: ActionSpace):
        """Raises `UserError` unless the models are made for this action space."""
        self.models = models
        self._space = space
        actions = models.config.latent_actions
        for name, here, there in (
            ("action_stride", actions.action_stride, space.stride),
            ("max_codes", models.num_codes, len(space.key_of_code)),
        ):
            if here != there:
                raise UserError(
                    f"latent_actions.{name} is {here}, but {there} in the LAM whose labels data.actions names: "
                    "choose the same"
                )

    def start(self, given: State, is_frozen: bool) -> tuple[State, PhaseRecord]:
        """State and record of step 0, on the device; `given` are parts that another run brings."""
        state = {"step": jnp.int32(0), "rng": seed_data(self.models.config.seed), "first_bad_step": jnp.int32(-1)}
        record = PhaseRecord(Phase.FROZEN, freeze_step=0, freeze_reason="labelled")
        return commit(with_dynamics(self.models, state | given, 0)), record

    def is_due(self, record: PhaseRecord, step: int) -> bool:
        """False: labels do not change."""
        return False

    def advance(self, state: State, record: PhaseRecord, step: int) -> tuple[State, PhaseRecord]:
        """The same state and record: labels do not change."""
        return state, record

    def action_space(self, state: State) -> ActionSpace:
        """That of the labels."""
        return self._space


def require_same_actions(metadata: dict[str, Any], space: ActionSpace, what: str) -> None:
    """Raise `UserError` if a checkpoint's actions are not those of the labels: its keys would mean other things."""
    there = metadata.get("action_space", {}).get("digest", "none")
    if there != space.digest:
        raise UserError(
            f"{what} has the action space {there[:12]}, but the labels that data.actions names have "
            f"{space.digest[:12]}: name the labels that it was trained on"
        )
