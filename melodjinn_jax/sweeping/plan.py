"""A sweep as Python: its runs by name, and the jobs that carry it out.

A sweep file defines `get_sweep(workdir: str) -> Sweep`. Everything lies in that work directory:

    WORKDIR/labeller/           the run whose frozen LAM labels the DATASET, an ordinary work directory
    WORKDIR/runs/NAME/          every other run, an ordinary work directory
    WORKDIR/logs/NAME.log       what the job's processes said
    WORKDIR/sweep.json          the state of every job, and at last the results and the laws
    WORKDIR/report.html
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from melodjinn_jax.config import Config
from melodjinn_jax.errors import UserError
from melodjinn_jax.training.workdir import WorkDir
from melodjinn_jax.validation import check_config

# Of folders; jobs on clusters are called by the sweep's name and the run's together (`launchers.check_names`).
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
LABELLER, LABEL = "labeller", "label"


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    name: str
    """Its work directory is WORKDIR/runs/NAME."""
    config: Config
    model: Literal["dynamics", "lam"] = "dynamics"
    """The model whose held-out loss the run is there for."""
    is_held_out: bool = False
    """Kept out of the fits, to see how well they predict it."""


@dataclass(frozen=True)
class Sweep:
    """Runs to be compared. Losses of dynamics models are comparable only under the labels of one frozen LAM."""

    name: str
    runs: tuple[SweepRun, ...]
    labeller: Config | None = None
    """The run whose LAM, when it is frozen, labels the DATASETs of the dynamics runs; None: they have labels."""


@dataclass(frozen=True)
class Job:
    """One command, with what it must wait for."""

    name: str
    module: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    product: Path | None = None
    """A file that is there when the job has been done."""


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """A config with some fields changed, each named as on the command line: `{"dynamics.dim": 128}`.

    Raises:
      UserError: there is no such field.
    """
    for name, value in changes.items():
        config = _replace(config, name.split("."), value, name)
    return config


def _replace(owner: Any, path: Sequence[str], value: Any, name: str) -> Any:
    if not dataclasses.is_dataclass(owner) or path[0] not in {field.name for field in dataclasses.fields(owner)}:
        raise UserError(f"the sweep changes {name}, and no setting has that name")
    inner = _replace(getattr(owner, path[0]), path[1:], value, name) if path[1:] else value
    return dataclasses.replace(owner, **{path[0]: inner})  # type: ignore[type-var]


def grid(base: Config, **axes: Mapping[str, Mapping[str, Any]]) -> dict[str, Config]:
    """All combinations of named points on some axes, each point a set of changes; by name, `50k-short`.

    Raises:
      UserError: a change names no setting.
    """
    combined = {}
    for points in itertools.product(*(axis.items() for axis in axes.values())):
        changes = {name: value for _, point in points for name, value in point.items()}
        combined["-".join(name for name, _ in points)] = override(base, changes)
    return combined


def check_sweep(sweep: Sweep) -> None:
    """Raise `UserError` with the first thing that cannot work, before anything is run."""
    seen: set[str] = set()
    for run in sweep.runs:
        if not _NAME.fullmatch(run.name):
            raise UserError(
                f"the sweep {sweep.name} has a run named {run.name!r}: use at most 40 lower-case letters, digits and "
                "hyphens, for names are folders and jobs"
            )
        if run.name in seen:
            raise UserError(f"the sweep {sweep.name} has two runs named {run.name}: give every run a name of its own")
        if run.name.split("-")[0] in (LABEL, LABELLER):
            raise UserError(f"the sweep {sweep.name}: {run.name} is a name of its own jobs: rename the run")
        seen.add(run.name)
        _check_run(sweep, run)
    if not _NAME.fullmatch(sweep.name):
        raise UserError(f"the sweep is named {sweep.name!r}: use at most 40 lower-case letters, digits and hyphens")
    if not sweep.runs:
        raise UserError(f"the sweep {sweep.name} has no runs")
    if sweep.labeller:
        _check_config(sweep, LABELLER, sweep.labeller)


def _check_run(sweep: Sweep, run: SweepRun) -> None:
    _check_config(sweep, run.name, run.config)
    if run.model == "dynamics" and not run.config.data.actions:
        raise UserError(
            f"the run {run.name} of the sweep {sweep.name}: set data.actions, for dynamics models can be compared only "
            "on the labels of one frozen LAM"
        )


def _check_config(sweep: Sweep, name: str, config: Config) -> None:
    try:
        check_config(config)
    except UserError as error:
        raise UserError(f"the run {name} of the sweep {sweep.name}: {error}") from error
    if not config.runtime.evaluate:
        raise UserError(f"the run {name} of the sweep {sweep.name}: set runtime.evaluate, for its loss is wanted")


def workdir_of(sweep_dir: Path, name: str) -> WorkDir:
    return WorkDir(sweep_dir / LABELLER if name == LABELLER else sweep_dir / "runs" / name)


def prepare_runs(sweep: Sweep, sweep_dir: Path) -> None:
    """Write every run's config.json into its work directory, from where its command reads it.

    Raises:
      UserError: a work directory belongs to other settings, is in use, or cannot be written.
    """
    configs = {run.name: run.config for run in sweep.runs}
    if sweep.labeller:
        configs[LABELLER] = sweep.labeller
    for name, config in configs.items():
        WorkDir.create_or_open(workdir_of(sweep_dir, name).path, config).close()


def plan_jobs(sweep: Sweep, sweep_dir: Path) -> list[Job]:
    """The jobs in an order in which they can be done."""
    jobs: list[Job] = []
    if sweep.labeller:
        jobs.append(_training_job(LABELLER, sweep_dir, ()))
        datasets = sorted({path for run in sweep.runs for path in run.config.data.datasets if run.config.data.actions})
        for number, dataset in enumerate(datasets):
            arguments = ("--workdir", str(workdir_of(sweep_dir, LABELLER).path), "--dataset", dataset)
            jobs.append(Job(f"{LABEL}-{number}", "melodjinn_jax.label", arguments, (LABELLER,)))
    labels = tuple(job.name for job in jobs)
    for run in sweep.runs:
        # LAM runs wait for the labeller too: it may be the run that prepares their DATASET.
        needs = labels if run.config.data.actions else labels[:1]
        jobs.append(_training_job(run.name, sweep_dir, needs))
    return jobs


def _training_job(name: str, sweep_dir: Path, needs: tuple[str, ...]) -> Job:
    workdir = workdir_of(sweep_dir, name)
    arguments = ("--config", str(workdir.config), "--workdir", str(workdir.path))
    return Job(name, "melodjinn_jax.train", arguments, needs, workdir.evaluation)
