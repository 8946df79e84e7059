"""Exact resume under fire: kills one run again and again and compares it with an uninterrupted one.

    python benchmarks/resume.py --kills 20

SIGKILL and SIGTERM at random moments: while data are prepared and programs compiled, between steps, within saves and
around the phase switches. Then losses, batches, looks at the actions and the digest of every array of the last
checkpoint must be those of the uninterrupted run, bit for bit. Exits non-zero if they are not.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from melodjinn_jax.training.manifest import read_manifest

ROOT = Path(__file__).resolve().parent.parent
OVERRIDES = "--runtime.log-every 1 --runtime.save-every 10 --runtime.evaluate false --runtime.progress false"
SIGNALS = (signal.SIGKILL, signal.SIGTERM)


def command(workdir: Path, dataset: Path, overrides: list[str]) -> list[str]:
    arguments = ["--config", "experiments/toy_drums.py", "--workdir", str(workdir), "--data.path", str(dataset)]
    return [sys.executable, "-m", "melodjinn_jax.train", *arguments, *OVERRIDES.split(), *overrides]


def trace(workdir: Path) -> list[dict]:
    """Every logged line but its clock reading: losses, batches, looks, switches."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in ("frames_per_second", "speed")} for row in rows]


def final_arrays(workdir: Path) -> dict[str, str]:
    """SHA-256 of every array of the newest checkpoint."""
    newest = max((p for p in (workdir / "checkpoints").iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
    return {leaf.name: leaf.sha256 for leaf in read_manifest(newest).leaves}


def steps_done(workdir: Path) -> int:
    metrics = workdir / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def wait_for_moment(process: subprocess.Popen, workdir: Path, rng: random.Random) -> str:
    """Wait for a random moment to strike: one of three kinds; returns which."""
    kind = rng.choice(("clock", "lines", "save"))
    if kind == "clock":
        time.sleep(rng.uniform(0.0, 8.0))
        return kind
    goal = steps_done(workdir) + rng.randint(1, 25)
    while process.poll() is None:
        saving = list((workdir / "checkpoints").glob("*.saving*"))
        if kind == "lines" and steps_done(workdir) >= goal:
            break
        if kind == "save" and saving and steps_done(workdir) >= goal:
            break
        time.sleep(0.0005)
    return kind


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "resume")
    parser.add_argument("overrides", nargs="*", help="of the experiment, after --")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    shutil.rmtree(arguments.output, ignore_errors=True)
    dataset, reference, killed = (arguments.output / name for name in ("dataset", "reference", "killed"))
    subprocess.run(command(reference, dataset, arguments.overrides), cwd=ROOT, check=True)
    kills = 0
    while True:
        process = subprocess.Popen(command(killed, dataset, arguments.overrides), cwd=ROOT, stderr=subprocess.PIPE)
        if kills < arguments.kills:
            kind = wait_for_moment(process, killed, rng)
            number = rng.choice(SIGNALS)
            process.send_signal(number)
        _, said = process.communicate()
        if kills >= arguments.kills or (process.returncode == 0 and kills > 0):
            break
        if process.returncode not in (0, -number, 128 + number):
            print(said.decode())
            return 1
        if process.returncode == 0:
            continue
        kills += 1
        print(f"kill {kills}: {number.name} by {kind}, {steps_done(killed)} lines", flush=True)
    if process.returncode:
        print(said.decode())
        return 1
    same_trace, same_arrays = trace(killed) == trace(reference), final_arrays(killed) == final_arrays(reference)
    print(f"{kills} kills; {len(trace(reference))} lines identical: {same_trace}; arrays identical: {same_arrays}")
    return 0 if same_trace and same_arrays and kills >= arguments.kills else 1


if __name__ == "__main__":
    sys.exit(main())
