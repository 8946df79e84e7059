"""Stop signals: finish the step, save, and leave, all processes of a run at the same step."""

import os
import signal
from types import FrameType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """While entered, SIGTERM and SIGINT (Ctrl-C) only make `requested` true; a further SIGINT ends the process at once.

    Ending at once is safe: a checkpoint that is being written does not count until it is complete.

    In a run of several processes, SIGTERM belongs to JAX's preemption service, which was there before: it tells the
    other processes, and lets all stop at the same step. SIGINT is handed to it.

    Enter it in the main thread: Python allows signal handlers nowhere else.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._is_alone = jax.process_count() == 1
        self._asked = 0

    def requested(self) -> bool:
        """Whether to stop now: in all processes alike, which must all ask before each dispatch."""
        # The service names a number of this count, no matter how many steps a dispatch takes, at which all stop.
        self._asked += 1
        if not self._is_alone and self._signal is None and multihost_utils.reached_preemption_sync_point(self._asked):
            self._signal = signal.SIGTERM
        return self._signal is not None

    @property
    def exit_status(self) -> int:
        """The process's exit status: 128 plus the signal's number if it stops for one, as shells report it, else 0."""
        return 0 if self._signal is None else 128 + self._signal

    def __enter__(self) -> Self:
        handlers = dict.fromkeys(SIGNALS, self._handle) if self._is_alone else {signal.SIGINT: self._hand_on}
        self._previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # os.write and os._exit, because a handler may interrupt a print, or a wait that would block an orderly exit.
        if number == signal.SIGINT and self._signal is not None:
            os.write(2, b"\nstopped without saving\n")
            os._exit(128 + number)
        if self._signal is None:
            self._signal = number
            os.write(2, b"\nstopping after this step and a last checkpoint; Ctrl-C quits at once\n")

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a further one ends the process
        os.write(2, b"\nstopping all processes after a step and a last checkpoint; Ctrl-C quits at once\n")
        os.kill(os.getpid(), signal.SIGTERM)
