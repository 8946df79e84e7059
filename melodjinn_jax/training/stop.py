"""Stop signals: finish the step, save, and leave."""

import os
import signal
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """While entered, SIGTERM and SIGINT (Ctrl-C) only set `requested`; a further SIGINT ends the process at once.

    Ending at once is safe: a checkpoint that is being written does not count until it is complete.

    Enter it in the main thread: Python allows signal handlers nowhere else.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a stop signal came."""
        return self._signal is not None

    @property
    def exit_status(self) -> int:
        """The process's exit status: 128 plus the signal's number if one came, as shells report it, else 0."""
        return 0 if self._signal is None else 128 + self._signal

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # os.write and os._exit, because a handler may interrupt a print, or a wait that would block an orderly exit.
        if number == signal.SIGINT and self.requested:
            os.write(2, b"\nstopped without saving\n")
            os._exit(128 + number)
        if not self.requested:
            self._signal = number
            os.write(2, b"\nstopping after this step and a last checkpoint; Ctrl-C quits at once\n")
