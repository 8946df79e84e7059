"""One training step of each phase: losses, gradients, updates; jitted, compiled once, state donated."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from melodjinn_jax.codecs import Codec
from melodjinn_jax.config import Config
from melodjinn_jax.models.action_space import collapse_repeats
from melodjinn_jax.models.bottlenecks import (
    add_noise,
    assign_codes,
    finite_scalar_quantize,
    quantize,
    reset_dead_code,
    update_codebook,
)
from melodjinn_jax.models.dynamics import DynamicsModel
from melodjinn_jax.models.features import block_features, to_samples
from melodjinn_jax.models.sharding import replicate
from melodjinn_jax.training.mesh import pin_state
from melodjinn_jax.training.optimizer import apply_gradients, learning_rate, update_average
from melodjinn_jax.training.practice import practice_gradient
from melodjinn_jax.training.state import Models, Phase, State, dynamics_optimizer, lam_optimizer

Batch = Mapping[str, Any]
"""waveform int16 [B, F, H] and codes uint16 [B, F, Q]; of labelled data actions uint16 [B, N - 1] and no waveform."""
Metrics = dict[str, jax.Array]


def scaled_features(models: Models, state: State, waveform: jax.Array) -> jax.Array:
    """The LAM's input of a batch: block features over their global standard deviation, [B, N, C]."""
    features = block_features(waveform, models.config.latent_actions, models.codec.sample_rate)
    return features / state["feature_scale"]


def encode_codes(models: Models, state: State, waveform: jax.Array) -> jax.Array:
    """Codes int32 [B, N - 1] of a batch of int16 waveforms [B, F, H]."""
    latents = models.lam(state["lam"]).encode(scaled_features(models, state, waveform))
    if models.config.latent_actions.bottleneck == "fsq":
        return finite_scalar_quantize(latents, models.config.latent_actions.fsq_levels)[0]
    return assign_codes(state["codebook"], latents)


def encode_keys(models: Models, state: State, waveform: jax.Array) -> jax.Array:
    """Keys int32 [B, N - 1]: codes merged by effect, repeats credited to the first."""
    keys = state["key_of_code"][encode_codes(models, state, waveform)]
    return collapse_repeats(keys, models.config.latent_actions.collapse_frames)


def bottleneck(
    models: Models, state: State, phase: Phase, latents: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array, Metrics, jax.Array | None]:
    """Latents through the bottleneck of the phase: (what comes out, its price, metrics, codes)."""
    config = models.config.latent_actions
    if phase is Phase.DISCOVER:
        noisy, divergence = add_noise(latents, key)
        return noisy, config.kl_weight * divergence, {"kl": divergence}, None
    if config.bottleneck == "fsq":
        codes, quantized = finite_scalar_quantize(latents, config.fsq_levels)
        return quantized, jnp.zeros(()), {}, codes
    codes, quantized, commitment = quantize(state["codebook"], latents)
    return quantized, config.commitment_weight * commitment, {"commitment": commitment}, codes


def splice(
    codes: jax.Array,
    actions: jax.Array,
    weights: jax.Array,
    stride: int,
    probability: float,
    mean_blocks: float,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Cut some clips into pieces and take every piece from another clip, tokens, actions and weights.

    In a predictable rhythm the past says it all and no action ever contradicts it; nor does the rhythm ever stop. In
    a spliced clip both happen, with no label needed.

    Args:
      codes: int [B, F, Q].
      actions: [B, N - 1, ...], indices or embeddings.
      weights: float32 [B, F], of each frame in the loss.
      stride: frames per block.
      probability: of being spliced, per clip.
      mean_blocks: mean length of the pieces.
      key: random key.

    Returns:
      codes, actions and weights; these are zero in the block after each cut, which nothing can predict.
    """
    B, F, _ = codes.shape
    blocks = F // stride
    key_cut, key_choice = jax.random.split(key)
    chosen = jax.random.bernoulli(key_choice, probability, (B, 1))
    cuts = jax.random.bernoulli(key_cut, 1 / mean_blocks, (B, blocks)) & chosen
    cuts = cuts.at[:, 0].set(False)
    # Batches are shuffled, so the neighbours in the batch are as good as any other clips.
    source = (jnp.arange(B)[:, None] + jnp.cumsum(cuts, axis=1)) % B
    frames = jnp.arange(F)
    taken = jnp.repeat(source, stride, axis=1), frames
    # Action i leads into block i + 1 and comes with it.
    actions = actions[source[:, 1:], jnp.arange(blocks - 1)]
    return codes[taken], actions, weights[taken] * (1.0 - jnp.repeat(cuts, stride, axis=1))


class Examples(NamedTuple):
    """What the dynamics model learns from, after action dropout, splice and masking."""

    codes: jax.Array
    """int32 [B, F, Q]."""
    actions: jax.Array
    """Keys int32 [B, N - 1], or the embeddings [B, N - 1, D] of continuous actions."""
    hidden: jax.Array
    """bool [B, F], frames that are no context."""
    weights: jax.Array
    """float32 [B, F], of each frame in the loss."""


def augment(models: Models, null: jax.Array | int, codes: jax.Array, actions: jax.Array, key: jax.Array) -> Examples:
    """Examples of a batch.

    Args:
      models: of the run.
      null: the null action, in the form of `actions`.
      codes: int [B, F, Q].
      actions: as in `Examples`.
      key: random key.
    """
    config, stride = models.config.dynamics, models.config.latent_actions.action_stride
    key_drop, key_splice, key_rate, key_mask = jax.random.split(key, 4)
    codes = codes.astype(jnp.int32)
    B, F, _ = codes.shape
    dropped = jax.random.bernoulli(key_drop, config.action_dropout, (B, 1) + (1,) * (actions.ndim - 2))
    actions = jnp.where(dropped, null, actions)
    mean_blocks = max(2.0, config.splice_frames / stride)
    weights = jnp.ones((B, F))
    if actions.ndim == 2:  # before the splice, which may take away the key that a hit's first samples precede
        weights *= 1.0 - precedes_event(actions, F, stride, models.num_codes)
    if config.splice_probability:  # else nothing is gathered from other clips, which lie on other devices
        codes, actions, weights = splice(
            codes, actions, weights, stride, config.splice_probability, mean_blocks, key_splice
        )
    rate = config.max_mask_rate * jax.random.uniform(key_rate, (B, 1))
    return Examples(codes, actions, jax.random.uniform(key_mask, (B, F)) < rate, weights)


def weighted_losses(model: DynamicsModel, examples: Examples) -> jax.Array:
    """Sum over frames of their weight times the mean cross entropy of their tokens, in nats."""
    logits = model(examples.codes, examples.actions, examples.hidden)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, examples.codes)
    return jnp.sum(losses.mean(axis=-1) * examples.weights)


def total_weight(examples: Examples) -> jax.Array:
    """Of all frames; 1 where none counts, as may be if every frame of a small batch of short crops precedes a key."""
    return jnp.maximum(jnp.sum(examples.weights), 1.0)


def dynamics_loss(models: Models, params: Any, codes: jax.Array, actions: jax.Array, key: jax.Array) -> jax.Array:
    """Mean cross entropy in nats per token of a batch, as `augment` changes it; actions may be embedded latents."""
    model = models.dynamics(params)
    null = model.null_action if actions.ndim == 2 else model.embed_action(jnp.asarray(model.null_action))
    examples = augment(models, null, codes, actions, key)
    return weighted_losses(model, examples) / total_weight(examples)


def dynamics_gradient(
    models: Models, params: Any, codes: jax.Array, keys: jax.Array, key: jax.Array
) -> tuple[jax.Array, Any]:
    """`dynamics_loss` of a batch and its gradient, in `runtime.accumulate` parts: the same but for rounding."""
    parts = models.config.runtime.accumulate
    if parts == 1:
        return jax.value_and_grad(lambda p: dynamics_loss(models, p, codes, keys, key))(params)
    examples = augment(models, models.num_codes, codes, keys, key)
    total = total_weight(examples)
    # Every part takes rows from all over the batch, so that it lies on all devices as the batch does.
    split = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), examples)

    def add(so_far: Any, part: Examples) -> tuple[Any, None]:
        more = jax.value_and_grad(lambda p: weighted_losses(models.dynamics(p), part) / total)(params)
        return jax.tree.map(jnp.add, so_far, more), None

    return jax.lax.scan(add, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)), split)[0]


def precedes_event(actions: jax.Array, frames: int, stride: int, null_action: int) -> jax.Array:
    """Frames just before a block into which a key leads, or may lead: bool [B, F], from keys int [B, N - 1].

    A hit at the very end of a frame is labelled in the next, so its first samples stand under NOOP. A model that
    learns to produce them there begins hits that nobody asked for: wherever the rhythm lets it expect one. Left out
    of the loss, they are never learnt, and a hit begins where its key is pressed. What follows the last frame is not
    known, so it is one of them, whatever the actions.
    """
    is_event = (actions != 0) & (actions != null_action)
    ends_block = jnp.arange(frames) % stride == stride - 1
    into_next = jnp.repeat(jnp.pad(is_event, ((0, 0), (0, 1)), constant_values=True), stride, axis=1)[:, :frames]
    return into_next & ends_block


def reconstruction_loss(decoded: jax.Array, features: jax.Array) -> jax.Array:
    """Mean squared error of predictions [B, N - 1, horizon * C] of blocks i + 1, i + 2, ... after each block i.

    Blocks beyond the clip are left out.
    """
    _, N, C = features.shape
    horizon = decoded.shape[-1] // C
    ahead = jnp.pad(features, ((0, 0), (0, horizon - 1), (0, 0)))
    target = jnp.concatenate([ahead[:, 1 + i : N + i] for i in range(horizon)], axis=-1)
    inside = jnp.arange(1, N)[:, None] + jnp.repeat(jnp.arange(horizon), C) < N
    return jnp.sum(inside * (decoded - target) ** 2) / (len(features) * jnp.sum(inside))


def lam_loss(
    models: Models, state: State, phase: Phase, params: dict[str, Any], batch: Batch, key: jax.Array
) -> tuple[jax.Array, tuple[Metrics, jax.Array, jax.Array | None]]:
    """Loss of the LAM in its regime, with (metrics, latents, codes)."""
    key_noise, key_dynamics = jax.random.split(key)
    features = scaled_features(models, state, batch["waveform"])
    lam = models.lam(params["lam"])
    latents = lam.encode(features)
    passed, price, metrics, codes = bottleneck(models, state, phase, latents, key_noise)
    if models.trains_jointly:
        loss = dynamics_loss(models, params["dynamics"], batch["codes"], lam.embed_latents(passed), key_dynamics)
        metrics["cross_entropy"] = loss
    else:
        loss = reconstruction_loss(lam.decode(features, passed), features)
        metrics["reconstruction"] = loss
    return loss + price, (metrics, latents, codes)


def update_lam(models: Models, phase: Phase, state: State, batch: Batch, key: jax.Array) -> tuple[State, Metrics]:
    """One step of the LAM (with the dynamics model where that is what trains it) and of its codebook."""
    config = models.config
    trained = {name: state[name] for name in (("lam", "dynamics") if models.trains_jointly else ("lam",))}
    key_loss, key_reset = jax.random.split(key)

    def loss_fn(params):
        return lam_loss(models, state, phase, params, batch, key_loss)

    (_, (metrics, latents, codes)), grads = jax.value_and_grad(loss_fn, has_aux=True)(trained)
    metrics["grad_norm"] = optax.global_norm(grads)
    new = dict(state)
    lam_steps = config.training.steps if config.phases.freeze == "never" else config.phases.freeze_deadline
    rate = learning_rate(config.lam_optimizer, state["step"], lam_steps)
    new["lam"], new["lam_opt"] = apply_gradients(
        lam_optimizer(config), state["lam"], state["lam_opt"], grads["lam"], rate
    )
    if models.trains_jointly:
        new.update(_step_dynamics(config, state, grads["dynamics"]))
    if phase is Phase.QUANTISE and config.latent_actions.bottleneck == "ema_vq":
        new["codebook"] = update_codebook(state["codebook"], latents, codes, config.latent_actions.ema_decay)
        if config.latent_actions.reset_dead_codes:
            new["codebook"] = reset_dead_code(new["codebook"], latents, key_reset)
    if codes is not None:
        metrics["code_usage"] = jnp.bincount(codes.ravel(), length=models.num_codes) / codes.size
    return new, metrics


def _step_dynamics(config: Config, state: State, grads: Any) -> State:
    start = state["dynamics_start"]
    count = state["step"] - start
    rate = learning_rate(config.dynamics_optimizer, count, config.training.steps - start)
    params, opt_state = apply_gradients(
        dynamics_optimizer(config), state["dynamics"], state["dynamics_opt"], grads, rate
    )
    new = {"dynamics": params, "dynamics_opt": opt_state}
    if decay := config.dynamics.ema_decay:
        new["dynamics_ema"] = update_average(state["dynamics_ema"], params, decay, count)
    return new


def update_dynamics(
    models: Models, state: State, batch: Batch, key: jax.Array, practice: tuple[jax.Array, Codec] | None = None
) -> tuple[State, Metrics]:
    """One step of the dynamics model under the labels or the LAM's keys, through which no gradient flows.

    With `practice`, a random key and the run's codec, it also learns from its own presses.
    """
    config = models.config
    keys = batch["actions"].astype(jnp.int32) if "actions" in batch else encode_keys(models, state, batch["waveform"])
    are_given = _progress(config, state) >= config.dynamics.actions_from
    given = jnp.where(are_given, keys, models.num_codes) if config.dynamics.actions_from else keys
    loss, grads = dynamics_gradient(models, state["dynamics"], batch["codes"], given, key)
    metrics = {"cross_entropy": loss, "noop_share": jnp.mean(keys == 0)}
    if practice:
        # At strength 1, as music is learnt, nothing of this table is used.
        grads["embed_press"], metrics["practice_recovery"] = practise(models, state, batch["codes"], keys, *practice)
    metrics["dynamics_grad_norm"] = optax.global_norm(grads)
    new = _step_dynamics(config, state, grads)
    if config.dynamics.actions_from:
        for name in {"dynamics", "dynamics_ema"} & new.keys():
            new[name] = _null_unless(are_given, new[name], models.num_codes)
    return {**state, **new}, metrics


def _progress(config: Config, state: State) -> jax.Array:
    """Share of the dynamics model's steps that are done."""
    start = state["dynamics_start"]
    return (state["step"] - start) / jnp.maximum(config.training.steps - start, 1)


def _null_unless(are_given: jax.Array, params: Any, null_action: int) -> Any:
    """Parameters of which all actions are the null action until actions are given, so that they begin as it is then."""
    table = params["embed_action"]["embedding"]
    return {**params, "embed_action": {"embedding": jnp.where(are_given, table, table[null_action])}}


def practise(
    models: Models, state: State, codes: jax.Array, keys: jax.Array, key: jax.Array, codec: Codec
) -> tuple[Any, jax.Array]:
    """`practice_gradient` of a batch and the share of presses that were heard; both 0 before the practice begins."""
    config, params = models.config, state["dynamics"]

    def listen(played: jax.Array) -> jax.Array:
        _, sound = codec.decode_chunk(codec.initial_state(len(played)), played)
        return encode_keys(models, state, to_samples(sound).reshape(*played.shape[:2], -1))

    def begun() -> tuple[Any, jax.Array]:
        return practice_gradient(models, params, codes, keys, state["key_of_code"].max(), listen, key)

    def not_yet() -> tuple[Any, jax.Array]:
        return jax.tree.map(jnp.zeros_like, params["embed_press"]), jnp.zeros(())

    return jax.lax.cond(_progress(config, state) >= config.dynamics.practice_from, begun, not_yet)


def make_train_step(
    models: Models, phase: Phase, steps: int = 1, codec: Codec | None = None
) -> Callable[[State, Batch], tuple[State, Metrics]]:
    """The jitted step of a phase. Its state is donated; what is frozen has no gradient and no optimiser state.

    Args:
      models: of the run.
      phase: of the run.
      steps: to take in one dispatch. If more than one, the batch has them as its first axis, [steps, B, ...], and the
        metrics are those of the last.
      codec: of the run; only a dynamics model that practises needs it.

    Raises:
      ValueError: the dynamics model practises, and there is no codec.
    """
    if phase is not Phase.FROZEN or models.config.dynamics.practice_rate == 0:
        codec = None
    elif codec is None:
        raise ValueError("practice needs the run's codec")
    dynamics_apart = not models.trains_jointly and (
        phase is Phase.QUANTISE and models.config.phases.dynamics_start == "quantise"
    )

    def train_step(state: State, batch: Batch) -> tuple[State, Metrics]:
        run_key = jax.random.wrap_key_data(state["rng"])
        key_lam, key_dynamics, key_practice = jax.random.split(jax.random.fold_in(run_key, state["step"]), 3)
        metrics: Metrics = {}
        new = state
        if phase is not Phase.FROZEN:
            new, metrics = update_lam(models, phase, new, batch, key_lam)
        if phase is Phase.FROZEN or dynamics_apart:
            practice = None if codec is None else (key_practice, codec)
            new, more = update_dynamics(models, new, batch, key_dynamics, practice)
            metrics |= more
        is_bad = ~jnp.isfinite(sum(value for name, value in metrics.items() if value.ndim == 0))
        first_bad = jnp.where((state["first_bad_step"] < 0) & is_bad, state["step"] + 1, state["first_bad_step"])
        metrics["first_bad_step"] = first_bad
        new = pin_state({**new, "step": state["step"] + 1, "first_bad_step": first_bad})
        return new, {name: replicate(value) for name, value in metrics.items()}

    def train_steps(state: State, batches: Batch) -> tuple[State, Metrics]:
        state, metrics = jax.lax.scan(train_step, state, batches)
        return state, {name: value[-1] for name, value in metrics.items()}

    return jax.jit(train_step if steps == 1 else train_steps, donate_argnums=0)
