"""Run a sweep: `python -m melodjinn_jax.sweep --sweep experiments/scaling/toy_ladder.py --workdir DIR`.

The same command again goes on: what is done stays, what was stopped resumes, what failed is tried again.
"""

import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from melodjinn_jax.errors import UserError, reports_user_errors
from melodjinn_jax.experiment import call_in_file, command_line, parse_arguments
from melodjinn_jax.sweeping.launchers import LauncherName, check_launcher, check_names, command_of
from melodjinn_jax.sweeping.plan import Job, Sweep, check_sweep, plan_jobs, prepare_runs
from melodjinn_jax.sweeping.report import summary, write_sweep_report
from melodjinn_jax.sweeping.results import find_laws, read_outcomes
from melodjinn_jax.sweeping.schedule import JobState, Schedule, read_states, write_json


@dataclass(frozen=True)
class SweepArguments:
    """Train all runs of a sweep, fit laws of their losses, and write sweep.json and report.html."""

    sweep: str
    """File that defines get_sweep(workdir), for example experiments/scaling/toy_ladder.py."""
    workdir: str
    """Folder that holds everything of the sweep; of another launcher than local, one that its machines see too."""
    launcher: LauncherName = "local"
    """Where the runs are trained."""
    launcher_options: str = ""
    """Options for the launcher's script in launch/, as one string: --launcher-options="--partition gpu --nodes 2"."""
    jobs: int = 1
    """Runs at a time."""
    retries: int = 2
    """Further attempts at a run that failed; what was refused as wrong input is not tried again."""
    dry_run: bool = False
    """Only print every command."""


def split_options(options: str) -> list[str]:
    try:
        return shlex.split(options)
    except ValueError as error:
        raise UserError(f"--launcher-options {options}: a quote is opened and never closed") from error


def dry_run(jobs: list[Job], sweep: Sweep, arguments: SweepArguments, options: list[str]) -> None:
    """Print the commands of all jobs, and what a launcher's script would do with them."""
    for job in jobs:
        print(f"# {job.name}" + (f", after {' and '.join(job.needs)}" if job.needs else ""), flush=True)
        if arguments.launcher == "local":
            print(shlex.join(command_of("local", job, sweep.name, [])))
        else:
            command = command_of(arguments.launcher, job, sweep.name, ["--dry-run", *options])
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["it failed"])[-1].removeprefix("error: ")
                raise UserError(f"--launcher-options {arguments.launcher_options}: {said}")
            print(done.stdout, end="")


def run_sweep(sweep: Sweep, jobs: list[Job], arguments: SweepArguments, options: list[str]) -> int:
    """Do the jobs, then fit and report what there is; returns the exit status of the process."""
    workdir = Path(arguments.workdir).expanduser()
    known = read_states(workdir / "sweep.json")
    states = {job.name: known.get(job.name, JobState()) for job in jobs}

    def save() -> None:
        write_json(workdir / "sweep.json", {"name": sweep.name}, states)

    schedule = Schedule(
        jobs,
        lambda job: command_of(arguments.launcher, job, sweep.name, options),
        workdir / "logs",
        states,
        save,
        arguments.jobs,
        arguments.retries,
    )
    is_complete = schedule.run()
    conclude(sweep, workdir, states)
    return 0 if is_complete else 1


def conclude(sweep: Sweep, workdir: Path, states: dict[str, JobState]) -> None:
    """Fit the laws to the runs that are done; write sweep.json and report.html, and print the tables."""
    outcomes = read_outcomes(sweep, workdir)
    findings = find_laws(outcomes)
    content = {
        "name": sweep.name,
        "runs": [vars(outcome) for outcome in outcomes],
        "laws": [finding.to_json() for finding in findings],
    }
    write_json(workdir / "sweep.json", content, states)
    write_sweep_report(workdir / "report.html", sweep.name, outcomes, findings, states)
    print(summary(outcomes, findings, states))
    print(f"wrote {workdir / 'sweep.json'} and {workdir / 'report.html'}", file=sys.stderr)


@reports_user_errors
def main() -> int:
    arguments = parse_arguments(SweepArguments, command_line(), prog="python -m melodjinn_jax.sweep", has_flags=True)
    workdir = Path(arguments.workdir).expanduser()
    for flag, value, least in (("--jobs", arguments.jobs, 1), ("--retries", arguments.retries, 0)):
        if value < least:
            raise UserError(f"{flag} {value}: it must be at least {least}")
    sweep = call_in_file("--sweep", arguments.sweep, "get_sweep", Sweep, str(workdir))
    check_sweep(sweep)
    jobs = plan_jobs(sweep, workdir)
    options = split_options(arguments.launcher_options)
    check_names(arguments.launcher, sweep.name, jobs)
    if arguments.dry_run:
        dry_run(jobs, sweep, arguments, options)
        return 0
    check_launcher(arguments.launcher)
    prepare_runs(sweep, workdir)
    return run_sweep(sweep, jobs, arguments, options)


if __name__ == "__main__":
    sys.exit(main())
