"""Doing jobs: some at a time, each when what it needs is done, failed ones again; the state of all in one file."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.errors import UserError
from melodjinn_jax.sweeping.plan import Job

_POLL_SECONDS = 0.05
_USER_ERROR = 2  # the exit status of a command that was asked for what cannot work: to ask again is no use


@dataclass
class JobState:
    """How far a job is."""

    status: Literal["waiting", "running", "done", "failed", "blocked"] = "waiting"
    attempts: int = 0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of the processes on this machine, all attempts together."""
    message: str = ""
    """The last line that a failed attempt said."""


def read_states(file: Path) -> dict[str, JobState]:
    """The states that an earlier start left in `sweep.json`; none if there is no such file.

    Raises:
      UserError: it is damaged.
    """
    try:
        jobs = json.loads(file.read_bytes())["jobs"]
        return {name: _state_of(fields) for name, fields in jobs.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged: remove it, and what is done will be found again") from error


@dataclass
class Schedule:
    """The jobs of a sweep on their way."""

    jobs: list[Job]
    command_of: Callable[[Job], list[str]]
    logs: Path
    states: dict[str, JobState]
    """Of every job."""
    save: Callable[[], None]
    """Writes the states down; called whenever one changes."""
    limit: int = 1
    """Jobs at a time."""
    retries: int = 2
    """Further attempts at a job that failed."""
    _running: dict[str, tuple[subprocess.Popen, float]] = field(default_factory=dict)
    _tries: dict[str, int] = field(default_factory=dict)

    def run(self) -> bool:
        """Do all jobs that can be done; returns whether all are.

        If the process is asked to stop, its jobs are too, and waited for: they save and can be resumed.
        """
        for job in self.jobs:
            state = self.states[job.name]
            is_done = state.status == "done" and (job.product is None or job.product.is_file())
            state.status = "done" if is_done else "waiting"
        previous = signal.signal(signal.SIGTERM, _interrupt)
        try:
            while self._advance():
                time.sleep(_POLL_SECONDS)
        finally:
            self._stop()
            signal.signal(signal.SIGTERM, previous)
            self.save()
        return all(self.states[job.name].status == "done" for job in self.jobs)

    def _advance(self) -> bool:
        """Take note of what has ended and start what can be; returns whether anything is left to wait for."""
        for job in self.jobs:
            if job.name in self._running:
                self._reap(job)
        for job in self.jobs:
            state = self.states[job.name]
            needs = [self.states[name].status for name in job.needs]
            if state.status == "waiting" and any(status in ("failed", "blocked") for status in needs):
                state.status, state.message = "blocked", f"it needs {', '.join(job.needs)}"
            is_ready = state.status == "waiting" and all(status == "done" for status in needs)
            if is_ready and len(self._running) < self.limit:
                self._start(job)
        return bool(self._running)

    def _start(self, job: Job) -> None:
        state = self.states[job.name]
        self._tries[job.name] = self._tries.get(job.name, 0) + 1
        state.status, state.attempts = "running", state.attempts + 1
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{job.name}.log").open("ab") as log:
            # A process group of its own: a Ctrl-C reaches only this process, which then asks the job to stop, once.
            process = subprocess.Popen(
                self.command_of(job), stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        self._running[job.name] = (process, time.monotonic())
        print(f"{job.name}: started (attempt {state.attempts})", file=sys.stderr, flush=True)
        self.save()

    def _reap(self, job: Job) -> None:
        process, began = self._running[job.name]
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid == 0:
            return
        # wait4 has taken the status, which Popen can now not find by itself.
        process.returncode = os.waitstatus_to_exitcode(status)
        del self._running[job.name]
        state = self.states[job.name]
        state.wall_seconds = round(state.wall_seconds + time.monotonic() - began, 1)
        state.cpu_seconds = round(state.cpu_seconds + usage.ru_utime + usage.ru_stime, 1)
        self._judge(job, state, process.returncode)
        self.save()

    def _judge(self, job: Job, state: JobState, exit_status: int) -> None:
        if exit_status == 0 and (job.product is None or job.product.is_file()):
            state.status, state.message = "done", ""
            done = sum(self.states[job.name].status == "done" for job in self.jobs)
            print(f"{job.name}: done ({done} of {len(self.jobs)})", file=sys.stderr, flush=True)
            return
        reason = f"exit status {exit_status}" if exit_status else f"it ended well without writing {job.product}"
        state.message = _last_line(self.logs / f"{job.name}.log") or reason
        is_final = exit_status == _USER_ERROR or self._tries[job.name] > self.retries
        state.status = "failed" if is_final else "waiting"
        print(f"{job.name}: failed ({reason}): {state.message}", file=sys.stderr, flush=True)

    def _stop(self) -> None:
        for process, _ in self._running.values():
            os.killpg(process.pid, signal.SIGTERM)
        for name, (process, _) in self._running.items():
            process.wait()
            self.states[name].status = "waiting"
        self._running.clear()


def _state_of(fields: dict[str, Any]) -> JobState:
    state, empty = JobState(**fields), JobState()
    for name, value in vars(state).items():
        if type(value) is not type(getattr(empty, name)):
            raise TypeError(f"{name} cannot be {value!r}")
    return state


def write_json(file: Path, content: dict[str, Any], states: dict[str, JobState]) -> None:
    """Write `sweep.json`.

    Raises:
      UserError: it cannot be written.
    """
    jobs = {name: asdict(state) for name, state in states.items()}
    try:
        write_atomically(file, (json.dumps({**content, "jobs": jobs}, indent=2) + "\n").encode())
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:300] if said else ""
