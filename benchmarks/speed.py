"""Wall time of the train command, from its start to the finished report, with a cold and a warm compile cache.

    python benchmarks/speed.py --repeats 3
    python benchmarks/speed.py --repeats 3 -- --runtime.cpu-devices 2

Each repeat prepares data and codec anew. Needs a quiet machine; prints the load beside every time.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def train(workdir: Path, cache: Path, overrides: list[str]) -> float:
    """Seconds of one whole run."""
    shutil.rmtree(workdir, ignore_errors=True)
    command = [sys.executable, "-m", "melodjinn_jax.train", "--config", "experiments/toy_drums.py"]
    command += ["--workdir", str(workdir), "--runtime.compile-cache", str(cache), "--runtime.progress", "false"]
    command += overrides
    began = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "speed")
    parser.add_argument("overrides", nargs="*", help="of the experiment, after --")
    arguments = parser.parse_args()
    workdir, cache = arguments.output / "run", arguments.output / "cache"
    times: dict[str, list[float]] = {"cold": [], "warm": []}
    for _ in range(arguments.repeats):
        shutil.rmtree(cache, ignore_errors=True)
        for kind, seconds in times.items():
            seconds.append(train(workdir, cache, arguments.overrides))
            factor = json.loads((workdir / "eval.json").read_text())["generation_real_time_factor"]
            load = os.getloadavg()[0]
            print(f"{kind}: {seconds[-1]:.1f} s, generation {factor:.0f} times real time, load {load:.1f}", flush=True)
    for kind, seconds in times.items():
        print(f"| {kind} | {statistics.median(seconds):.0f} s [{max(seconds):.0f}] |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
