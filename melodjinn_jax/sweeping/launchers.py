"""Where jobs run: here, or by a script of `launch/`, each of which waits for its job and tells how it ended."""

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from melodjinn_jax.errors import UserError
from melodjinn_jax.sweeping.plan import Job

LauncherName = Literal["local", "slurm", "xpk", "tpu-vm"]
_CLUSTER_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")  # as in launch/common.sh
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


def check_names(launcher: LauncherName, sweep: str, jobs: Sequence[Job]) -> None:
    """Raise `UserError` if the launcher's script would refuse the name of a job, which Kubernetes' rules are for."""
    for job in () if launcher == "local" else jobs:
        name = cluster_name(sweep, job)
        if not _CLUSTER_NAME.fullmatch(name):
            raise UserError(
                f"--launcher {launcher}: the job {name} has {len(name)} characters and begins with {name[0]}: names of "
                "jobs on a cluster, sweep and run together, have at most 40 and begin with a letter"
            )


def cluster_name(sweep: str, job: Job) -> str:
    return f"{sweep}-{job.name}"


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
    script = [str(SCRIPTS / launcher.script), "--name", cluster_name(sweep, job), *options]
    return [*script, "--", launcher.python, *module]
