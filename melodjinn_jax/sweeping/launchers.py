"""Where jobs run: here, or by a script of `launch/`, each of which waits for its job and tells how it ended."""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from melodjinn_jax.errors import UserError
from melodjinn_jax.sweeping.plan import Job

LauncherName = Literal["local", "slurm", "xpk", "tpu-vm"]
SCRIPTS = Path(__file__).resolve().parent.parent.parent / "launch"


@dataclass(frozen=True)
class Launcher:
    """A script of `launch/` and the client that it needs."""

    script: str
    client: str
    python: str
    """The interpreter there: the same file system has this one, a machine of its own another."""


LAUNCHERS = {
    "slurm": Launcher("slurm.sh", "sbatch", sys.executable),
    "xpk": Launcher("gke_xpk.sh", "xpk", "python3"),
    "tpu-vm": Launcher("tpu_vm.sh", "gcloud", ".venv/bin/python"),
}


def check_launcher(name: LauncherName) -> None:
    """Raise `UserError` if the launcher's client or script is missing."""
    if name == "local":
        return
    launcher = LAUNCHERS[name]
    if not (SCRIPTS / launcher.script).is_file():
        raise UserError(f"--launcher {name}: {SCRIPTS / launcher.script} is missing: run from a checkout")
    if shutil.which(launcher.client) is None:
        raise UserError(
            f"--launcher {name}: its client {launcher.client} is not on the PATH: install it (docs/cloud.md), or "
            "choose another --launcher"
        )


def command_of(name: LauncherName, job: Job, sweep: str, options: list[str]) -> list[str]:
    """The command that does a job and ends when it has ended.

    Args:
      name: of the launcher.
      job: to do.
      sweep: name of the sweep, with which names of jobs on a cluster begin.
      options: of the launcher's script.
    """
    module = ["-m", job.module, *job.arguments]
    if name == "local":
        return [sys.executable, *module]
    launcher = LAUNCHERS[name]
    script = [str(SCRIPTS / launcher.script), "--name", f"{sweep}-{job.name}", *options]
    return [*script, "--", launcher.python, *module]
