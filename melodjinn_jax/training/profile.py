"""A profile of chosen steps, on request: what the device did when, for XProf or Perfetto to show."""

from pathlib import Path
from typing import Any

import jax


class StepProfile:
    """Writes `folder` while the steps from the first to the last of `steps` run; without steps it does nothing."""

    def __init__(self, folder: Path, steps: tuple[int, ...]):
        self._folder, self._steps = folder, steps
        self._is_running = False

    def before(self, first: int, last: int) -> None:
        """Steps `first` to `last` are about to be dispatched."""
        if self._steps and first <= self._steps[0] <= last:
            jax.profiler.start_trace(str(self._folder))
            self._is_running = True

    def after(self, step: int, state: Any) -> None:
        """All steps to `step` were dispatched and will make `state`."""
        if self._is_running and step >= self._steps[1]:
            self.close(state)

    def close(self, state: Any) -> None:
        """End a profile that is still running, when `state` is computed."""
        if self._is_running:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            self._is_running = False
