"""Compile a training step for TPUs, without one: `python -m melodjinn_jax.compile --config FILE --topology v5e:4x8`.

Prints what one step needs and moves, and what it could take at best. Needs libtpu: `pip install 'melodjinn-jax[aot]'`.
"""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from melodjinn_jax.config import Config
from melodjinn_jax.data.audio import HOP_LENGTH, SAMPLE_RATE
from melodjinn_jax.errors import UserError, reports_user_errors
from melodjinn_jax.experiment import command_line, load_experiment, parse_arguments, value_of
from melodjinn_jax.training.chips import CHIPS, Chip
from melodjinn_jax.training.costs import Collective
from melodjinn_jax.validation import check_config

_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
TOPOLOGIES = {"v5e": _FLAT, "v6e": _FLAT, "v5p": _CUBES}
"""Slices of TPUs that can be had, by chip."""


@dataclass(frozen=True)
class CompileArguments:
    """Compile the training step of an experiment for TPUs, on a machine without any."""

    config: str
    """Experiment file, for example experiments/techno_200m.py."""
    topology: str
    """Chips to compile for, for example v5e:4x8."""
    settings: Annotated[Config, tyro.conf.arg(name="")]
    phase: Literal["discover", "quantise", "frozen"] = "frozen"
    """Phase whose step to compile."""
    codebooks: int = 4
    """Codebooks of a DATASET's codec (EnCodec at 3 kbps has 4); the drum world's are in the experiment."""
    codebook_size: int = 1024
    """Entries of each of them."""


def check_topology(topology: str) -> Chip:
    """The chip of a topology. Raises `UserError` listing those that there are."""
    name, _, shape = topology.partition(":")
    if shape not in TOPOLOGIES.get(name, ()):
        known = "; ".join(f"{chip}:{', '.join(shapes)}" for chip, shapes in TOPOLOGIES.items())
        raise UserError(f"--topology {topology} is not known; known are {known}")
    return next(chip for chip in CHIPS if chip.name == name)


def compile_in_subprocess(arguments: CompileArguments) -> dict[str, Any]:
    """What `training/aot.py` found.

    Raises:
        UserError: libtpu is not there or crashed, the model does not fit, the mesh does not, or the model practises.
    """
    practice_rate = arguments.settings.dynamics.practice_rate
    if practice_rate and arguments.phase == "frozen":
        raise UserError(
            f"dynamics.practice_rate is {practice_rate}: practice needs a codec, and none is there ahead of time; "
            "set it to 0"
        )
    libtpu = importlib.util.find_spec("libtpu")
    if libtpu is None or libtpu.origin is None:
        raise UserError("libtpu, the TPU compiler, is not installed: pip install 'melodjinn-jax[aot]'")
    library = Path(libtpu.origin).with_name("libtpu.so")
    environment = {
        "JAX_PLATFORMS": "cpu",
        "TPU_LIBRARY_PATH": str(library),
        "TPU_SKIP_MDS_QUERY": "1",  # else libtpu asks the network, for a minute, what machine this is
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it locks a TPU for one process, but here there is none
    }
    config = arguments.settings
    shape = [arguments.codebooks, arguments.codebook_size]
    if not config.data.datasets:
        shape = [config.codec.num_codebooks, config.codec.codebook_size]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
        command = [sys.executable, "-m", "melodjinn_jax.training.aot", folder, arguments.topology, arguments.phase]
        command.append(json.dumps([SAMPLE_RATE, HOP_LENGTH, *shape]))
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        raise UserError(f"the TPU compiler ended with {how} ({said}): try another --topology or runtime.mesh")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "error" in result:
        raise UserError(f"--topology {arguments.topology}: {result['error']}")
    return result


@dataclass(frozen=True)
class Estimate:
    """Least seconds of a step by each of the things that it needs; the longest of them is the roofline."""

    compute: float
    memory: float
    links: float

    @property
    def step(self) -> float:
        """Seconds if all three go on at once."""
        return max(self.compute, self.memory, self.links)

    @property
    def mfu(self) -> float:
        """Share of the peak at the roofline."""
        return self.compute / self.step

    @property
    def mfu_apart(self) -> float:
        """The same if compute, memory and links take turns."""
        return self.compute / (self.compute + self.memory + self.links)


def estimate(result: dict[str, Any], chip: Chip) -> Estimate:
    """The roofline (Williams et al. 2009) of a compiled step: an upper bound on speed, not a forecast."""
    chips = 1
    for length in result["mesh"].values():
        chips *= length
    flops = sum(result["flops"].values()) / chips
    sent = sum(Collective(**found).sent for found in result["collectives"])
    compute, links = flops / chip.flops, sent / chip.link_bandwidth
    return Estimate(compute, result["traffic"] / chip.memory_bandwidth, links)


def report(arguments: CompileArguments, result: dict[str, Any], chip: Chip) -> Iterator[str]:
    """Lines to print."""
    config, best = arguments.settings, estimate(result, chip)
    batch, frames = config.training.batch_size, config.training.crop_frames
    mesh = ", ".join(f"{axis} {length}" for axis, length in result["mesh"].items())
    sizes = ", ".join(f"{part} {count / 1e6:.1f}M" for part, count in result["parameters"].items())
    yield f"{config.name}, phase {arguments.phase}, on {arguments.topology}: mesh {mesh}"
    yield f"parameters: {sizes}; batch {batch} x {frames} frames, {config.training.dtype}"
    needed = sum(result[name] for name in ("arguments", "temporaries", "results"))
    yield (
        f"memory per device: {needed / 2**30:.2f} GiB (arguments {result['arguments'] / 2**30:.2f}, temporaries "
        f"{result['temporaries'] / 2**30:.2f}) of {chip.memory / 1e9:.0f} GB"
    )
    for found in (Collective(**fields) for fields in result["collectives"]):
        yield (
            f"collective: {found.count} {found.kind} over {found.devices} devices, {found.size / 2**20:.1f} MiB in all"
        )
    flops = result["flops"]
    tera = {name: f"{count / 1e12:.3g}T" for name, count in flops.items()}
    yield f"model FLOPs per step: dynamics {tera['dynamics']}, LAM {tera['lam']} (docs/mfu.md)"
    yield (
        f"least time of a step: compute {1e3 * best.compute:.1f} ms, memory {1e3 * best.memory:.1f} ms "
        f"({result['traffic'] / 1e9:.1f} GB), links {1e3 * best.links:.1f} ms"
    )
    seconds = batch * frames * HOP_LENGTH / SAMPLE_RATE
    yield (
        f"upper bound: {1e3 * best.step:.1f} ms a step, {seconds / best.step:.0f} seconds of sound a second, "
        f"MFU {100 * best.mfu:.0f} %; {100 * best.mfu_apart:.0f} % if products, memory and links take turns"
    )
    yield (
        f"assumed: {chip.name} at its stated peak, {chip.flops / 1e12:.0f} TFLOP/s, {chip.memory_bandwidth / 1e9:.0f} "
        f"GB/s of memory, {chip.link_bandwidth / 1e9:.0f} GB/s of links; memory traffic as the "
        "compiled program has it, each fused operation once; rings for collectives"
    )


@reports_user_errors
def main() -> None:
    argv = command_line()
    path = value_of(argv, "--config")
    default = CompileArguments(
        config=path or tyro.MISSING, topology=tyro.MISSING, settings=load_experiment(path) if path else Config()
    )
    arguments = parse_arguments(CompileArguments, argv, prog="python -m melodjinn_jax.compile", default=default)
    check_config(arguments.settings)
    chip = check_topology(arguments.topology)
    for line in report(arguments, compile_in_subprocess(arguments), chip):
        print(line)


if __name__ == "__main__":
    sys.exit(main())
