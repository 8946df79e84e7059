"""The training state: a dict of arrays whose shape depends on the phase, and the models it belongs to."""

import enum
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from melodjinn_jax.config import Config
from melodjinn_jax.models.bottlenecks import Codebook, empty_codebook, fsq_vectors, random_codebook
from melodjinn_jax.models.dynamics import DynamicsModel, make_dynamics
from melodjinn_jax.models.features import num_channels
from melodjinn_jax.models.latent_action import LatentActionModel
from melodjinn_jax.models.transformer import Compute
from melodjinn_jax.training.mesh import pin_state, scope_shardings
from melodjinn_jax.training.optimizer import make_optimizer

State = dict[str, Any]
"""Arrays by name; see `Phase` for which are there."""


class Phase(enum.StrEnum):
    """Where a run stands. The state holds, beside `step` (steps done), `rng`, `feature_scale` and `first_bad_step`:

    discover: `lam`, `lam_opt`;
    quantise: also `codebook`, `key_of_code`, `probe_keys` (keys at the last look);
    frozen: `lam`, `codebook`, `key_of_code`, and no optimiser state of the LAM.

    `dynamics`, `dynamics_opt` and `dynamics_start` (the step it began at) are there once the dynamics model trains.
    `dynamics_ema`, the moving average of `dynamics`, is there too if `dynamics.ema_decay` asks for it.
    A run on labels is frozen from the start and holds, of all these, only those of the dynamics model.
    """

    DISCOVER = "discover"
    QUANTISE = "quantise"
    FROZEN = "frozen"


@dataclass(frozen=True)
class CodecShape:
    """What the models need to know of the codec."""

    sample_rate: int
    hop_length: int
    num_codebooks: int
    codebook_size: int


@dataclass(frozen=True)
class Models:
    """The networks of a run, without their parameters."""

    config: Config
    codec: CodecShape

    @property
    def compute(self) -> Compute:
        runtime = self.config.runtime
        return Compute(jnp.dtype(self.config.training.dtype), runtime.remat, runtime.attention, runtime.unrolled_layers)

    @property
    def num_codes(self) -> int:
        actions = self.config.latent_actions
        return len(fsq_vectors(actions.fsq_levels)) if actions.bottleneck == "fsq" else actions.max_codes

    def _new_lam(self, rngs: nnx.Rngs) -> LatentActionModel:
        actions = self.config.latent_actions
        channels = num_channels(actions, self.codec.sample_rate, self.codec.hop_length)
        action_dim = actions.dim if actions.gradient == "reconstruction" else self.config.dynamics.dim
        return LatentActionModel(actions, channels, action_dim, self.compute, rngs)

    def _new_dynamics(self, rngs: nnx.Rngs) -> DynamicsModel:
        return make_dynamics(
            self.config.dynamics,
            num_codebooks=self.codec.num_codebooks,
            codebook_size=self.codec.codebook_size,
            num_actions=self.num_codes,
            action_stride=self.config.latent_actions.action_stride,
            compute=self.compute,
            rngs=rngs,
        )

    @cached_property
    def _lam_graph(self) -> nnx.GraphDef:
        return nnx.split(nnx.eval_shape(lambda: self._new_lam(nnx.Rngs(0))))[0]

    @cached_property
    def _dynamics_graph(self) -> nnx.GraphDef:
        return nnx.split(nnx.eval_shape(lambda: self._new_dynamics(nnx.Rngs(0))))[0]

    def lam(self, params: Any) -> LatentActionModel:
        return nnx.merge(self._lam_graph, jax.tree.map(nnx.Param, params))

    def dynamics(self, params: Any) -> DynamicsModel:
        return nnx.merge(self._dynamics_graph, jax.tree.map(nnx.Param, params))

    def init_lam(self, key: jax.Array) -> Any:
        return nnx.to_pure_dict(nnx.split(self._new_lam(nnx.Rngs(key)))[1])

    def init_dynamics(self, key: jax.Array) -> Any:
        return nnx.to_pure_dict(nnx.split(self._new_dynamics(nnx.Rngs(key)))[1])

    def init_codebook(self, key: jax.Array) -> Codebook:
        """The codebook of a run that starts without a continuous warm-up, or that FSQ fixes."""
        actions = self.config.latent_actions
        if actions.bottleneck == "fsq":
            codebook = empty_codebook(self.num_codes, len(actions.fsq_levels))
            return {**codebook, "vectors": jnp.asarray(fsq_vectors(actions.fsq_levels))}
        codebook = random_codebook(key, actions.max_codes, actions.latent_dim)
        return codebook | {"radius": jnp.zeros(())} if actions.event_share else codebook

    @property
    def probe_frames(self) -> int:
        """Frames of a clip of the probe set: whole clips of the drum world, crops of recordings."""
        return self.config.training.crop_frames if self.config.data.datasets else self.config.data.clip_frames

    @property
    def trains_jointly(self) -> bool:
        """Whether the LAM learns from the dynamics model's loss, so that both train from the first step."""
        return self.config.latent_actions.gradient == "dynamics"


def initial_state(models: Models, feature_scale: jax.Array) -> State:
    """The state of step 0, before any codebook or dynamics model."""
    rng = seed_data(models.config.seed)
    return {
        "step": jnp.int32(0),
        "rng": rng,
        "feature_scale": feature_scale,
        "first_bad_step": jnp.int32(-1),
        **_trainable("lam", _new_parameters("lam", models.init_lam, stream(rng, "lam")), lam_optimizer(models.config)),
    }


def _new_parameters(name: str, init: Callable[[jax.Array], Any], key: jax.Array) -> Any:
    """Fresh parameters, which no device ever holds whole where the mesh shares them out."""
    return jax.jit(lambda key: pin_state({name: init(key)}))(key)[name]


def lam_optimizer(config: Config) -> optax.GradientTransformation:
    return make_optimizer(config.lam_optimizer)


def dynamics_optimizer(config: Config) -> optax.GradientTransformation:
    return make_optimizer(config.dynamics_optimizer, config.dynamics.practice_rate)


def _trainable(name: str, params: Any, optimizer: optax.GradientTransformation) -> State:
    """Parameters, and a fresh optimiser state that lies as they do."""
    return {name: params, **jax.jit(lambda params: pin_state({f"{name}_opt": optimizer.init(params)}))(params)}


def with_dynamics(models: Models, state: State, step: int) -> State:
    """The state with a dynamics model that starts to train at `step`; fresh, unless it has one already."""
    key = stream(state["rng"], "dynamics")
    params = state.get("dynamics") or _new_parameters("dynamics", models.init_dynamics, key)
    network = _trainable("dynamics", params, dynamics_optimizer(models.config))
    # A copy, for a step gives all its buffers away, each of them once.
    average = {"dynamics_ema": jax.tree.map(jnp.copy, params)} if models.config.dynamics.ema_decay else {}
    return {**state, **network, **average, "dynamics_start": jnp.int32(step)}


def commit(state: State) -> State:
    """The state with every array bound to its devices, as a loaded one is: else the step would compile for both."""
    return jax.device_put(state, scope_shardings(state))


def abstract_state(models: Models, parts: list[str]) -> State:
    """Shapes of the named parts of a state, and where they lie on the mesh in scope, for loading them."""
    actions = models.config.latent_actions

    def build() -> State:
        state = with_dynamics(models, initial_state(models, jnp.float32(0)), 0)
        state["codebook"] = models.init_codebook(state["rng"])
        state["key_of_code"] = jnp.zeros(models.num_codes, jnp.int32)
        transitions = models.probe_frames // actions.action_stride - 1
        state["probe_keys"] = jnp.zeros((models.config.phases.probe_clips, transitions), jnp.int32)
        return state

    whole = jax.eval_shape(build)
    chosen = {name: whole[name] for name in parts}
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), chosen, scope_shardings(chosen)
    )


def stream(rng: jax.Array, name: str) -> jax.Array:
    """A random key for one purpose, derived from the data of the run's key."""
    return jax.random.fold_in(jax.random.wrap_key_data(rng), zlib.crc32(name.encode()))


def seed_data(seed: int) -> jax.Array:
    """Data uint32 [2] of the run's random key.

    A typed key in the state would make every other step compile anew on a mesh: it comes back from a jitted step under
    another, if equal, description of where it lies (JAX 0.10).
    """
    return jax.random.key_data(jax.random.key(seed))


def count_parameters(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
