"""Flips, noise and control of the ways to train the latent actions, side by side.

    python benchmarks/regimes.py --seeds 3

For each regime and seed, two runs. One never freezes the LAM for 2,000 steps: every 50 steps after step 300 the code
that most frames of each class (NOOP and every drum) get on held-out clips is noted, and a *flip* is a change of it.
The other is the whole training with its evaluation: *noise* is the share of frames without a hit that get an action
all the same, control and success as in the README.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from melodjinn_jax.codecs import load_codec
from melodjinn_jax.data.dataset import open_dataset
from melodjinn_jax.data.prepare import hits_of
from melodjinn_jax.training.checkpoint import CheckpointStore
from melodjinn_jax.training.run import CODEBOOK_PARTS, LAM_PARTS, make_models
from melodjinn_jax.training.step import encode_codes
from melodjinn_jax.training.workdir import load_config

ROOT = Path(__file__).resolve().parent.parent
REGIMES = {
    "reconstruction (default)": "experiments/toy_drums.py",
    "dynamics, decoder-free": "experiments/toy_drums_dynamics_gradient.py",
    "classical: EMA-VQ from random, resets": "experiments/toy_drums_classical.py",
}
UNFROZEN = (
    "--phases.freeze never --training.steps 2000 --lam-optimizer.schedule constant --runtime.save-every 50 "
    "--runtime.keep-checkpoints 1000 --runtime.evaluate false"
)
SETTLED = 300
CLIPS = 32


@dataclass(frozen=True)
class Outcome:
    """What one seed of one regime gave."""

    flips: int
    noise: float
    control: float
    all_keys: float
    onset_f1: float
    keys: int
    success: bool


def train(experiment: str, workdir: Path, seed: int, dataset: Path, overrides: str = "") -> None:
    command = [sys.executable, "-m", "melodjinn_jax.train", "--config", experiment, "--workdir", str(workdir)]
    command += ["--seed", str(seed), "--data.path", str(dataset), "--runtime.progress", "false", *overrides.split()]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def count_flips(workdir: Path, dataset_path: Path) -> int:
    """Changes of any class's majority code from one checkpoint to the next, after the start."""
    dataset = open_dataset(dataset_path)
    held_out = dataset.load_split("validation", CLIPS)
    models = make_models(load_config(workdir), load_codec(dataset.codec_folder))
    hits = [hits_of(truth) for truth in held_out["ground_truth"]]
    encode = jax.jit(lambda state, waveform: encode_codes(models, state, waveform))
    majorities = []
    with CheckpointStore(workdir / "checkpoints") as store:
        for step in store.steps():
            if step >= SETTLED:
                parts = store.read_arrays(step, *LAM_PARTS, *CODEBOOK_PARTS)
                codes = np.asarray(encode(jax.tree.map(jnp.asarray, parts), held_out["waveform"]))
                majorities.append(majority_codes(codes, hits))
    return sum(a != b for before, after in itertools.pairwise(majorities) for a, b in zip(before, after, strict=True))


def majority_codes(codes: np.ndarray, hits: list) -> list[int]:
    """The most frequent code of NOOP frames and of each drum's onset frames."""
    truth = np.zeros(codes.shape, int)
    for clip, clip_hits in enumerate(hits):
        for hit in clip_hits:
            frame = hit.sample // 320
            if 1 <= frame <= codes.shape[1]:
                truth[clip, frame - 1] = hit.drum + 1
    return [int(np.bincount(codes[truth == label]).argmax()) for label in np.unique(truth)]


def run_seed(name: str, experiment: str, seed: int, output: Path) -> Outcome:
    folder = output / name.split()[0].strip(",:") / str(seed)
    dataset = output / "dataset"
    for kind, overrides in (("frozen", ""), ("unfrozen", UNFROZEN)):
        if not (folder / kind / "done").exists():
            train(experiment, folder / kind, seed, dataset, overrides)
            (folder / kind / "done").touch()
    scores = json.loads((folder / "frozen" / "eval.json").read_text())
    return Outcome(
        flips=count_flips(folder / "unfrozen", dataset),
        noise=1 - scores["noop_recall"],
        control=scores["control_accuracy"],
        all_keys=scores["all_keys_accuracy"],
        onset_f1=scores["generation_onset_f1"],
        keys=scores["num_keys"],
        success=scores["success"],
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "regimes")
    arguments = parser.parse_args()
    print("| regime | runs with flips | flips | noise | control | worst key | onset F1 | keys | success |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, experiment in REGIMES.items():
        runs = [run_seed(name, experiment, seed, arguments.output) for seed in range(arguments.seeds)]
        middle = [
            f"{statistics.median(getattr(run, field) for run in runs):.3f}"
            for field in ("noise", "control", "all_keys", "onset_f1")
        ]
        flipping = sum(run.flips > 0 for run in runs)
        print(
            f"| {name} | {flipping} of {len(runs)} | {', '.join(str(run.flips) for run in runs)} | "
            + " | ".join(middle)
            + f" | {', '.join(str(run.keys) for run in runs)} | {sum(run.success for run in runs)} of {len(runs)} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
