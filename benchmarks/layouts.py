"""The flat and the depth layout of the dynamics model on the drum world, at equal parameters and at equal FLOPs.

    python benchmarks/layouts.py
    python benchmarks/layouts.py --base runs/benchmark/random3/1 --output runs/layouts/1   # of benchmarks/seeds.py

All train on the actions of one frozen LAM: that of --base, a finished run of experiments/toy_drums.py, which is trained
first if it is not there. Cross entropy is in nats per token of held-out clips under true actions and under none;
control as in docs/toy_world.md. MFLOPs are those of matrix products and attention of one frame, forward. The time of a
step is that of the processor on one core, so that a busy machine does not matter.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from melodjinn_jax.codecs import load_codec
from melodjinn_jax.config import DynamicsConfig
from melodjinn_jax.training.run import make_models, tune_process
from melodjinn_jax.training.state import CodecShape, Models, Phase, commit, count_parameters, with_dynamics
from melodjinn_jax.training.step import make_train_step
from melodjinn_jax.training.workdir import load_config

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENT = "experiments/toy_drums.py"
VARIANTS = {
    "flat": DynamicsConfig(),
    "depth, equal parameters": DynamicsConfig("depth", num_layers=2, depth_dim=48, depth_layers=1),
    "depth, equal FLOPs": DynamicsConfig("depth", num_layers=4, depth_dim=64, depth_layers=1),
}


def megaflops(config: DynamicsConfig, codec: CodecShape) -> float:
    """Of one frame, forward, once windows are full."""
    Q, D = codec.num_codebooks, config.dim

    def stack(dim: int, layers: int, keys: float) -> float:
        return layers * (24 * dim**2 + 4 * dim * keys)

    if config.layout == "flat":
        total = Q * (stack(D, config.num_layers, config.window * Q) + 2 * D * codec.codebook_size)
    else:
        small = config.depth_dim
        total = stack(D, config.num_layers, config.window) + 2 * D * small * Q
        total += Q * (stack(small, config.depth_layers, (Q + 1) / 2) + 2 * small * codec.codebook_size)
    return total / 1e6


def train(workdir: Path, *overrides: str) -> None:
    command = [sys.executable, "-m", "melodjinn_jax.train", "--config", EXPERIMENT, "--workdir", str(workdir)]
    subprocess.run([*command, "--runtime.progress", "false", *overrides], cwd=ROOT, check=True)


def flags(config: DynamicsConfig) -> list[str]:
    fields = ("layout", "num_layers", "depth_dim", "depth_layers")
    return [text for name in fields for text in (f"--dynamics.{name.replace('_', '-')}", str(getattr(config, name)))]


def milliseconds(models: Models, repeats: int = 9) -> float:
    """Median time of a step on labels."""
    training = models.config.training
    rng = np.random.default_rng(0)
    shape = (training.batch_size, training.crop_frames, models.codec.num_codebooks)
    batch = {
        "codes": rng.integers(0, models.codec.codebook_size, shape).astype(np.uint16),
        "actions": rng.integers(0, models.num_codes, (shape[0], shape[1] - 1)).astype(np.uint16),
    }
    state = {"step": jnp.int32(0), "rng": jax.random.key_data(jax.random.key(0)), "first_bad_step": jnp.int32(-1)}
    state = commit(with_dynamics(models, state, 0))
    train_step = make_train_step(models, Phase.FROZEN)
    times = []
    for _ in range(repeats + 1):
        began = time.process_time()
        state, _ = train_step(state, batch)
        jax.block_until_ready(state)
        times.append(time.process_time() - began)
    return 1000 * statistics.median(times[1:])


def row(name: str, workdir: Path) -> str:
    models = make_models(load_config(workdir), load_codec(workdir / "codec"))
    parameters = count_parameters(jax.eval_shape(models.init_dynamics, jax.random.key(0)))
    scores = json.loads((workdir / "eval.json").read_text())
    return (
        f"| {name} | {parameters / 1e3:.0f}k | {megaflops(models.config.dynamics, models.codec):.2f} "
        f"| {scores['cross_entropy_true_actions']:.3f} | {scores['cross_entropy_no_actions']:.3f} "
        f"| {scores['control_accuracy']:.3f} | {milliseconds(models):.1f} ms |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, default=ROOT / "runs" / "layouts" / "base")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "layouts")
    parser.add_argument("--steps", type=int, default=500, help="of the dynamics model, as in the base")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    tune_process("")
    if not (arguments.base / "eval.json").exists():
        train(arguments.base)
    same = ["--init-from", f"{arguments.base}:lam", "--data.path", str(arguments.base / "dataset")]
    same += ["--training.steps", str(arguments.steps)]
    world = load_config(str(arguments.base))
    for flag, seed in (("--seed", world.seed), ("--data.seed", world.data.seed), ("--codec.seed", world.codec.seed)):
        same += [flag, str(seed)]
    print("| model | parameters | MFLOPs | CE, true actions | CE, no actions | control | step |\n|" + "---|" * 7)
    for name, variant in VARIANTS.items():
        workdir = arguments.output / name.replace(", ", "-").replace(" ", "-")
        if not (workdir / "eval.json").exists():
            train(workdir, *same, *flags(variant))
        print(row(name, workdir), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
