"""Optimisers: what Muon takes and how; the average of weights; batches in parts and blocks computed anew."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CODEC, tiny_config

from melodjinn_jax.config import Config, OptimizerConfig, RuntimeConfig
from melodjinn_jax.errors import UserError
from melodjinn_jax.training.optimizer import make_optimizer, update_average
from melodjinn_jax.training.state import Models, Phase, commit, seed_data, with_dynamics
from melodjinn_jax.training.step import dynamics_gradient, make_train_step
from melodjinn_jax.validation import check_config


def models_with(**changes) -> Models:
    return Models(tiny_config(**changes), CODEC)


@pytest.fixture(scope="module")
def params():
    return models_with().init_dynamics(jax.random.key(0))


@pytest.fixture
def batch(rng):
    codes = rng.integers(0, CODEC.codebook_size, (4, 24, CODEC.num_codebooks))
    return {"codes": codes.astype(np.uint16), "actions": rng.integers(0, 8, (4, 23)).astype(np.uint16)}


def first_update(params, algorithm):
    """The first update under gradients of one and the same random draw."""
    optimizer = make_optimizer(OptimizerConfig(algorithm=algorithm, weight_decay=0.0, clip_norm=1e9))
    keys = iter(jax.random.split(jax.random.key(1), 100))
    grads = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape), params)
    updates, state = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    return updates, state


def test_muon_makes_every_matrix_of_every_layer_orthogonal_and_queries_keys_and_values_apart(params):
    updates, _ = first_update(params, "muon")
    blocks = updates["transformer"]["blocks"]
    D = blocks["attention"]["out"]["kernel"].shape[-1]
    matrices = [blocks["attention"]["out"]["kernel"], blocks["up"]["kernel"], blocks["down"]["kernel"]]
    matrices += jnp.split(blocks["attention"]["qkv"]["kernel"], 3, axis=-1)
    for stack in matrices:
        for matrix in np.asarray(stack):
            values = np.linalg.svd(matrix, compute_uv=False) / (0.2 * np.sqrt(max(matrix.shape)))
            # Five Newton-Schulz steps bring the singular values near to one, and no nearer.
            assert 0.5 < values.min() <= values.max() < 1.3
            assert len(values) == D


def test_muon_leaves_all_else_to_adam(params):
    updates, state = first_update(params, "muon")
    by_adam, _ = first_update(params, "adamw")
    others = {name: value for name, value in updates.items() if name != "transformer"}
    for name, value in others.items():
        # Adam's first step is the sign of the gradient, with Nesterov's momentum or without.
        for ours, plain in zip(jax.tree.leaves(value), jax.tree.leaves(by_adam[name]), strict=True):
            np.testing.assert_array_equal(np.sign(ours), np.sign(plain))
            assert np.ptp(np.abs(ours)) < 1e-3
    assert {leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim > 1} <= {
        leaf.shape for leaf in jax.tree.leaves(params)
    }


def gradient(params, batch, runtime=None):
    models = models_with(**({"runtime": runtime} if runtime else {}))
    compute = jax.jit(lambda p, codes, keys: dynamics_gradient(models, p, codes, keys, jax.random.key(2)))
    return compute(params, batch["codes"], batch["actions"].astype(np.int32))


@pytest.mark.parametrize(
    "runtime",
    [
        RuntimeConfig(accumulate=2),
        RuntimeConfig(accumulate=4),
        RuntimeConfig(remat="dots"),
        RuntimeConfig(remat="full"),
        RuntimeConfig(unrolled_layers=1),
    ],
)
def test_parts_of_a_batch_and_blocks_computed_anew_change_no_gradient(params, batch, runtime):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        gradient(params, batch),
        gradient(params, batch, runtime),
    )


def test_parameters_and_moments_stay_float32_and_the_average_follows_the_weights(batch):
    config = tiny_config()
    models = models_with(
        dynamics=dataclasses.replace(config.dynamics, ema_decay=0.9),
        training=dataclasses.replace(config.training, dtype="bfloat16"),
        dynamics_optimizer=OptimizerConfig(algorithm="muon", warmup_steps=0),
    )
    state = {"step": jnp.int32(0), "rng": seed_data(0), "first_bad_step": jnp.int32(-1)}
    state = commit(with_dynamics(models, state, 0))
    train_step = make_train_step(models, Phase.FROZEN)
    average = jax.device_get(state["dynamics_ema"])
    for count in range(3):
        state, _ = train_step(state, batch)
        weights = jax.device_get(state["dynamics"])
        average = update_average(average, weights, 0.9, count)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), average, state["dynamics_ema"])
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in floats} == {jnp.dtype(jnp.float32)}
    assert train_step._cache_size() == 1


@pytest.mark.parametrize("layout", ["flat", "depth"])
def test_before_actions_are_given_nothing_depends_on_them_and_then_they_begin_as_the_null_action(batch, layout):
    dynamics = dataclasses.replace(tiny_config().dynamics, layout=layout, ema_decay=0.9, actions_from=0.5)
    # Of 8 steps from step 4 on, actions govern the last 4.
    models = models_with(dynamics=dynamics, training=dataclasses.replace(tiny_config().training, steps=12))

    def trained(actions: np.ndarray) -> list[dict]:
        state = {"step": jnp.int32(4), "rng": seed_data(0), "first_bad_step": jnp.int32(-1)}
        state, states = commit(with_dynamics(models, state, 4)), []
        for _ in range(8):
            state, _ = train_step(state, {**batch, "actions": actions})
            states.append(jax.device_get(state))
        return states

    train_step = make_train_step(models, Phase.FROZEN)
    ours, others = trained(batch["actions"]), trained((batch["actions"] + 1) % 8)
    for step, (one, other) in enumerate(zip(ours, others, strict=True)):
        tables = [one[name]["embed_action"]["embedding"] for name in ("dynamics", "dynamics_ema")]
        same = [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)]
        assert all((table == table[-1]).all() for table in tables) == (step < 4)
        assert all(same) == (step < 4)
    assert train_step._cache_size() == 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"dynamics": dataclasses.replace(tiny_config().dynamics, actions_from=1.0)}, "dynamics.actions_from is 1.0"),
        (
            {
                "dynamics": dataclasses.replace(tiny_config().dynamics, actions_from=0.5),
                "latent_actions": dataclasses.replace(tiny_config().latent_actions, gradient="dynamics"),
            },
            "dynamics.actions_from is 0.5: a LAM that learns from",
        ),
        ({"runtime": RuntimeConfig(accumulate=3)}, "runtime.accumulate is 3: it must divide training.batch_size, 16"),
        (
            {"runtime": RuntimeConfig(steps_per_dispatch=4)},
            "runtime.steps_per_dispatch is 4: it must divide runtime.log_every, 10",
        ),
        ({"runtime": RuntimeConfig(steps_per_dispatch=0)}, "runtime.steps_per_dispatch is 0"),
        ({"runtime": RuntimeConfig(unrolled_layers=-1)}, "runtime.unrolled_layers is -1"),
        ({"runtime": RuntimeConfig(attention="cudnn")}, "runtime.attention is cudnn: it needs training.dtype bfloat16"),
        (
            {
                "runtime": RuntimeConfig(attention="cudnn"),
                "training": dataclasses.replace(Config().training, dtype="bfloat16"),
                "dynamics": dataclasses.replace(Config().dynamics, dim=80, num_heads=4),
            },
            "runtime.attention is cudnn: the heads of dynamics are 20 wide",
        ),
        ({"dynamics": dataclasses.replace(Config().dynamics, ema_decay=1.0)}, "dynamics.ema_decay is 1.0"),
        (
            {"dynamics": dataclasses.replace(Config().dynamics, layout="depth", depth_dim=40)},
            "dynamics.depth_dim is 40: it must be a multiple of the width of a head, 16",
        ),
    ],
)
def test_settings_that_cannot_work_are_named(changes, complaint):
    with pytest.raises(UserError, match=complaint):
        check_config(dataclasses.replace(Config(), **changes))
