"""Numbers of speed: FLOPs agree with what XLA counts, losses add up."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from conftest import tiny_config, tiny_models
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from melodjinn_jax.config import DynamicsConfig, PhasesConfig
from melodjinn_jax.models.dynamics import make_dynamics
from melodjinn_jax.models.flops import dynamics_flops, transformer_flops
from melodjinn_jax.models.transformer import Compute
from melodjinn_jax.training import goodput
from melodjinn_jax.training.chips import CHIPS, find_chip
from melodjinn_jax.training.goodput import LOSSES, WallTime
from melodjinn_jax.training.speed import SpeedMeter, step_flops
from melodjinn_jax.training.state import Phase


@pytest.mark.parametrize("layout", ["flat", "depth"])
def test_counted_flops_are_those_that_xla_counts(layout):
    config = DynamicsConfig(layout=layout, dim=64, num_heads=4, num_layers=2, window=8, depth_dim=32)
    sizes = {"num_codebooks": 2, "codebook_size": 32, "num_actions": 4, "action_stride": 1}
    compute = Compute(jnp.dtype("float32"), "none", "xla", unrolled_layers=0)
    model = make_dynamics(config, compute=compute, rngs=nnx.Rngs(0), **sizes)
    codes, actions = jnp.zeros((1, 8, 2), jnp.int32), jnp.zeros((1, 7), jnp.int32)
    by_xla = jax.jit(model.__call__).lower(codes, actions).compile().cost_analysis()["flops"]
    # XLA counts norms and masked pairs too, which are few at this width.
    assert dynamics_flops(config, 2, 32, 8) == pytest.approx(by_xla, rel=0.1)


@given(st.integers(1, 40), st.integers(1, 60))
def test_attention_counts_the_pairs_within_the_window(window, length):
    pairs = sum(min(position + 1, window) for position in range(length))
    assert transformer_flops(2, 1, window, length) == 24 * 4 * length + 4 * 2 * pairs


def test_the_flops_of_a_step_are_those_of_what_trains():
    models = tiny_models()
    early = tiny_models(phases=PhasesConfig(4, dynamics_start="quantise", freeze_deadline=8, probe_clips=8))
    labelled = tiny_models(data=dataclasses.replace(tiny_config().data, datasets=("d",), actions="auto"))
    discover, quantise, frozen = (step_flops(models, phase) for phase in Phase)
    assert discover == quantise
    assert discover.dynamics == 0 < discover.lam
    assert step_flops(early, Phase.QUANTISE).dynamics == frozen.dynamics > 0
    assert 0 < frozen.lam < discover.lam / 3
    assert step_flops(labelled, Phase.FROZEN).lam == 0


def test_what_is_lost_and_what_is_won_make_the_whole(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(goodput, "_process_age", lambda: 10.0)
    wall_time = WallTime()
    clock[0] += 5
    wall_time.starts()
    for loss, seconds in (("compile", 4), ("data", 1), ("compile", 2)):
        with wall_time.losing(loss):
            clock[0] += seconds
    clock[0] += 8
    assert wall_time.lost == dict.fromkeys(LOSSES, 0.0) | {"start": 15.0, "compile": 6.0, "data": 1.0}
    assert wall_time.goodput() == pytest.approx(8 / 30)


def test_a_step_takes_what_is_left_after_interruptions():
    wall_time = WallTime()
    meter = SpeedMeter(tiny_models(), wall_time)
    wall_time.lost["checkpoint"] += 6.0
    speed = meter.measure(Phase.FROZEN, steps=4, seconds=8.0)
    assert speed["step_ms"] == pytest.approx(500)
    assert speed["tokens_per_second"] == pytest.approx(4 * 24 * 2 / 0.5)
    assert meter.measure(Phase.FROZEN, steps=4, seconds=8.0)["step_ms"] == pytest.approx(2000)


def test_chips_are_known_by_what_jax_calls_them():
    assert [find_chip(chip.kind + " something") for chip in CHIPS] == list(CHIPS)
    assert find_chip("cpu") is None
    assert find_chip("TPU v5 lite").name == "v5e"
    assert find_chip("TPU v5").name == "v5p"
