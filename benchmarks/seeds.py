"""Success over seeds: trains the toy world again and again and prints the table of the README.

    python benchmarks/seeds.py --suite random3 --seeds 10

Every run draws its own world (`data.seed`), codec and models, and is evaluated on its fresh test clips. Finished
runs are kept in --output and not trained again.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MEASURES = ("generation_onset_f1", "control_accuracy", "all_keys_accuracy", "noop_clean_fraction")


@dataclass(frozen=True)
class Suite:
    """One row of the table: overrides of an experiment, and its standard number of seeds."""

    overrides: str
    seeds: int
    experiment: str = "experiments/toy_drums.py"


SUITES = {
    "random1": Suite("--data.num-drums 1", 3),
    "random3": Suite("", 10),
    "random5": Suite("--data.num-drums 5", 5),
    "grid1": Suite("--data.offsets false --data.num-drums 1", 3),
    "grid3": Suite("--data.offsets false", 10),
    "grid5": Suite("--data.offsets false --data.num-drums 5", 5),
    "loop3": Suite("--data.rhythm loop", 5),
    "loop3-no-mask": Suite("--data.rhythm loop --dynamics.max-mask-rate 0", 3),
    "loop3-no-splice": Suite("--data.rhythm loop --dynamics.splice-probability 0", 3),
    "loop3-neither": Suite("--data.rhythm loop --dynamics.max-mask-rate 0 --dynamics.splice-probability 0", 3),
}


def train(name: str, suite: Suite, seed: int, output: Path, extra: list[str]) -> dict:
    """Train and evaluate one run in its own process; returns its eval.json with the wall time added."""
    workdir = (output / name / str(seed)).resolve()  # the run is another process, in another folder
    result = workdir / "result.json"
    if result.is_file():
        return json.loads(result.read_text())
    command = [sys.executable, "-m", "melodjinn_jax.train", "--config", suite.experiment, "--workdir", str(workdir)]
    command += suite.overrides.split()
    for flag in ("--seed", "--data.seed", "--codec.seed"):
        command += [flag, str(seed)]
    command += ["--runtime.progress", "false", *extra]
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"seed": seed, "failed": done.stderr.strip().splitlines()[-1:], "success": False}
    scores = {**json.loads((workdir / "eval.json").read_text()), "seed": seed}
    scores["wall_seconds"] = round(time.monotonic() - began, 1)
    result.write_text(json.dumps(scores))
    return scores


def show(name: str, runs: list[dict]) -> None:
    """One line a run, then the row of the table: successes, and medians with the worst."""
    finished = [run for run in runs if "failed" not in run]
    for run in runs:
        if "failed" in run:
            print(f"  {name} seed {run['seed']}: failed {run['failed']}")
            continue
        values = " ".join(f"{run[m]:.3f}/{run['sampled'][m]:.3f}" for m in MEASURES)
        print(
            f"  {name} seed {run['seed']}: {'ok  ' if run['success'] else 'FAIL'} {values} keys {run['num_keys']} "
            f"labels {run['onset_accuracy']:.3f} {run['noop_recall']:.3f} codec {run['codec_onset_f1']:.3f} "
            f"freeze {run['freeze_step']} {run['freeze_reason']} rtf {run['generation_real_time_factor']:.0f} "
            f"{run['wall_seconds']:.0f} s"
        )
    if finished:
        cells = []
        for measure in MEASURES:
            for scores in (finished, [run["sampled"] for run in finished]):
                column = [run[measure] for run in scores]
                cells.append(f"{statistics.median(column):.3f} [{min(column):.3f}]")
        wins = sum(run["success"] for run in runs)
        print(f"| {name} | {wins} of {len(runs)} | " + " | ".join(cells) + " |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", action="append", choices=sorted(SUITES), help="which rows; default: all")
    parser.add_argument("--seeds", type=int, help="seeds per row, from 0; default: the suite's own number")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "benchmark")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("overrides", nargs="*", help="further overrides, after --")
    arguments = parser.parse_args()
    for name in arguments.suite or SUITES:
        suite = SUITES[name]
        seeds = range(arguments.first_seed, arguments.first_seed + (arguments.seeds or suite.seeds))
        with ThreadPoolExecutor(arguments.jobs) as pool:
            jobs = [pool.submit(train, name, suite, seed, arguments.output, arguments.overrides) for seed in seeds]
            show(name, [job.result() for job in jobs])
    return 0


if __name__ == "__main__":
    sys.exit(main())
