"""Saves of a run: what is done before one, and what a checkpoint says beside its arrays."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from melodjinn_jax.codecs import Codec
from melodjinn_jax.data.loader import BatchIterator
from melodjinn_jax.training.checkpoint import CheckpointStore
from melodjinn_jax.training.goodput import WallTime
from melodjinn_jax.training.phases import PhaseRecord
from melodjinn_jax.training.run import Machine
from melodjinn_jax.training.state import Phase, State
from melodjinn_jax.training.step_log import StepLog

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "melodjinn-jax")


@dataclass
class Saves:
    """Saves a run, and knows the step of the last save."""

    store: CheckpointStore
    machine: Machine
    codec: Codec
    batches: BatchIterator
    log: StepLog
    wall_time: WallTime
    held_out: Callable[[State], dict[str, float]] | None
    """Losses on the held-out clips, written at each save once the actions are frozen."""
    saved_step: int | None

    def save(self, step: int, state: State, record: PhaseRecord) -> None:
        """Save the run after `step` steps, unless it just was.

        Raises:
          NonFiniteError: a step went wrong; nothing is saved.
        """
        if step == self.saved_step:
            return
        # Lines first, so that a resumed run never lacks one; and nothing that is not finite is ever saved.
        self.log.flush(state)
        if self.held_out and record.phase is Phase.FROZEN:
            with self.wall_time.losing("evaluation"):
                self.log.held_out(step, self.held_out(state))
        with self.wall_time.losing("checkpoint"):
            self.store.save(step, state, self.batches, checkpoint_metadata(self.machine, state, record, self.codec))
        self.saved_step = step


def checkpoint_metadata(machine: Machine, state: State, record: PhaseRecord, codec: Codec) -> dict[str, Any]:
    """What a checkpoint says beside its arrays; read before any array is loaded."""
    metadata: dict[str, Any] = {
        "phase": record.to_json(),
        "parts": sorted(state),
        "codec_digest": codec.digest,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    if record.phase is not Phase.DISCOVER:
        metadata["action_space"] = machine.action_space(state).to_json()
    return metadata
