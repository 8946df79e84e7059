"""What saves and restarts cost a large run: the stall of a save, and the time from start to the first resumed step.

    python benchmarks/restart.py

Trains the experiment, its LAM too, on noise and in small float32 batches, on which neither depends. One run fills an
empty compile cache and saves; then the same command resumes it, `--repeats` times. A stall is the time for which a save
keeps the next step from being dispatched; the rest of the save goes on beside the steps. The start ends when the first
step is dispatched: Python, the checkpoint, the first batch, and the step's program out of the cache.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from loader import make_dataset

ROOT = Path(__file__).resolve().parent.parent
FROZEN_FROM = 2


def command(arguments: argparse.Namespace) -> list[str]:
    output = arguments.output
    settings = {
        "data.datasets": output / "dataset",
        "training.dtype": "float32",
        "training.batch-size": arguments.batch_size,
        "training.crop-frames": arguments.crop_frames,
        "phases.discover-steps": 1,
        "phases.freeze": "step",
        "phases.freeze-deadline": FROZEN_FROM,
        "phases.check-every": 1,
        "phases.probe-clips": 8,
        "runtime.log-every": 1,
        "runtime.save-every": arguments.save_every,
        "runtime.evaluate": "false",
        "runtime.progress": "false",
        "runtime.compile-cache": output / "cache",
    }
    flags = [str(text) for name, value in settings.items() for text in (f"--{name}", value)]
    train = [sys.executable, "-m", "melodjinn_jax.train", "--config", arguments.config]
    return [*train, "--workdir", str(output / "run"), *flags]


def lines(workdir: Path) -> list[dict]:
    """Those of steps, so far."""
    metrics = workdir / "metrics.jsonl"
    complete = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    return [row for text in complete if text.endswith("\n") and "speed" in (row := json.loads(text))]


def run_steps(arguments: argparse.Namespace, steps: int) -> list[dict]:
    """Start or resume the run, stop it after `steps` steps were logged; returns the lines of all it made."""
    workdir = arguments.output / "run"
    before = len(lines(workdir))
    train = command(arguments)
    process = subprocess.Popen(train, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None and len(lines(workdir)) < before + steps:
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    if process.returncode != 128 + signal.SIGTERM:
        raise SystemExit(f"{' '.join(train)}: {said.strip()}")
    return lines(workdir)[before:]


def stalls(rows: Sequence[dict], save_every: int) -> list[float]:
    """Seconds of each save after the switches, which save of themselves."""
    lost = {row["step"]: row["speed"]["lost_seconds"]["checkpoint"] for row in rows}
    saves = [step for step in lost if step % save_every == 0 and step > FROZEN_FROM and step + 1 in lost]
    return [lost[step + 1] - lost[step] for step in saves]


def show(name: str, seconds: Sequence[float]) -> None:
    print(f"| {name} | {statistics.median(seconds):.2f} s | {max(seconds):.2f} s | {len(seconds)} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="experiments/techno_200m.py")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--crop-frames", type=int, default=64)
    parser.add_argument("--save-every", type=int, default=10, help="steps, in which a save must come to its end")
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "restart")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.output, ignore_errors=True)
    arguments.output.mkdir(parents=True)
    make_dataset(arguments.output / "dataset", 10)
    rows = run_steps(arguments, arguments.save_every * arguments.saves + 1)
    starts = []
    for _ in range(arguments.repeats):
        lost = run_steps(arguments, 1)[0]["speed"]["lost_seconds"]
        starts.append(lost["start"] + lost["data"] + lost["compile"])
    newest = max((arguments.output / "run" / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)
    size = sum(file.stat().st_size for file in newest.rglob("*") if file.is_file())
    step = statistics.median(row["speed"]["step_ms"] for row in rows if row["step"] > FROZEN_FROM + 1) / 1000
    print(f"checkpoint {size / 1e9:.2f} GB, step {step:.2f} s, load {os.getloadavg()[0]:.1f}")
    print("| | median | worst | times |\n|---|---|---|---|")
    show("a save keeps the steps waiting", stalls(rows, arguments.save_every))
    show("start to first resumed step, warm", starts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
