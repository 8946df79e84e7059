"""Goodput: the share of wall time in which the run made steps, and where the rest went."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOSSES = ("start", "compile", "data", "looks", "checkpoint", "evaluation")
"""start: from the start of the process to its first step; compile: the first call of each phase's step; data: waiting
for batches; looks: at the probe set; checkpoint: until a save goes on in the background."""


class WallTime:
    """Wall time of this process since it started, as losses by name; whatever is no loss was spent on steps."""

    def __init__(self) -> None:
        self._began = time.perf_counter() - _process_age()
        self.lost = dict.fromkeys(LOSSES, 0.0)

    @contextmanager
    def losing(self, loss: str) -> Iterator[None]:
        """What is done within is no progress."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self.lost[loss] += time.perf_counter() - since

    def starts(self) -> None:
        """The first step begins: all before it was the start."""
        self.lost["start"] = time.perf_counter() - self._began

    def goodput(self) -> float:
        """Share of the wall time so far in which steps were made."""
        return max(0.0, 1 - sum(self.lost.values()) / max(time.perf_counter() - self._began, 1e-9))


def _process_age() -> float:
    """Seconds since this process was started, imports included; 0 where the system does not tell."""
    try:
        started = float(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(Path("/proc/uptime").read_text().split()[0]) - started
    except OSError:
        return 0.0
