"""The dynamics model: the one alignment rule, causality, the window, and cached generation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CODEC, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from melodjinn_jax.config import DynamicsConfig, LatentActionConfig
from melodjinn_jax.live import generator
from melodjinn_jax.live.generator import generate, sample
from melodjinn_jax.models.dynamics import align_actions, strengthen
from melodjinn_jax.training.state import Models
from melodjinn_jax.training.step import augment, dynamics_loss, precedes_event, splice

FRAMES = 24
LAYOUTS = pytest.mark.parametrize("layout", ["flat", "depth"])
ACTION_BLOCKS = pytest.mark.parametrize("action_block", [0, 1])


def make(layout: str = "flat", stride: int = 1, window: int = 6, **more: float) -> Models:
    actions = LatentActionConfig(dim=16, num_heads=2, latent_dim=4, window=6, max_codes=8, action_stride=stride)
    dynamics = DynamicsConfig(layout, dim=16, num_heads=2, num_layers=2, window=window, depth_dim=24, depth_layers=1)
    dynamics = dataclasses.replace(dynamics, **more)
    return Models(tiny_config(latent_actions=actions, dynamics=dynamics), CODEC)


def logits_of(models, params, codes, actions):
    return np.asarray(jax.jit(lambda p, c, a: models.dynamics(p)(c, a))(params, codes, actions))


@pytest.fixture
def inputs(rng):
    codes = rng.integers(0, CODEC.codebook_size, (2, FRAMES, CODEC.num_codebooks))
    return codes, rng


@LAYOUTS
@ACTION_BLOCKS
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_an_action_changes_its_own_block_and_nothing_before_it(inputs, layout, stride, action_block):
    codes, rng = inputs
    models = make(layout, stride, window=FRAMES, action_block=action_block)
    params = models.init_dynamics(jax.random.key(0))
    actions = rng.integers(0, 8, (2, FRAMES // stride - 1))
    before = logits_of(models, params, codes, actions)
    for index in (0, 2, FRAMES // stride - 2):
        changed = actions.copy()
        changed[:, index] = (changed[:, index] + 1) % 8
        after = logits_of(models, params, codes, changed)
        start = (index + 1) * stride
        np.testing.assert_array_equal(before[:, :start], after[:, :start])
        # Every codebook of every frame of the block sees its action.
        assert np.all(np.abs(before - after)[:, start : start + stride].max(axis=-1) > 0)


@LAYOUTS
def test_a_token_changes_no_logit_at_or_before_it_and_reaches_every_codebook_after(inputs, layout):
    codes, rng = inputs
    models = make(layout, window=FRAMES)
    params = models.init_dynamics(jax.random.key(0))
    actions = rng.integers(0, 8, (2, FRAMES - 1))
    before = logits_of(models, params, codes, actions).reshape(2, FRAMES * 2, -1)
    for position in (0, 1, 7, 2 * FRAMES - 2):
        changed = codes.reshape(2, -1).copy()
        changed[:, position] = (changed[:, position] + 1) % CODEC.codebook_size
        after = logits_of(models, params, changed.reshape(codes.shape), actions).reshape(2, FRAMES * 2, -1)
        np.testing.assert_array_equal(before[:, : position + 1], after[:, : position + 1])
        assert np.all(np.abs(before - after)[:, position + 1 :].max(axis=-1) > 0)


@LAYOUTS
def test_a_hidden_frame_is_no_context_and_is_still_predicted(inputs, layout):
    codes, rng = inputs
    models = make(layout, window=FRAMES)
    params = models.init_dynamics(jax.random.key(0))
    actions = rng.integers(0, 8, (2, FRAMES - 1))
    hidden = np.zeros((2, FRAMES), bool)
    hidden[:, 5] = True
    changed = codes.copy()
    changed[:, 5] = (changed[:, 5] + 1) % CODEC.codebook_size
    predict = jax.jit(lambda c, h: models.dynamics(params)(c, actions, h))
    np.testing.assert_array_equal(predict(codes, hidden), predict(changed, hidden))
    seen = np.asarray(predict(codes, np.zeros_like(hidden)))
    np.testing.assert_array_equal(seen, logits_of(models, params, codes, actions))
    assert np.all(np.any(seen != predict(codes, hidden), axis=-1)[:, 6:])


@LAYOUTS
def test_the_window_bounds_what_is_seen(inputs, layout):
    codes, rng = inputs
    models = make(layout, window=3)
    params = models.init_dynamics(jax.random.key(0))
    actions = rng.integers(0, 8, (2, FRAMES - 1))
    changed = codes.copy()
    changed[:, 0] = (changed[:, 0] + 1) % CODEC.codebook_size
    before, after = (logits_of(models, params, c, actions) for c in (codes, changed))
    tokens_seen = 2 * (3 * 2 - 1) + 1
    beyond = 2 + tokens_seen
    np.testing.assert_array_equal(before.reshape(2, -1, 16)[:, beyond:], after.reshape(2, -1, 16)[:, beyond:])


@LAYOUTS
@ACTION_BLOCKS
def test_what_comes_before_the_block_of_the_actions_is_blind_to_them(inputs, layout, action_block):
    codes, _ = inputs
    models = make(layout, action_block=action_block)
    model = models.dynamics(models.init_dynamics(jax.random.key(0)))
    here, there = (model.embed_action(jnp.full((2, FRAMES), action)) for action in (1, 2))
    caches = [model.state_after(model.layers(), jnp.asarray(codes), actions).cache for actions in (here, there)]
    same = [np.array_equal(*both) for both in zip(caches[0].keys, caches[1].keys, strict=True)]
    assert same == [action_block == 1, False]


@LAYOUTS
@ACTION_BLOCKS
@pytest.mark.parametrize("stride", [1, 4])
def test_cached_generation_equals_the_uncached_model_over_several_windows(inputs, layout, stride, action_block):
    codes, rng = inputs
    models = make(layout, stride, window=5, action_block=action_block)
    params = models.init_dynamics(jax.random.key(3))
    actions = rng.integers(0, 8, (2, FRAMES // stride - 1))
    played = generate(models, params, codes, 2, actions)
    logits = logits_of(models, params, played, actions)
    np.testing.assert_array_equal(played[:, :2], codes[:, :2])
    np.testing.assert_array_equal(played[:, 2:], logits.argmax(axis=-1)[:, 2:])


@LAYOUTS
def test_a_row_is_the_same_however_rows_and_frames_are_cut(monkeypatch, rng, layout):
    models = make(layout, stride=2, window=5)
    params = models.init_dynamics(jax.random.key(3))
    codes = rng.integers(0, CODEC.codebook_size, (7, FRAMES, CODEC.num_codebooks))
    prompts, actions = rng.integers(1, FRAMES, 7), rng.integers(0, 8, (7, FRAMES // 2 - 1))
    whole = generate(models, params, codes, prompts, actions, seed=4, temperature=1.0)
    assert not np.array_equal(whole[0], whole[1])
    monkeypatch.setattr(generator, "STRETCHES", {1: 5, 3: 4})
    np.testing.assert_array_equal(whole, generate(models, params, codes, prompts, actions, seed=4, temperature=1.0))
    for row in range(7):
        own = [x[row : row + 1] for x in (codes, prompts, actions)]
        np.testing.assert_array_equal(whole[[row]], generate(models, params, *own, seed=4 + row, temperature=1.0))


@LAYOUTS
@ACTION_BLOCKS
@pytest.mark.parametrize("frames", [1, 3, 5, 12])
def test_frames_taken_in_one_pass_leave_the_state_that_playing_them_leaves(inputs, layout, frames, action_block):
    codes, rng = inputs
    models = make(layout, window=5, action_block=action_block)
    model = models.dynamics(models.init_dynamics(jax.random.key(0)))
    codes = jnp.asarray(codes[:, :frames], jnp.int32)
    actions = model.embed_action(jnp.asarray(rng.integers(0, 8, (2, frames))))
    layers, played = model.layers(), model.init_state(2)
    for frame in range(frames):
        played, _ = model.play(layers, played, actions[:, frame], lambda _, book, frame=frame: codes[:, frame, book])
    at_once = model.state_after(layers, codes, actions)
    assert jax.tree.structure(at_once) == jax.tree.structure(played)
    for one, other in zip(jax.tree.leaves(at_once), jax.tree.leaves(played), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@LAYOUTS
def test_sampling_is_reproducible_and_top_1_is_greedy(inputs, layout):
    codes, rng = inputs
    models = make(layout)
    params = models.init_dynamics(jax.random.key(0))
    actions = rng.integers(0, 8, (2, FRAMES - 1))
    first, again, other = (generate(models, params, codes, 1, actions, seed=s, temperature=1.0) for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    np.testing.assert_array_equal(first, generate(models, params, codes, 1, actions, seed=2**62, temperature=1.0))
    greedy = generate(models, params, codes, 1, actions)
    np.testing.assert_array_equal(greedy, generate(models, params, codes, 1, actions, temperature=1.0, top_k=1))


@given(st.integers(1, 8), st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_top_k_never_leaves_the_k_likeliest(top_k, seed):
    logits = jax.random.normal(jax.random.key(seed), (64, 8))
    noise = jax.random.gumbel(jax.random.key(seed + 1), logits.shape)
    drawn = np.asarray(sample(logits, noise, jnp.float32(5.0), top_k))
    rank = np.argsort(np.argsort(-np.asarray(logits), axis=-1), axis=-1)
    assert rank[np.arange(64), drawn].max() < top_k


@given(st.integers(1, 6), st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_alignment_gives_each_frame_of_a_block_the_action_into_it(stride, blocks):
    actions = jnp.arange(1, blocks)[None]
    aligned = np.asarray(align_actions(actions, jnp.asarray(99), stride))[0]
    assert aligned.tolist() == [99 if frame < stride else frame // stride for frame in range(blocks * stride)]


@given(st.integers(0, 2**31), st.sampled_from([1, 2, 4]))
@settings(max_examples=20, deadline=None)
def test_spliced_pieces_keep_their_time_and_actions_and_cuts_are_left_out(seed, stride):
    B, blocks = 4, 12
    clip_and_frame = 100 * jnp.arange(B)[:, None] + jnp.arange(blocks * stride)
    codes = jnp.broadcast_to(clip_and_frame[..., None], (B, blocks * stride, 2))
    actions = 100 * jnp.arange(B)[:, None] + jnp.arange(blocks - 1)
    given = 1.0 + clip_and_frame
    spliced, moved, weights = map(np.asarray, splice(codes, actions, given, stride, 0.7, 3.0, jax.random.key(seed)))
    np.testing.assert_array_equal(
        spliced[..., 0] % 100, np.broadcast_to(np.arange(blocks * stride), (B, blocks * stride))
    )
    by_block = spliced[:, ::stride, 0] // 100
    np.testing.assert_array_equal(np.repeat(by_block, stride, axis=1), spliced[..., 0] // 100)
    # The action into a block comes from the clip that the block comes from.
    np.testing.assert_array_equal(moved // 100, by_block[:, 1:])
    np.testing.assert_array_equal(moved % 100, np.broadcast_to(np.arange(blocks - 1), moved.shape))
    cuts = np.pad(np.diff(by_block, axis=1) != 0, ((0, 0), (1, 0)))
    # So does every weight, which says what stood there before.
    np.testing.assert_array_equal(weights, np.where(np.repeat(cuts, stride, axis=1), 0, 1 + spliced[..., 0]))
    np.testing.assert_array_equal(by_block[:, 0], np.arange(B))


@given(st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_no_hit_is_learnt_whose_key_a_splice_or_the_crop_has_cut_off(seed):
    dynamics = DynamicsConfig(dim=16, num_heads=2, splice_probability=1.0, splice_frames=2.0, action_dropout=0.0)
    models = Models(tiny_config(dynamics=dynamics), CODEC)
    B, frames = 4, 12
    keys = np.random.default_rng(seed).integers(0, 3, (B, frames - 1))
    codes = np.broadcast_to((frames * np.arange(B)[:, None] + np.arange(frames))[..., None], (B, frames, 2))
    examples = augment(models, models.num_codes, jnp.asarray(codes), jnp.asarray(keys), jax.random.key(seed))
    clip, frame = np.divmod(np.asarray(examples.codes[..., 0]), frames)
    may_begin_a_hit = np.pad(keys > 0, ((0, 0), (0, 1)), constant_values=True)[clip, frame]
    assert not np.asarray(examples.weights)[may_begin_a_hit].any()


def test_a_batch_in_which_every_frame_precedes_a_key_teaches_nothing():
    models = Models(tiny_config(dynamics=DynamicsConfig(dim=16, num_heads=2, action_dropout=0.0)), CODEC)
    params = models.init_dynamics(jax.random.key(0))
    codes, keys = jnp.zeros((2, 4, CODEC.num_codebooks), jnp.int32), jnp.ones((2, 3), jnp.int32)
    loss, grads = jax.value_and_grad(lambda p: dynamics_loss(models, p, codes, keys, jax.random.key(1)))(params)
    assert loss == 0
    assert all(not np.asarray(grad).any() for grad in jax.tree.leaves(grads))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.sampled_from([1, 2, 4]))
@settings(max_examples=50, deadline=None)
def test_the_frame_before_a_key_takes_effect_is_known(keys, stride):
    frames = (len(keys) + 1) * stride
    found = np.flatnonzero(precedes_event(jnp.asarray([keys]), frames, stride, 3)[0])
    by_frame = np.asarray(align_actions(jnp.asarray([keys]), jnp.asarray(3), stride))[0]
    expected = [f for f in range(frames - 1) if by_frame[f + 1] in (1, 2) and (f + 1) % stride == 0]
    assert found.tolist() == [*expected, frames - 1]  # a key may follow the crop


@LAYOUTS
def test_the_loss_is_blind_to_actions_when_all_are_dropped(inputs, layout):
    codes, rng = inputs
    dynamics = DynamicsConfig(layout, dim=16, num_heads=2, num_layers=1, window=6, action_dropout=1.0)
    models = Models(tiny_config(dynamics=dynamics), CODEC)
    params = models.init_dynamics(jax.random.key(0))
    losses = [
        float(dynamics_loss(models, params, codes, jnp.asarray(rng.integers(0, 8, (2, FRAMES - 1))), jax.random.key(1)))
        for _ in range(2)
    ]
    assert losses[0] == losses[1]


def practised(models, params):
    """With a table of presses off its zeros."""
    table = params["embed_press"]["embedding"]
    return params | {"embed_press": {"embedding": jax.random.normal(jax.random.key(3), table.shape)}}


@given(st.floats(0, 4))
@settings(max_examples=10, deadline=None)
def test_strengthened_parameters_embed_every_action_with_that_strength(strength):
    models = make(practice_rate=0.1)
    params = practised(models, models.init_dynamics(jax.random.key(0)))
    model, stronger = models.dynamics(params), models.dynamics(strengthen(params, models.num_codes, strength))
    actions = jnp.arange(models.num_codes + 1)
    expected = model.action_embedding(actions, jnp.full(len(actions), strength))
    np.testing.assert_allclose(stronger.embed_action(actions), expected, atol=1e-5)
    same = strengthen(params, models.num_codes, 1.0)["embed_action"]["embedding"]
    np.testing.assert_array_equal(same, params["embed_action"]["embedding"])


@given(st.floats(0, 4))
@settings(max_examples=10, deadline=None)
def test_what_is_practised_is_added_beyond_strength_one_and_in_its_measure(strength):
    models = make(practice_rate=0.1)
    fresh = models.init_dynamics(jax.random.key(0))
    params = practised(models, fresh)
    actions = jnp.arange(models.num_codes + 1)
    added, without = (
        models.dynamics(p).action_embedding(actions, jnp.full(len(actions), strength)) for p in (params, fresh)
    )
    expected = max(0.0, strength - 1) * params["embed_press"]["embedding"]
    np.testing.assert_allclose(added - without, expected, atol=1e-5)
