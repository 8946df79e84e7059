"""Meshes: shapes chosen and refused, where parameters lie, and the same training on every mesh."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import tiny_config, tiny_models
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh, PartitionSpec

from melodjinn_jax.config import Config, DynamicsConfig, LatentActionConfig, MeshConfig, RuntimeConfig, TrainingConfig
from melodjinn_jax.data.loader import ALL_ROWS
from melodjinn_jax.errors import UserError
from melodjinn_jax.training.mesh import (
    AXES,
    MeshShape,
    _place_rows,
    choose_shape,
    parameter_spec,
    place_batches,
    state_shardings,
)
from melodjinn_jax.training.state import abstract_state
from melodjinn_jax.validation import check_config

ROOT = Path(__file__).resolve().parent.parent
MESH = AbstractMesh((2, 2, 2, 2), AXES)
SHAPES = ("1,8,1,1", "1,1,8,1", "1,1,1,8", "1,2,2,2", "2,2,2,1")


def with_mesh(batch_size: int = 64, dim: int = 64, num_layers: int = 3, accumulate: int = 1, **lengths: int) -> Config:
    return Config(
        dynamics=DynamicsConfig(dim=dim, num_heads=8, num_layers=num_layers),
        latent_actions=LatentActionConfig(dim=64, num_heads=8),
        training=TrainingConfig(batch_size=batch_size),
        runtime=RuntimeConfig(mesh=MeshConfig(**lengths), accumulate=accumulate),
    )


# Shapes


@given(
    st.integers(1, 64),
    st.fixed_dictionaries({axis: st.integers(0, 8) for axis in AXES}),
    st.sampled_from([8, 64, 96, 512]),
)
def test_a_mesh_takes_all_devices_and_divides_the_batch_or_is_refused(devices, lengths, batch_size):
    config = with_mesh(batch_size, **lengths)
    try:
        shape = choose_shape(config, devices)
    except UserError:
        return
    assert math.prod(shape) == devices
    assert batch_size % shape.batch_shards == 0
    assert all(not lengths[axis] or getattr(shape, axis) == lengths[axis] for axis in AXES)


def test_small_models_divide_only_the_batch_and_large_ones_their_parameters():
    assert choose_shape(with_mesh(), 1) == MeshShape(1, 1, 1, 1)
    assert choose_shape(with_mesh(), 8) == MeshShape(1, 8, 1, 1)
    assert choose_shape(with_mesh(dim=1024, num_layers=16), 32) == MeshShape(1, 32, 1, 1)
    billion = with_mesh(dim=2048, num_layers=20)
    assert choose_shape(billion, 32) == MeshShape(1, 8, 4, 1)
    assert choose_shape(billion, 32, slices=2) == MeshShape(2, 4, 4, 1)
    assert choose_shape(with_mesh(dim=2048, num_layers=20, data=16), 32) == MeshShape(1, 16, 2, 1)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"data": 5, "batch_size": 16}, "training.batch_size is 16: it must be a multiple of 5"),
        ({"tensor": 3}, "runtime.mesh.tensor is 3: it must divide dynamics.num_heads, 8"),
        ({"fsdp": 3, "batch_size": 48}, "runtime.mesh.fsdp is 3: it must divide dynamics.dim, 64"),
        ({"data": -1}, "runtime.mesh.data is -1"),
    ],
)
def test_meshes_that_no_device_could_mend_are_refused_before_any_is_touched(changes, complaint):
    with pytest.raises(UserError, match=complaint):
        check_config(with_mesh(**changes))


@pytest.mark.parametrize(
    ("changes", "devices", "complaint"),
    [
        ({"data": 3, "batch_size": 48}, 8, r"runtime\.mesh is data 3, which cannot share out 8 device"),
        ({"data": 2, "fsdp": 2}, 8, r"runtime\.mesh is data 2 x fsdp 2, which cannot share out 8 device"),
        ({"batch_size": 12}, 8, r"training\.batch_size is 12: it must be a multiple of 8"),
        ({"batch_size": 16, "accumulate": 4}, 8, r"runtime\.accumulate is 4: times 8, .* training\.batch_size, 16"),
    ],
)
def test_meshes_that_do_not_fit_the_devices_are_refused(changes, devices, complaint):
    with pytest.raises(UserError, match=complaint):
        choose_shape(with_mesh(**changes), devices)


def test_the_command_refuses_a_mesh_in_one_sentence_and_leaves_no_work_directory(tmp_path):
    command = [sys.executable, "-m", "melodjinn_jax.train", "--config", "experiments/toy_drums.py"]
    command += ["--workdir", str(tmp_path / "run"), "--runtime.cpu-devices", "3", "--runtime.mesh.data", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: runtime.mesh is data 2, which cannot share out 3 device(s)")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


# Where arrays lie


@pytest.mark.parametrize(
    ("latent_actions", "dynamics"),
    [
        ({}, {}),
        ({"gradient": "dynamics"}, {}),
        ({"bottleneck": "fsq"}, {}),
        ({"features": "waveform"}, {}),
        ({}, {"layout": "depth", "depth_dim": 16}),
        ({}, {"practice_rate": 0.1}),
    ],
    ids=["mel", "dynamics", "fsq", "waveform", "depth", "practised"],
)
def test_the_table_knows_every_parameter_and_splits_only_what_it_divides(latent_actions, dynamics):
    changed = dataclasses.replace(tiny_config().latent_actions, **latent_actions)
    models = tiny_models(latent_actions=changed, dynamics=dataclasses.replace(tiny_config().dynamics, **dynamics))
    state = abstract_state(models, ["lam", "lam_opt", "dynamics", "dynamics_opt", "codebook", "key_of_code"])
    shardings = state_shardings(state, MESH)
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert math.prod(sharding.shard_shape(leaf.shape)) >= 1  # which raises where a length is not divided
    split = sum(s.spec != PartitionSpec() for s in jax.tree.leaves(shardings["dynamics"]))
    moments = sum(s.spec != PartitionSpec() for s in jax.tree.leaves(shardings["dynamics_opt"]))
    assert moments == 2 * split > 0
    assert all(s.spec == PartitionSpec() for s in jax.tree.leaves(shardings["codebook"]))


def test_matrices_lie_as_the_rules_say_and_embeddings_whole():
    assert parameter_spec("transformer/blocks/attention/qkv/kernel", 3, MESH) == PartitionSpec(None, "fsdp", "tensor")
    assert parameter_spec("0/mu/transformer/blocks/down/kernel", 3, MESH) == PartitionSpec(None, "tensor", "fsdp")
    assert parameter_spec("embed_token/embedding", 2, MESH) == PartitionSpec()
    narrow = AbstractMesh((1, 8, 1, 1), AXES)
    assert parameter_spec("transformer/blocks/down/kernel", 3, narrow) == PartitionSpec()


def test_a_parameter_that_the_table_does_not_know_is_refused():
    with pytest.raises(ValueError, match="mystery/kernel"):
        parameter_spec("transformer/mystery/kernel", 2, MESH)


@pytest.mark.parametrize("count", [1, 3])
def test_batches_are_placed_in_their_order_whoever_places_them(count, rng):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), AXES)
    batches = [{"codes": rng.integers(0, 9, (4, 6, 2))} for _ in range(count)]
    placed = place_batches(batches, mesh, ALL_ROWS)["codes"]
    rows = np.stack([batch["codes"] for batch in batches]) if count > 1 else batches[0]["codes"]
    np.testing.assert_array_equal(placed, rows)
    # What a process of several does with its share of the rows.
    np.testing.assert_array_equal(_place_rows(rows, placed.sharding, ALL_ROWS), rows)


# Training on them


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict:
    """What `tools/meshes.py` prints: 20 steps of each phase, on one device and on each mesh."""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "tests/tools/meshes.py", str(tmp_path_factory.mktemp("starts")), *SHAPES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_mesh_has_the_losses_of_one_device_and_compiles_each_step_once(trained, shape):
    for phase, result in trained[shape].items():
        assert result["compilations"] == 1
        for step, expected in zip(result["losses"], trained["one"][phase]["losses"], strict=True):
            assert step.keys() == expected.keys()
            for name in expected:
                np.testing.assert_allclose(step[name], expected[name], rtol=1e-3, atol=1e-4, err_msg=f"{phase} {name}")


def test_frozen_means_frozen_on_every_mesh(trained):
    for result in trained.values():
        assert result["frozen"]["lam_is_unchanged"]
        assert "lam_opt" not in result["frozen"]["parts"]
        assert not result["discover"]["lam_is_unchanged"]
