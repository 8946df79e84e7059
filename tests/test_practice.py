"""Practice: what is pressed and played, what counts as heard, that it makes keys heard, and changes nothing else."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import CODEC, batch_of, random_waveform, tiny_config, tiny_models
from hypothesis import given, settings
from hypothesis import strategies as st
from live_runs import random_codec

from melodjinn_jax.codecs import FittedCodec
from melodjinn_jax.config import DataConfig, DynamicsConfig, OptimizerConfig, RuntimeConfig, TrainingConfig
from melodjinn_jax.errors import UserError
from melodjinn_jax.training.phases import PhaseMachine
from melodjinn_jax.training.practice import (
    PLAYED_BLOCKS,
    Presses,
    draw_presses,
    is_heard,
    play_presses,
    practice_gradient,
    success_weights,
)
from melodjinn_jax.training.state import Phase, commit
from melodjinn_jax.training.step import make_train_step
from melodjinn_jax.validation import check_config

ROOT = Path(__file__).resolve().parent.parent
KEYS = 3


def practising(stride: int = 1, frames: int = 6, dynamics_optimizer: OptimizerConfig | None = None, **changes):
    models = tiny_models()
    actions = dataclasses.replace(models.config.latent_actions, action_stride=stride, collapse_frames=0)
    changes = {"practice_rate": 0.1, "practice_frames": frames} | changes
    dynamics = dataclasses.replace(models.config.dynamics, **changes)
    optimizer = dynamics_optimizer or models.config.dynamics_optimizer
    return tiny_models(latent_actions=actions, dynamics=dynamics, dynamics_optimizer=optimizer)


@given(st.integers(1, 4), st.integers(2, 4), st.integers(4, 9), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=25)
def test_keys_are_pressed_after_stretches_of_the_clips_under_their_own_actions(stride, context, blocks, num_keys, seed):
    models = practising(stride, context * stride)
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (3, blocks * stride, 2))
    keys = rng.integers(0, 5, (3, blocks - 1))
    presses = draw_presses(models, jnp.asarray(codes), jnp.asarray(keys), jnp.asarray(num_keys), jax.random.key(seed))
    each = blocks // context
    assert presses.context.shape == (3 * each, context * stride, 2)
    for row in range(3 * each):
        clip, first = row // each, row % each * context
        assert np.array_equal(presses.context[row], codes[clip, first * stride : (first + context) * stride])
        assert np.array_equal(presses.actions[row, : context - 1], keys[clip, first : first + context - 1])
    assert not np.any(presses.actions[:, -1])


def test_every_key_is_pressed_about_as_often(rng):
    codes, keys = jnp.zeros((60, 24, 2), jnp.int32), jnp.zeros((60, 23), jnp.int32)
    first, second = (draw_presses(practising(), codes, keys, jnp.asarray(KEYS), jax.random.key(n)).key for n in (0, 1))
    counts = np.bincount(np.asarray(first), minlength=KEYS + 1)
    assert counts[0] == 0
    assert counts.sum() == 240
    assert counts[1:].min() > 50
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_played_follows_its_context(stride, rng):
    models = practising(stride)
    model = models.dynamics(models.init_dynamics(jax.random.key(0)))
    context = jnp.asarray(rng.integers(0, 16, (4, 6, 2)))
    presses = Presses(context, jnp.asarray(rng.integers(0, KEYS + 1, (4, 6 // stride + PLAYED_BLOCKS - 1))))
    played, again, other = (play_presses(model, presses, 1.0, jax.random.key(seed)) for seed in (1, 1, 2))
    assert played.shape == (4, 6 + PLAYED_BLOCKS * stride, 2)
    assert np.array_equal(played[:, :6], context)
    assert np.array_equal(played, again)
    assert not np.array_equal(played, other)


def test_a_press_is_heard_at_once_or_a_block_later():
    pressed = jnp.asarray([[1, 2, 0]] * 5)
    heard = jnp.asarray([[0, 2, 0], [0, 0, 2], [0, 1, 2], [2, 0, 0], [2, 0, 1]])
    assert is_heard(Presses(jnp.zeros((5, 2, 2)), pressed), heard).tolist() == [True, True, False, False, False]


@given(st.lists(st.tuples(st.integers(1, KEYS), st.booleans()), min_size=1, max_size=20))
def test_all_keys_that_were_heard_weigh_alike(presses):
    keys, succeeded = (np.array(column) for column in zip(*presses, strict=True))
    actions = jnp.asarray(np.stack([keys, np.zeros_like(keys)], axis=1))
    weights = np.asarray(success_weights(Presses(jnp.zeros((len(keys), 2, 2)), actions), jnp.asarray(succeeded), KEYS))
    assert not weights[~succeeded].any()
    had = np.unique(keys[succeeded])
    for key in had:
        assert weights[(keys == key) & succeeded].sum() == pytest.approx(1 / len(had), rel=1e-5)


@pytest.mark.parametrize(("strength", "layout"), [(1.5, "flat"), (2.0, "flat"), (2.0, "depth")])
def test_keys_that_are_practised_come_to_be_heard(strength, layout, rng):
    """A listener that hears key k in every token below 5 k but not below 5 (k - 1): each key has its own tokens."""
    models = practising(practice_strength=strength, layout=layout)
    params = models.init_dynamics(jax.random.key(0))
    # A table can only choose among what the model can say: here each token has a direction of its own.
    params["unembed"]["kernel"] = 3 * jnp.eye(*params["unembed"]["kernel"].shape)
    codes = jnp.asarray(rng.integers(0, 16, (8, 24, 2)))
    keys = jnp.zeros((8, 23), jnp.int32)

    def listen(played):
        return jnp.where(played[:, 1:, 0] < 15, 1 + played[:, 1:, 0] // 5, 0)

    optimizer = optax.adam(0.1)
    state = optimizer.init(params["embed_press"])

    @jax.jit
    def step(params, state, key):
        grads, recovery = practice_gradient(models, params, codes, keys, jnp.asarray(KEYS), listen, key)
        updates, state = optimizer.update(grads, state)
        return params | {"embed_press": optax.apply_updates(params["embed_press"], updates)}, state, recovery

    shares = []
    for seed in range(60):
        params, state, recovery = step(params, state, jax.random.key(seed))
        shares.append(float(recovery))
    assert np.mean(shares[:3]) < 0.5
    assert np.mean(shares[-5:]) > 0.9
    assert not params["embed_press"]["embedding"][0].any()


def test_what_is_not_heard_teaches_nothing(rng):
    models = practising()
    params = models.init_dynamics(jax.random.key(0))
    codes = jnp.asarray(rng.integers(0, 16, (2, 24, 2)))
    keys = jnp.asarray(rng.integers(0, 2, (2, 23)))

    def deaf(played):
        return jnp.zeros((len(played), played.shape[1] - 1), jnp.int32)

    grads, recovery = practice_gradient(models, params, codes, keys, jnp.asarray(KEYS), deaf, jax.random.key(0))
    assert float(recovery) == 0
    assert float(optax.global_norm(grads)) == 0


@pytest.fixture(scope="module")
def codec() -> FittedCodec:
    return random_codec(CODEC.codebook_size)


def frozen_state(models, rng):
    machine = PhaseMachine(models, random_waveform(rng, 8, 48))
    state, record = machine.start({}, False)
    for step in (4, 8):
        state, record = machine.advance({**state, "step": jnp.asarray(step, jnp.int32)}, record, step)
    assert record.phase is Phase.FROZEN
    # Keys to press and to hear, whatever the untrained LAM found.
    return commit({**state, "key_of_code": 1 + jnp.arange(models.num_codes, dtype=jnp.int32) % KEYS})


def batches_of(rng, models, count):
    return [batch_of(rng, models) for _ in range(count)]


def test_practice_begins_when_it_is_told_and_compiles_once(rng, codec):
    # The dynamics model has steps 8 to 11; half of them are done at step 10.
    models = practising()
    state, batches, metrics, added = frozen_state(models, rng), batches_of(rng, models, 4), [], []
    train_step = make_train_step(models, Phase.FROZEN, codec=codec)
    for batch in batches:
        with jax.transfer_guard("disallow"):
            state, values = train_step(state, jax.device_put(batch))
        metrics.append(values)
        added.append(bool(state["dynamics"]["embed_press"]["embedding"].any()))
    assert added[:2] == [False, False]
    assert any(added)
    assert [float(m["practice_recovery"]) for m in metrics[:2]] == [0, 0]
    assert all(0 <= float(m["practice_recovery"]) <= 1 for m in metrics)
    assert any(float(m["practice_recovery"]) > 0 for m in metrics[2:])
    assert train_step._cache_size() == 1


@pytest.mark.parametrize("algorithm", ["adamw", "muon"])
def test_practice_takes_nothing_from_what_music_teaches(algorithm, rng, codec):
    """From one state and under one stream of batches, all that music teaches is as it is without practice."""
    optimizer = OptimizerConfig(algorithm=algorithm)
    models = practising(practice_from=0.0, dynamics_optimizer=optimizer)
    without = practising(practice_rate=0.0, dynamics_optimizer=optimizer)
    state, plain = frozen_state(models, rng), frozen_state(without, np.random.default_rng(0))
    shared = {name: jax.tree.map(jnp.copy, state[name]) for name in ("lam", "codebook", "key_of_code", "feature_scale")}
    plain |= shared
    untouched = {name: value for name, value in state["dynamics"].items() if name != "embed_press"}
    jax.tree.map(np.testing.assert_array_equal, untouched, plain["dynamics"])
    train_step, plain_step = make_train_step(models, Phase.FROZEN, codec=codec), make_train_step(without, Phase.FROZEN)
    for batch in batches_of(rng, models, 3):
        state, _ = train_step(state, batch)
        plain, _ = plain_step(plain, batch)
    assert state["dynamics"].pop("embed_press")["embedding"].any()
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6),
        state["dynamics"],
        plain["dynamics"],
    )


def test_a_step_that_practises_needs_a_codec_and_notices_what_is_not_finite(rng, codec):
    models = practising(practice_from=0.0)
    with pytest.raises(ValueError, match="codec"):
        make_train_step(models, Phase.FROZEN)
    state = frozen_state(models, rng)
    state["dynamics"]["embed_press"] = {
        "embedding": jnp.full_like(state["dynamics"]["embed_press"]["embedding"], jnp.nan)
    }
    # With NaN for logits all sampling is alike, but whether anything is heard is left to the sound.
    state["key_of_code"] = jnp.ones_like(state["key_of_code"])
    state, metrics = make_train_step(models, Phase.FROZEN, codec=codec)(state, batches_of(rng, models, 1)[0])
    assert not np.isfinite(float(metrics["dynamics_grad_norm"]))
    assert int(state["first_bad_step"]) == int(state["step"])


def test_practice_is_the_same_in_one_dispatch_and_in_many(rng, codec):
    models = practising(practice_from=0.0)
    state, batches = frozen_state(models, rng), batches_of(rng, models, 2)
    alone = jax.tree.map(jnp.copy, state)
    for batch in batches:
        alone, _ = make_train_step(models, Phase.FROZEN, codec=codec)(alone, batch)
    rows = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    together, metrics = make_train_step(models, Phase.FROZEN, 2, codec)(state, rows)
    assert float(metrics["practice_recovery"]) > 0
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_practice_on_two_devices_is_that_on_one():
    found = []
    for devices in (1, 2):
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
        command = [sys.executable, "tests/tools/practice.py"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
        assert (found[-1]["devices"], found[-1]["compilations"]) == (devices, 1)
    one, two = found
    assert any(step["practice_recovery"] > 0 for step in one["metrics"])
    for ours, theirs in zip(two["metrics"], one["metrics"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    np.testing.assert_allclose(two["table"], one["table"], rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_press_governs_the_frames_of_its_block(stride, rng):
    """Where actions decide all, what is played for a key is what its embedding makes likeliest, and then NOOP's."""
    models = practising(stride)
    params = models.init_dynamics(jax.random.key(0))
    # All else is silenced, so that a frame's first token depends on its action alone; sharp logits leave no choice.
    for table in ("embed_token", "embed_codebook"):
        params[table]["embedding"] = jnp.zeros_like(params[table]["embedding"])
    params["transformer"]["blocks"] = jax.tree.map(jnp.zeros_like, params["transformer"]["blocks"])
    params["unembed"]["kernel"] = 300 * params["unembed"]["kernel"]
    model = models.dynamics(params)
    context = jnp.asarray(rng.integers(0, 16, (KEYS, 6, 2)))
    actions = jnp.zeros((KEYS, 6 // stride + 1), jnp.int32).at[:, -PLAYED_BLOCKS].set(jnp.arange(1, KEYS + 1))
    played = np.asarray(play_presses(model, Presses(context, actions), 1.0, jax.random.key(0)))[:, 6:]
    by_action = [
        int(model(jnp.zeros((1, 2 * stride, 2), jnp.int32), jnp.full((1, 1), a)).argmax(-1)[0, stride, 0])
        for a in range(KEYS + 1)
    ]
    assert len(set(by_action)) > 1
    for row in range(KEYS):
        assert (played[row, :stride] == by_action[row + 1]).all()
        assert (played[row, stride:] == by_action[0]).all()


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({"practice_rate": -1.0}, {}, "dynamics.practice_rate is -1.0"),
        ({"practice_strength": 1.0}, {}, "dynamics.practice_strength is 1.0: it must be above 1"),
        ({"practice_from": 1.0}, {}, "dynamics.practice_from is 1.0"),
        ({"actions_from": 0.6}, {}, "dynamics.practice_from is 0.5: there is nothing to practise before actions are"),
        ({"practice_frames": 5}, {}, "must be a multiple of latent_actions.action_stride, 2"),
        ({"practice_frames": 2}, {}, "must be a multiple of latent_actions.action_stride, 2, two or more"),
        ({"practice_frames": 48}, {}, "training.crop_frames is only 24"),
        ({}, {"actions": "auto"}, "it needs a LAM that listens"),
    ],
)
def test_practice_that_cannot_work_is_refused(changes, data, message):
    config = tiny_config(
        data=DataConfig(datasets=("music",), **data),
        latent_actions=dataclasses.replace(tiny_config().latent_actions, action_stride=2),
        dynamics=dataclasses.replace(DynamicsConfig(), **({"practice_rate": 0.1, "practice_frames": 8} | changes)),
        training=TrainingConfig(steps=12, batch_size=4, crop_frames=24),
    )
    with pytest.raises(UserError) as caught:
        check_config(config)
    assert message in str(caught.value)


def test_practice_without_keys_that_stay_or_in_parts_is_refused():
    dynamics = DynamicsConfig(practice_rate=0.1, practice_frames=8)
    config = tiny_config(data=DataConfig(datasets=("music",)), dynamics=dynamics)
    never = dataclasses.replace(config.phases, freeze="never")
    with pytest.raises(UserError, match=r"phases\.freeze is never"):
        check_config(dataclasses.replace(config, phases=never))
    with pytest.raises(UserError, match=r"runtime\.accumulate is 2: it must be 1"):
        check_config(dataclasses.replace(config, runtime=RuntimeConfig(accumulate=2)))
