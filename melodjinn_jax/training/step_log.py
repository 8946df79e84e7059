"""Metrics of steps, fetched when the device has moved on, so that logging never stalls it."""

import time
import zlib
from typing import Any

import jax
import numpy as np

from melodjinn_jax.config import Config
from melodjinn_jax.errors import UserError
from melodjinn_jax.training.metrics import MetricsWriter, Progress
from melodjinn_jax.training.phases import PhaseRecord
from melodjinn_jax.training.speed import SpeedMeter
from melodjinn_jax.training.state import Phase, State


class NonFiniteError(UserError):
    """A loss or gradient was NaN or infinite."""


class StepLog:
    """Writes a line every `runtime.log_every` steps, one interval behind the device."""

    def __init__(self, config: Config, metrics: MetricsWriter, progress: Progress, speed: SpeedMeter, step: int):
        self.config, self._metrics, self._progress, self._speed = config, metrics, progress, speed
        self._pending: dict[str, Any] | None = None
        self._last = (step, time.perf_counter())

    def step(self, step: int, phase: Phase, values: dict[str, jax.Array], batch: dict[str, np.ndarray]) -> None:
        """Note what step `step`, now dispatched, will have computed."""
        if step % self.config.runtime.log_every:
            self._progress.update(step)
            return
        self.flush()
        done, since = self._last
        self._last = (step, time.perf_counter())
        frames = (step - done) * self.config.training.batch_size * self.config.training.crop_frames
        self._pending = {
            "step": step,
            "phase": str(phase),
            "values": values,
            # Names the batch, so that two runs can be compared line by line.
            "batch_crc": zlib.crc32(batch["codes"].tobytes()),
            "frames_per_second": round(frames / max(self._last[1] - since, 1e-9)),
            "speed": self._speed.measure(phase, step - done, self._last[1] - since),
        }

    def phases(self, step: int, before: PhaseRecord, record: PhaseRecord) -> None:
        """Write and show what the phase machine found and did after `step` steps."""
        self.flush()
        for look in record.looks[len(before.looks) :]:
            found = {name: value for name, value in vars(look).items() if name != "step"}
            self._metrics.write(step, {"phase": str(before.phase), "look": found})
        if record.phase is not before.phase:
            self._metrics.write(step, {"phase": str(record.phase), "reason": record.freeze_reason})
            last = record.looks[-1]
            reason = f" ({record.freeze_reason}, agreement {last.agreement:.2f})" if record.freeze_reason else ""
            self._progress.message(f"step {step}: {record.phase}{reason}; {last.codes} codes in use, {last.keys} keys")

    def held_out(self, step: int, losses: dict[str, float]) -> None:
        """Write the held-out losses after `step` steps."""
        self._metrics.write(step, {"phase": str(Phase.FROZEN), "held_out": losses})

    def flush(self, state: State | None = None) -> None:
        """Fetch and write what is pending, and with `state`, make sure that it is good.

        Raises:
          NonFiniteError: a step went wrong; it is named.
        """
        if self._pending is not None:
            pending, self._pending = self._pending, None
            values = {name: np.asarray(value) for name, value in pending.pop("values").items()}
            step, first_bad = pending.pop("step"), int(values.pop("first_bad_step"))
            shown = {name: float(value) for name, value in values.items() if value.ndim == 0}
            if "code_usage" in values:
                shown["actions"] = int(np.sum(values["code_usage"] > 0))
            self._metrics.write(step, {**pending, **{name: _rounded(value) for name, value in values.items()}})
            self._progress.update(step, pending["phase"], {**shown, "frames/s": pending["frames_per_second"]})
            _require_finite(first_bad)
        if state is not None:
            _require_finite(int(state["first_bad_step"]))


def _require_finite(first_bad_step: int) -> None:
    if first_bad_step >= 0:
        raise NonFiniteError(
            f"step {first_bad_step}: a loss or gradient is not finite; the last good checkpoint is kept: lower "
            "lam_optimizer.learning_rate or dynamics_optimizer.learning_rate and start a new run"
        )


def _rounded(value: np.ndarray) -> Any:
    """Scalars in full, so that two runs can be compared bit for bit; vectors short."""
    return float(value) if value.ndim == 0 else [round(float(item), 4) for item in value]
