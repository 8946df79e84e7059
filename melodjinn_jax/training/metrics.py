"""The metrics file, one JSON object per logged step, and the display of progress."""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TextIO

from tqdm import tqdm

from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.errors import UserError

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
"""How floats that JSON lacks are written: as these strings, so that every line stays valid JSON."""


def _to_json(value: Any) -> Any:
    if hasattr(value, "tolist"):  # arrays and scalars of numpy and JAX
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_json(item) for item in value]
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _from_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def _parse_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """The complete lines of a metrics file and their objects; a torn last line is left out."""
    try:
        # What follows the last line end was torn: its writer was killed, or is writing it now.
        *lines, _ = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    parsed = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            intact = isinstance(row, dict) and isinstance(row.get("step"), int)
        except ValueError:
            intact = False
        if not intact:
            raise UserError(f"{path}: line {number} is damaged; delete that line and try again")
        parsed.append((line + b"\n", row))
    return parsed


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file, oldest first; [] if there is no file.

    Raises:
        UserError: a line is damaged.
    """
    return [_from_json(row) for _, row in _parse_lines(path)]


def _keep_until(path: Path, step: int | None) -> None:
    kept = [] if step is None else [line for line, row in _parse_lines(path) if row["step"] <= step]
    content = b"".join(kept)
    if path.exists() and path.read_bytes() != content:
        write_atomically(path, content)


class MetricsWriter:
    """Appends to a metrics file, each line handed to the operating system at once.

    On resume the lines of steps that will be done again are dropped, so the file of an interrupted and resumed run
    equals that of an uninterrupted one in all but the keys that hold clock readings. This needs the lines of a step
    to be written before the checkpoint of that step is saved.

    Args:
        path: The file; None writes nothing, as all processes of a run but the first do.
        resume_step: Step of the checkpoint that the run goes on from; None starts the file anew.

    Raises:
        UserError: the file cannot be written, or a line of it is damaged.
    """

    def __init__(self, path: Path | None, resume_step: int | None) -> None:
        self._path = path
        self._file: TextIO | None = None
        try:
            if path is not None:
                _keep_until(path, resume_step)
                self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._error(error) from error

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one line; `values` are numbers, strings, lists or dicts of them, or arrays.

        Raises:
            UserError: the disk is full, or the like.
        """
        if self._file is None:
            return
        line = json.dumps({"step": step, **_to_json(values)}, allow_nan=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> UserError:
        return UserError(f"{self._path} cannot be written: {os.strerror(error.errno or 0)}")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Progress:
    """Shows where a run stands: a bar on a terminal, a line every `interval` seconds elsewhere.

    Args:
        total: Steps of the whole run.
        start: Steps done before this process.
        enabled: False shows nothing but messages.
        file: Where to show it; by default standard error.
        interval: Seconds between two lines where there is no terminal.
    """

    def __init__(
        self, total: int, start: int = 0, enabled: bool = True, file: TextIO | None = None, interval: float = 10.0
    ) -> None:
        self._file = file or sys.stderr
        self._total, self._start, self._interval = total, start, interval
        self._lines = enabled and not self._file.isatty()
        self._began = time.monotonic()
        self._next_line = self._began
        self._status = ""
        self._bar = tqdm(
            total=total,
            initial=start,
            disable=not enabled or self._lines,
            file=self._file,
            unit="step",
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
        )

    def update(self, step: int, phase: str | None = None, values: Mapping[str, Any] | None = None) -> None:
        """Say that `step` steps are done; `phase` and `values` (losses, actions in use, frames per second) when new."""
        if phase is not None or values is not None:
            shown = [phase] if phase else []
            shown += [f"{name} {_short(value)}" for name, value in (values or {}).items()]
            self._status = ", ".join(shown)
            self._bar.set_postfix_str(self._status, refresh=False)
        self._bar.update(step - self._bar.n)
        if self._lines and (time.monotonic() >= self._next_line or step == self._total):
            self._next_line = time.monotonic() + self._interval
            self.message(f"step {step}/{self._total}{self._remaining(step)} {self._status}".rstrip())

    def _remaining(self, step: int) -> str:
        elapsed = time.monotonic() - self._began
        if step <= self._start:
            return ""
        left = elapsed / (step - self._start) * (self._total - step)
        return f" [{tqdm.format_interval(elapsed)}<{tqdm.format_interval(left)}]"

    def message(self, text: str) -> None:
        """Print a line without tearing the bar."""
        tqdm.write(text, file=self._file)

    def close(self) -> None:
        self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _short(value: Any) -> str:
    if isinstance(value, (int, str)):
        return str(value)
    return f"{float(value):.3g}" if abs(value) < 1000 else f"{float(value):.0f}"
