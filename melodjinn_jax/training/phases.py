"""The state machine of training: discover, quantise, frozen.

Looks at a fixed, unlabelled probe set decide the switches: the codebook is read off when the continuous warm-up ends,
codes are merged into keys at every look, and the latent action model freezes when its keys are stable. Everything the
machine remembers is in the training state or in `PhaseRecord`, so that a resumed run switches at the same steps.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from melodjinn_jax.config import Config
from melodjinn_jax.models.action_space import (
    ActionSpace,
    collapse_repeats,
    digest_codebook,
)
from melodjinn_jax.models.bottlenecks import read_off_codebook, read_off_events
from melodjinn_jax.models.features import block_features, mel_features
from melodjinn_jax.models.merging import measure_effects, merge_codes
from melodjinn_jax.training.mesh import replicated, share_rows
from melodjinn_jax.training.state import Models, Phase, State, commit, initial_state, stream, with_dynamics
from melodjinn_jax.training.step import encode_codes, reconstruction_loss, scaled_features

# A key rarer than this on the probe set says nothing about stability.
MIN_USAGE = 0.003
MAX_ENTROPY_CHANGE = 0.05
MIN_IMPROVEMENT = 0.1


@dataclass(frozen=True)
class Look:
    """What one look at the probe set found."""

    step: int
    agreement: float
    """Worst key's agreement with the look before, in [0, 1]."""
    entropy: float
    """Of the keys, in bits."""
    error: float
    """Mean squared error of the reconstruction through the codebook; 0 without a decoder."""
    codes: int
    """Codes in use."""
    keys: int
    """Keys beside NOOP."""
    stable: bool
    """Whether this look and the one before agree."""


@dataclass(frozen=True)
class PhaseRecord:
    """Where the machine stands; saved with every checkpoint."""

    phase: Phase
    looks: tuple[Look, ...] = ()
    freeze_step: int | None = None
    freeze_reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "PhaseRecord":
        looks = tuple(Look(**look) for look in fields["looks"])
        return cls(**{**fields, "phase": Phase(fields["phase"]), "looks": looks})


class PhaseMachine:
    """Initial states and switches of a run."""

    def __init__(self, models: Models, probe_waveform: np.ndarray):
        """`probe_waveform`: int16 [clips, F, H], fixed for the run."""
        self.models = models
        self.config: Config = models.config
        self.probe = share_rows(probe_waveform)
        sample_rate = models.codec.sample_rate
        jit = functools.partial(jax.jit, out_shardings=replicated())  # what comes of the probe set, the host reads
        mel = np.asarray(jit(lambda w: mel_features(w, sample_rate))(self.probe))
        self._effects = measure_effects(mel, self.config.latent_actions.action_stride)
        self._encode = jit(lambda state, w: models.lam(state["lam"]).encode(scaled_features(models, state, w)))
        self._look = jit(self._look_at)

    def start(self, given: State, is_frozen: bool) -> tuple[State, PhaseRecord]:
        """State and record of step 0, on the device.

        Args:
          given: parts of a state that another run brings instead of fresh ones.
          is_frozen: whether among them is a whole, frozen action space.
        """
        features = block_features(self.probe, self.config.latent_actions, self.models.codec.sample_rate)
        state = initial_state(self.models, jnp.std(features)) | given
        record = PhaseRecord(Phase.DISCOVER)
        if is_frozen:
            record = PhaseRecord(Phase.FROZEN, freeze_step=0, freeze_reason="given")
            del state["lam_opt"]
            state = with_dynamics(self.models, state, 0)
        elif self.models.trains_jointly:
            state = with_dynamics(self.models, state, 0)
        if record.phase is Phase.DISCOVER and self.config.phases.discover_steps == 0:
            state, record = self._quantise(state, record, 0)
        return commit(state), record

    def is_due(self, record: PhaseRecord, step: int) -> bool:
        """Whether there is anything to do after `step` steps."""
        phases = self.config.phases
        if record.phase is Phase.DISCOVER:
            return step >= phases.discover_steps
        if record.phase is Phase.QUANTISE:
            return (step - phases.discover_steps) % phases.check_every == 0 or self._at_deadline(step)
        return False

    def _at_deadline(self, step: int) -> bool:
        phases = self.config.phases
        return phases.freeze != "never" and step >= phases.freeze_deadline

    def advance(self, state: State, record: PhaseRecord, step: int) -> tuple[State, PhaseRecord]:
        """What follows after `step` steps are done: the same state and record, or the next phase's."""
        if not self.is_due(record, step):
            return state, record
        state, record = (self._quantise if record.phase is Phase.DISCOVER else self._reconsider)(state, record, step)
        return commit(state), record

    def _reconsider(self, state: State, record: PhaseRecord, step: int) -> tuple[State, PhaseRecord]:
        phases = self.config.phases
        state, record = self._take_look(state, record, step)
        recent = record.looks[-phases.stable_checks :]
        stable = len(recent) == phases.stable_checks and all(look.stable for look in recent)
        if phases.freeze == "auto" and stable:
            return self._freeze(state, record, step, "stable")
        if self._at_deadline(step):
            return self._freeze(state, record, step, "step" if phases.freeze == "step" else "deadline")
        return state, record

    def action_space(self, state: State) -> ActionSpace:
        """The meaning of the actions of a state that has a codebook."""
        key_of_code = tuple(int(key) for key in np.asarray(state["key_of_code"]))
        codebook = state["codebook"]
        parts = [name for name in ("vectors", "radius") if name in codebook]
        digest = digest_codebook(*(np.asarray(codebook[name]) for name in parts))
        return ActionSpace(self.config.latent_actions.action_stride, key_of_code, digest)

    def _quantise(self, state: State, record: PhaseRecord, step: int) -> tuple[State, PhaseRecord]:
        actions, training = self.config.latent_actions, self.config.training
        if actions.codebook_init == "clusters" and actions.bottleneck == "ema_vq":
            latents = np.asarray(self._encode(state, self.probe)).reshape(-1, actions.latent_dim)
            blocks = training.crop_frames // actions.action_stride
            in_batch = training.batch_size * (blocks - 1)
            if actions.event_share:
                codebook = read_off_events(latents, actions.max_codes, actions.event_share, in_batch)
            else:
                codebook = read_off_codebook(latents, actions.max_codes, actions.cluster_radius, in_batch)
        else:
            codebook = self.models.init_codebook(stream(state["rng"], "codebook"))
        state = {**state, "codebook": codebook, "key_of_code": jnp.zeros(self.models.num_codes, jnp.int32)}
        if self.config.phases.dynamics_start == "quantise" and not self.models.trains_jointly:
            state = with_dynamics(self.models, state, step)
        return self._take_look(state, dataclasses.replace(record, phase=Phase.QUANTISE), step)

    def _look_at(self, state: State, waveform: jax.Array) -> tuple[jax.Array, jax.Array]:
        codes = encode_codes(self.models, state, waveform)
        if self.models.trains_jointly:
            return codes, jnp.zeros(())
        features = scaled_features(self.models, state, waveform)
        decoded = self.models.lam(state["lam"]).decode(features, state["codebook"]["vectors"][codes])
        return codes, reconstruction_loss(decoded, features)

    def _take_look(self, state: State, record: PhaseRecord, step: int) -> tuple[State, PhaseRecord]:
        """Merge codes into keys, compare with the look before, remember both."""
        actions = self.config.latent_actions
        networks = {name: state[name] for name in ("lam", "codebook", "feature_scale")}
        codes, error = (np.asarray(x) for x in self._look(networks, self.probe))
        noop_code = int(np.argmin(np.sum(np.asarray(state["codebook"]["vectors"]) ** 2, axis=-1)))
        key_of_code = merge_codes(codes, self._effects, self.models.num_codes, noop_code, actions)
        previous = np.asarray(state["probe_keys"]) if "probe_keys" in state else None
        if previous is not None:
            key_of_code = keep_key_names(key_of_code, codes, previous)
        keys = np.asarray(collapse_repeats(jnp.asarray(key_of_code[codes]), actions.collapse_frames))
        shares = np.bincount(keys.ravel()) / keys.size
        entropy = float(-np.sum(shares[shares > 0] * np.log2(shares[shares > 0])))
        agreement = worst_key_agreement(previous, keys) if previous is not None else 0.0
        last = record.looks[-1] if record.looks else None
        stable = (
            last is not None
            and agreement >= self.config.phases.min_agreement
            and abs(entropy - last.entropy) < MAX_ENTROPY_CHANGE
            and error >= (1 - MIN_IMPROVEMENT) * last.error
            and entropy > 0
        )
        look = Look(
            step, agreement, entropy, float(error), len(np.unique(codes)), len(np.unique(key_of_code)) - 1, bool(stable)
        )
        state = {
            **state,
            "key_of_code": jnp.asarray(key_of_code, jnp.int32),
            "probe_keys": jnp.asarray(keys, jnp.int32),
        }
        return state, dataclasses.replace(record, looks=(*record.looks, look))

    def _freeze(self, state: State, record: PhaseRecord, step: int, reason: str) -> tuple[State, PhaseRecord]:
        state = {name: value for name, value in state.items() if name not in ("lam_opt", "probe_keys")}
        key_of_code = number_keys(np.asarray(state["key_of_code"]))
        state["key_of_code"] = jnp.asarray(key_of_code, jnp.int32)
        if "dynamics_opt" not in state:
            state = with_dynamics(self.models, state, step)
        elif self.models.trains_jointly:
            for name in {"dynamics", "dynamics_ema"} & state.keys():
                state[name] = embed_keys(self.models, state, state[name])
        record = dataclasses.replace(record, phase=Phase.FROZEN, freeze_step=step, freeze_reason=reason)
        return state, record


def worst_key_agreement(previous: np.ndarray, keys: np.ndarray) -> float:
    """Agreement of the worst key between two labellings of the same clips, in both directions.

    The plain agreement is dominated by NOOP, so that a drum may change its key unnoticed.
    """
    worst = 1.0
    for first, second in ((previous, keys), (keys, previous)):
        for key in np.unique(first):
            chosen = first == key
            if chosen.mean() >= MIN_USAGE:
                worst = min(worst, float((second[chosen] == key).mean()))
    return worst


def keep_key_names(key_of_code: np.ndarray, codes: np.ndarray, previous_keys: np.ndarray) -> np.ndarray:
    """Renumber a fresh merge so that each key keeps the number it had where the two overlap most."""
    keys = key_of_code[codes]
    size = max(int(key_of_code.max()), int(previous_keys.max())) + 1
    overlap = np.zeros((size, size))
    np.add.at(overlap, (keys.ravel(), previous_keys.ravel()), 1)
    new, old = linear_sum_assignment(-overlap[1:, 1:])
    renamed = np.arange(size)
    renamed[new + 1] = old + 1
    return renamed[key_of_code]


def number_keys(key_of_code: np.ndarray) -> np.ndarray:
    """The same keys without gaps in their numbers."""
    names = np.unique(np.concatenate([[0], key_of_code]))
    return np.searchsorted(names, key_of_code)


def embed_keys(models: Models, state: State, params: Any) -> Any:
    """Parameters of the dynamics model with an embedding for each key, from the codes it was trained under.

    Where the LAM learns from the dynamics model, that model has seen embedded latents and no keys. A key's embedding
    is that of its codes' mean, weighted by use.
    """
    key_of_code = np.asarray(state["key_of_code"])
    weights = np.maximum(np.asarray(state["codebook"]["counts"]), 1e-6)
    vectors = np.asarray(state["codebook"]["vectors"])
    means = np.stack(
        [
            np.average(vectors[key_of_code == key], axis=0, weights=weights[key_of_code == key])
            for key in range(key_of_code.max() + 1)
        ]
    )
    embedded = models.lam(state["lam"]).embed_latents(jnp.asarray(means))
    table = params["embed_action"]["embedding"]
    table = table.at[: len(means)].set(embedded)
    return {**params, "embed_action": {"embedding": table}}
