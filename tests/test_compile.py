"""Compiling ahead of time: for every chip, in a subprocess, and what cannot be compiled is refused."""

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny_config

from melodjinn_jax import compile as aot
from melodjinn_jax.compile import TOPOLOGIES, CompileArguments, check_topology, compile_in_subprocess, estimate, report
from melodjinn_jax.config import MeshConfig, RuntimeConfig, TrainingConfig
from melodjinn_jax.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra aot")


def arguments(topology: str, mesh: MeshConfig = MeshConfig(), **training: int) -> CompileArguments:  # noqa: B008
    config = tiny_config(
        training=TrainingConfig(**({"steps": 12, "batch_size": 8, "crop_frames": 24} | training)),
        runtime=RuntimeConfig(mesh=mesh),
    )
    return CompileArguments("tiny.py", topology, config)


def command(*options: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "melodjinn_jax.compile", "--config", "experiments/toy_drums.py", *options]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(autouse=True)
def _optimised(monkeypatch):
    """What is said of a program is of the one that users would run."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "mesh", "kinds"),
    [
        # With data parallelism alone, once frozen, nothing travels but gradients.
        ("v5e:2x2", MeshConfig(data=4), {"all-reduce"}),
        ("v6e:2x2", MeshConfig(fsdp=4), {"all-gather", "all-reduce", "reduce-scatter", "collective-permute"}),
        ("v5p:2x2x1", MeshConfig(data=2, tensor=2), {"all-reduce", "all-gather"}),
    ],
)
def test_a_step_compiles_for_every_chip_and_mesh(topology, mesh, kinds):
    given = arguments(topology, mesh)
    # No spliced clips: those are taken from clips on other devices.
    given = dataclasses.replace(
        given,
        settings=dataclasses.replace(
            given.settings, dynamics=dataclasses.replace(given.settings.dynamics, splice_probability=0.0)
        ),
    )
    result = compile_in_subprocess(given)
    assert result["mesh"] == {"slice": 1, "data": 1, "fsdp": 1, "tensor": 1} | {
        axis: getattr(mesh, axis) for axis in ("data", "fsdp", "tensor") if getattr(mesh, axis)
    }
    assert {found["kind"] for found in result["collectives"]} <= kinds
    assert result["arguments"] > 0
    chip = check_topology(topology)
    best = estimate(result, chip)
    assert result["traffic"] > result["arguments"]
    assert 0 < best.mfu_apart < best.mfu <= 1
    assert best.step == max(best.compute, best.memory, best.links)
    assert any("upper bound" in line for line in report(given, result, chip))


@needs_libtpu
def test_a_model_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"--topology v5e:2x2: the model does not fit: a device would need .* of its"):
        compile_in_subprocess(arguments("v5e:2x2", batch_size=1 << 20))


@pytest.mark.parametrize("topology", ["v5e", "v5e:3x3", "v9:2x2", "v5p:2x2", ""])
def test_a_topology_that_nobody_knows_is_refused_with_those_that_there_are(topology):
    with pytest.raises(UserError) as refused:
        check_topology(topology)
    assert all(f"{chip}:{shapes[0]}" in str(refused.value) for chip, shapes in TOPOLOGIES.items())


def test_the_command_refuses_in_one_sentence():
    for options, complaint in (
        (("--topology", "v9:2x2"), "error: --topology v9:2x2 is not known; known are v5e:2x2"),
        (("--topology", "v5e:2x2", "--runtime.mesh.tensor", "3"), "error: runtime.mesh.tensor is 3"),
    ):
        done = command(*options)
        assert done.returncode == 2
        assert done.stderr.startswith(complaint)
        assert done.stderr.count("\n") == 1


def test_a_step_that_practises_is_refused():
    asked = arguments("v5e:2x2")
    dynamics = dataclasses.replace(asked.settings.dynamics, practice_rate=0.1)
    asked = dataclasses.replace(asked, settings=dataclasses.replace(asked.settings, dynamics=dynamics))
    with pytest.raises(UserError, match=r"dynamics\.practice_rate is 0\.1: practice needs a codec"):
        compile_in_subprocess(asked)


def test_a_missing_and_a_crashing_compiler_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(aot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"libtpu, the TPU compiler, is not installed: pip install"):
        compile_in_subprocess(arguments("v5e:2x2"))
    monkeypatch.undo()
    spec = importlib.util.spec_from_loader("libtpu", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(aot.importlib.util, "find_spec", lambda name: spec)
    crash = [sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"]
    real = subprocess.run
    monkeypatch.setattr(aot.subprocess, "run", lambda _, **options: real(crash, **options))
    with pytest.raises(UserError, match=r"the TPU compiler ended with signal 11"):
        compile_in_subprocess(arguments("v5e:2x2"))
