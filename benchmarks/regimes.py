"""Flips, noise and control of the ways to train the latent actions, side by side.

    python benchmarks/regimes.py --seeds 3

For each regime and seed, two runs. One never freezes the LAM for 2,000 steps: every 50 steps after step 300 the key
that most frames of each class (NOOP and every drum) get on held-out clips is noted, and a *flip* is a change of it.
Flips of the code are counted too; they need not matter, for a drum may have several codes, all of them its key's.
The other is the whole training with its evaluation: *noise* is the share of frames without a hit that get an action
all the same, control and success as in the README.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections import defaultdict
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
    code_flips: int
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


def count_flips(workdir: Path, dataset_path: Path) -> tuple[int, int]:
    """Changes of any class's majority key, and of its majority code, from one checkpoint to the next."""
    dataset = open_dataset(dataset_path)
    held_out = dataset.load_split("validation", CLIPS)
    models = make_models(load_config(workdir), load_codec(dataset.codec_folder))
    hits = [hits_of(truth) for truth in held_out["ground_truth"]]
    encode = jax.jit(lambda state, waveform: encode_codes(models, state, waveform))
    keys, codes = [], []
    with CheckpointStore(workdir / "checkpoints") as store:
        for step in store.steps():
            if step >= SETTLED:
                parts = store.read_arrays(step, *LAM_PARTS, *CODEBOOK_PARTS)
                found = np.asarray(encode(jax.tree.map(jnp.asarray, parts), held_out["waveform"]))
                of_code = np.asarray(parts["key_of_code"])
                keys.append(majorities(of_code[found], of_code[found], hits))
                codes.append(majorities(found, of_code[found], hits))
    return changes(keys), changes(codes)


def changes(looks: list[list[int]]) -> int:
    return sum(a != b for before, after in itertools.pairwise(looks) for a, b in zip(before, after, strict=True))


def majorities(labels: np.ndarray, keys: np.ndarray, hits: list) -> list[int]:
    """The most frequent label of NOOP frames and of each drum's hits.

    A hit's label stands at the action into its frame or, if that is NOOP, at the next: a hit at the end of its frame
    is heard there only.
    """
    of_class: dict[int, list[int]] = defaultdict(list)
    is_free = np.ones(labels.shape, bool)
    for clip, clip_hits in enumerate(hits):
        for hit in clip_hits:
            action = hit.sample // 320 - 1
            if 0 <= action < labels.shape[1] - 1:
                action += keys[clip, action] == 0
                of_class[hit.drum + 1].append(labels[clip, action])
                is_free[clip, action] = False
    of_class[0] = labels[is_free].tolist()
    return [int(np.bincount(of_class[kind]).argmax()) for kind in sorted(of_class)]


def run_seed(name: str, experiment: str, seed: int, output: Path) -> Outcome:
    folder = output / name.split()[0].strip(",:") / str(seed)
    dataset = output / "dataset"
    for kind, overrides in (("frozen", ""), ("unfrozen", UNFROZEN)):
        if not (folder / kind / "done").exists():
            train(experiment, folder / kind, seed, dataset, overrides)
            (folder / kind / "done").touch()
    scores = json.loads((folder / "frozen" / "eval.json").read_text())
    flips, code_flips = count_flips(folder / "unfrozen", dataset)
    return Outcome(
        flips=flips,
        code_flips=code_flips,
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
    columns = "runs with flips | flips | flips of codes | noise | control | worst key | onset F1 | keys | success"
    print(f"| regime | {columns} |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, experiment in REGIMES.items():
        runs = [run_seed(name, experiment, seed, arguments.output) for seed in range(arguments.seeds)]
        middle = [
            f"{statistics.median(getattr(run, field) for run in runs):.3f}"
            for field in ("noise", "control", "all_keys", "onset_f1")
        ]
        flipping = sum(run.flips > 0 for run in runs)
        print(
            f"| {name} | {flipping} of {len(runs)} | {', '.join(str(run.flips) for run in runs)} | "
            + f"{', '.join(str(run.code_flips) for run in runs)} | "
            + " | ".join(middle)
            + f" | {', '.join(str(run.keys) for run in runs)} | {sum(run.success for run in runs)} of {len(runs)} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
