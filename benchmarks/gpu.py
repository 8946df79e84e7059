"""Training speed of a large model on a GPU: over batch, layout, attention and remat, and beside `torch.compile`.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --config experiments/toy_drums.py --batch-sizes 2 --steps 1 --pytorch plain  # no GPU

Every row trains the dynamics model of the experiment on one batch of noise with labels, so that no LAM runs, by the
real training step. What counts for MFU is in docs/mfu.md; memory is what XLA plans for the step, its arguments among
it. The PyTorch model (benchmarks/pytorch.py) has the same parameters, in float32, and the same types of everything
else; its attention is FlexAttention, which knows the window and from whose sum of weights the sink follows, or flash
attention with neither. Needs torch.
"""

import argparse
import dataclasses
import gc
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

# Both sides need memory of their own; JAX takes this share of it at the start.
os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.6")

import jax
from pytorch import Dynamics, OurStep, random_batch, tensors, their_steps, torch

from melodjinn_jax.config import Config
from melodjinn_jax.experiment import load_experiment
from melodjinn_jax.training.chips import find_chip
from melodjinn_jax.training.mesh import open_mesh
from melodjinn_jax.training.run import tune_process
from melodjinn_jax.training.speed import step_flops
from melodjinn_jax.training.state import CodecShape, Models, Phase

EXPERIMENT = "experiments/techno_200m.py"
CODEC = CodecShape(sample_rate=24000, hop_length=320, num_codebooks=4, codebook_size=1024)  # EnCodec at 3 kbps
DEPTH = {"layout": "depth", "depth_dim": 512, "depth_layers": 4}
WARM_UP = 3


@dataclass(frozen=True)
class Row:
    """What a row of the table changes of the experiment."""

    batch_size: int
    layout: str = "flat"
    attention: str = "auto"
    remat: str = "none"
    layers: str = "unrolled"

    def models(self, config: Config) -> Models:
        runtime = dataclasses.replace(
            config.runtime,
            attention=self.attention,
            remat=self.remat,
            unrolled_layers=config.dynamics.num_layers if self.layers == "unrolled" else 1,
        )
        dynamics = dataclasses.replace(config.dynamics, **(DEPTH if self.layout == "depth" else {}))
        data = dataclasses.replace(config.data, actions="auto")  # labels, so that no LAM runs
        training = dataclasses.replace(config.training, batch_size=self.batch_size)
        changed = dataclasses.replace(config, data=data, dynamics=dynamics, training=training, runtime=runtime)
        return Models(changed, CODEC)


def rows(batch_sizes: list[int]) -> list[Row]:
    """Every batch size; the other settings each at one of them."""
    small, large = batch_sizes[0], batch_sizes[-1]
    others = [
        Row(large, layers="loop"),
        Row(large, remat="dots"),
        Row(large, remat="full"),
        Row(small, attention="xla"),
        Row(large, layout="depth"),
    ]
    return [Row(size) for size in batch_sizes] + others


def compiled_pytorch(models: Models, attention: str, device: str) -> Callable[[int], None]:
    torch.manual_seed(0)
    model = Dynamics(models, attention, torch.bfloat16, device)
    steps = their_steps(torch.compile(model, dynamic=False), models, *tensors(random_batch(models), device))

    def finished(count: int) -> None:
        steps(count)
        if device == "cuda":
            torch.cuda.synchronize()

    return finished


def seconds_per_step(steps: Callable[[int], None], count: int) -> float:
    began = time.perf_counter()
    steps(count)
    return (time.perf_counter() - began) / count


def measure(row: Row, config: Config, count: int, repeats: int) -> str:
    """A line of the first table."""
    models = row.models(config)
    training = models.config.training
    settings = f"| {row.batch_size} | {row.layout} | {row.attention} | {row.remat} | {row.layers} |"
    with jax.set_mesh(open_mesh(models.config)):
        try:
            step = OurStep(models, random_batch(models))
            step(WARM_UP)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return f"{settings} does not fit |"
        seconds = statistics.median(seconds_per_step(step, count) for _ in range(repeats))
    tokens = training.batch_size * training.crop_frames * CODEC.num_codebooks
    rate = step_flops(models, Phase.FROZEN).dynamics / seconds
    chip = find_chip(jax.devices()[0].device_kind)
    mfu = f"{rate / chip.flops:.1%}" if chip else "-"
    return (
        f"{settings} {step.parameters / 1e6:.0f}M | {1e3 * seconds:.1f} | {tokens / seconds:,.0f} | {rate / 1e12:.0f} "
        f"| {mfu} | {step.gibibytes:.1f} |"
    )


def contest(batch_size: int, attention: str, config: Config, count: int, repeats: int) -> str:
    """A line of the second table: both sides in turns."""
    models = Row(batch_size).models(config)
    with jax.set_mesh(open_mesh(models.config)):
        ours = OurStep(models, random_batch(models))
        theirs = compiled_pytorch(models, attention, "cuda" if jax.default_backend() == "gpu" else "cpu")
        try:
            for side in (ours, theirs):
                side(WARM_UP)
        except torch.OutOfMemoryError:
            return f"| {batch_size} | {attention} | | PyTorch's side does not fit beside ours | |"
        turns = [(seconds_per_step(ours, count), seconds_per_step(theirs, count)) for _ in range(repeats)]
    our_time, their_time = (1e3 * statistics.median(column) for column in zip(*turns, strict=True))
    ratios = [theirs / ours for ours, theirs in turns]
    return (
        f"| {batch_size} | {attention} | {our_time:.1f} | {their_time:.1f} | {statistics.median(ratios):.2f} "
        f"[{min(ratios):.2f}] |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=EXPERIMENT)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--steps", type=int, default=10, help="in a turn")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pytorch", nargs="*", default=["flex", "flash"], choices=["flex", "flash", "plain"])
    arguments = parser.parse_args()
    if jax.default_backend() != "gpu" and set(arguments.pytorch) - {"plain"}:
        parser.error("without a GPU PyTorch has plain attention only: --pytorch plain")
    config = load_experiment(arguments.config)
    with tempfile.TemporaryDirectory() as cache:
        tune_process(cache)
        compare(config, arguments)
    return 0


def compare(config: Config, arguments: argparse.Namespace) -> None:
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, torch {torch.__version__}")
    print(
        "| batch | layout | attention | remat | layers | parameters | step, ms | tokens/s | model TFLOP/s | MFU | GiB |"
    )
    print("|---" * 11 + "|")
    for row in rows(sorted(arguments.batch_sizes)):
        print(measure(row, config, arguments.steps, arguments.repeats), flush=True)
        gc.collect()
    print(
        "\n| batch | PyTorch's attention | ours, ms | torch.compile, ms | ratio, median [worst] |\n" + "|---" * 5 + "|"
    )
    sizes = sorted({min(arguments.batch_sizes), max(arguments.batch_sizes)})
    for attention, size in itertools.product(arguments.pytorch, sizes):
        print(contest(size, attention, config, arguments.steps, arguments.repeats), flush=True)
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
