"""Two real processes, one device each: they find each other, read their own rows, stop at one step and go on alike.

They take two steps per dispatch, so that a stop must fall between two dispatches of both.
"""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import OPTIMISED
from hypothesis import given
from hypothesis import strategies as st

from melodjinn_jax.errors import UserError
from melodjinn_jax.training.hosts import join_hosts
from melodjinn_jax.training.manifest import read_manifest

ROOT = Path(__file__).resolve().parent.parent
STEPS = 120

EXPERIMENT = """
import sys
sys.path.insert(0, {tests!r})
from conftest import tiny_config
from melodjinn_jax.config import CodecConfig, RuntimeConfig, TrainingConfig

def get_config():
    return tiny_config(
        codec=CodecConfig(codebook_size=16, steps=4),
        training=TrainingConfig(steps={steps}, batch_size=4, crop_frames=24),
        runtime=RuntimeConfig(
            log_every=2, save_every=50, steps_per_dispatch=2, compile_cache={cache!r}, evaluate=False
        ),
    )
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    file = folder / "tiny.py"
    file.write_text(EXPERIMENT.format(tests=str(ROOT / "tests"), steps=STEPS, cache=str(folder / "cache")))
    return file


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def start(experiment: Path, workdir: Path, count: int, *overrides: str) -> list[subprocess.Popen]:
    """The train command in `count` processes."""
    command = [sys.executable, "-m", "melodjinn_jax.train", "--config", str(experiment), "--workdir", str(workdir)]
    command += ["--data.path", str(experiment.parent / "data"), *overrides]
    address = f"127.0.0.1:{free_port()}"
    processes = []
    for index in range(count):
        environment = OPTIMISED | {"JAX_PLATFORMS": "cpu"}
        if count > 1:
            names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
            environment |= dict(zip(names, (address, str(count), str(index)), strict=True))
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    return processes


def finish(processes: list[subprocess.Popen], status: int = 0) -> list[str]:
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), "\n\n".join(said)
    return said


def rows(workdir: Path) -> list[dict]:
    """The metrics without their clock readings."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("frames_per_second", "speed")} for line in lines
    ]


def checkpoints(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())


def digests(workdir: Path) -> dict[str, str]:
    newest = workdir / "checkpoints" / str(checkpoints(workdir)[-1])
    return {leaf.name: leaf.sha256 for leaf in read_manifest(newest).leaves}


@pytest.fixture(scope="module")
def uninterrupted(experiment, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    finish(start(experiment, workdir, 2))
    return workdir


@pytest.fixture(scope="module")
def preempted(experiment, uninterrupted, tmp_path_factory) -> Path:
    """A run of two processes of which the second, and it alone, was told to stop."""
    workdir = tmp_path_factory.mktemp("runs") / "preempted"
    processes = start(experiment, workdir, 2)
    metrics = workdir / "metrics.jsonl"
    while all(process.poll() is None for process in processes):
        if metrics.exists() and '"step": 10,' in metrics.read_text():
            processes[1].send_signal(signal.SIGTERM)
            break
        time.sleep(0.001)
    said = finish(processes, 128 + signal.SIGTERM)
    stopped = checkpoints(workdir)[-1]
    assert 10 <= stopped < STEPS
    assert stopped % 2 == 0
    assert f"stopped at step {stopped}; the same command resumes" in said[0]
    return workdir


def test_a_run_of_two_processes_resumed_after_the_preemption_of_one_is_bit_identical(
    experiment, uninterrupted, preempted, tmp_path
):
    workdir = tmp_path / "resumed"
    shutil.copytree(preempted, workdir)
    finish(start(experiment, workdir, 2))
    assert rows(workdir) == rows(uninterrupted)
    assert digests(workdir) == digests(uninterrupted)


def test_one_process_goes_on_where_two_stopped(experiment, uninterrupted, preempted, tmp_path):
    workdir = tmp_path / "alone"
    shutil.copytree(preempted, workdir)
    finish(start(experiment, workdir, 1))
    assert checkpoints(workdir)[-1] == STEPS
    for alone, together in zip(rows(workdir), rows(uninterrupted), strict=True):
        # The same rows on one device: sums in another order, and no more than that.
        if "cross_entropy" in together:
            np.testing.assert_allclose(alone["cross_entropy"], together["cross_entropy"], rtol=0.02)


def test_what_the_first_process_refuses_ends_both_with_its_sentence(experiment, uninterrupted):
    for said in finish(start(experiment, uninterrupted, 2, "--seed", "1"), 2):
        assert "seed was 0 and is now 1" in said
        assert "Traceback" not in said


@given(
    st.dictionaries(
        st.sampled_from(["JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"]),
        st.sampled_from(["", "x", "host", "host:1", "-1", "0", "1", "3"]),
        min_size=1,
    )
)
def test_variables_that_make_no_sense_are_refused_and_named(variables):
    makes_sense = (
        ":" in variables.get("JAX_COORDINATOR_ADDRESS", "")
        and variables.get("JAX_NUM_PROCESSES") in ("1", "3")
        and variables.get("JAX_PROCESS_ID") in ("0", "1")
        and variables["JAX_PROCESS_ID"] < variables["JAX_NUM_PROCESSES"]
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.setattr("melodjinn_jax.training.hosts.jax.distributed.initialize", lambda *_: None)
        patch.setattr("melodjinn_jax.training.hosts._use_cpu_network", lambda: None)
        if makes_sense:
            join_hosts()
        else:
            with pytest.raises(UserError, match="JAX_"):
                join_hosts()
