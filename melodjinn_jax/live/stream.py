"""The streaming generator: independent streams in one batch, a frame at a time, from state to state.

One program, compiled once and with donated state, takes every stream of the batch one frame on: its codes, sampled or
given, and their sound. A stream sits in a slot; no stream's result depends on what the other slots do. S is the number
of slots; the other letters are those of the models.

On a CPU a frame of a small model takes less time than its surroundings, so these are kept small: its noise is drawn
ahead, and what the host tells it is one array.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from melodjinn_jax.codecs import Codec
from melodjinn_jax.live.generator import frame_noise, play_frame
from melodjinn_jax.live.session import Instrument, Sampling, model_digest
from melodjinn_jax.models.dynamics import DynamicsModel, DynamicsState
from melodjinn_jax.models.features import to_samples
from melodjinn_jax.models.transformer import Transformer
from melodjinn_jax.training.run import Run

MAX_PRIMING_FRAMES = 1024
"""Most past frames that a stream is primed with; deep models see further, and what is lost is faint."""

NOISE_FRAMES = 16
"""Frames of a stream whose noise is drawn at once."""


@dataclass(frozen=True)
class NextFrame:
    """What a stream's next frame is to be."""

    frame: int
    """Its number."""
    action: int
    """A key, or anything beyond the keys for the null action."""
    sampling: Sampling
    given: np.ndarray | None = None
    """Codes [Q] to take instead of sampling."""
    sounds: bool = True
    """False while the decoder waits: the frames that it was started with."""


class Streamer(ABC):
    """Streams in slots, whatever makes their frames. Not thread-safe: one thread calls `start` and `step`."""

    instrument: Instrument
    slots: int
    priming_frames: int
    """Past frames that must be given to a stream before it goes on as if it had played them."""
    start_frames: int
    """Frames that `start` wants to know at once."""

    @abstractmethod
    def start(self, slot: int, first_frame: int, codes: np.ndarray) -> None:
        """Begin a stream in a slot before the frame `first_frame`, whose codes [start_frames, Q] are the first."""

    @abstractmethod
    def step(self, frames: Sequence[NextFrame | None]) -> tuple[np.ndarray, np.ndarray]:
        """One frame of every stream that has one: codes int32 [S, Q] and sound int16 [S, H]. The others keep still."""

    @abstractmethod
    def render(self, codes: np.ndarray) -> np.ndarray:
        """The sound float32 [F * H] of a stream's codes [F, Q], from a fresh decoder; thread-safe."""

    @abstractmethod
    def made_with(self, slot: int) -> dict[str, Any]:
        """What sampling anew must share to be bit-exact."""


def instrument_of(run: Run) -> Instrument:
    """The instrument that a run has trained."""
    return Instrument(
        name=run.config.name,
        model=model_digest(run.state["dynamics"]),
        codec=run.codec.digest,
        action_space=run.action_space.digest,
        sample_rate=run.codec.sample_rate,
        hop_length=run.codec.hop_length,
        num_codebooks=run.codec.num_codebooks,
        codebook_size=run.codec.codebook_size,
        action_stride=run.action_space.stride,
        num_keys=run.action_space.num_keys,
    )


def render_codes(codec: Codec, codes: np.ndarray) -> np.ndarray:
    """The sound float32 [F * H] of codes [F, Q]; the same bytes wherever the same codec runs on the same device."""
    frames = len(codes)
    padded = np.pad(codes.astype(np.int32), ((0, -frames % codec.chunk_frames), (0, 0)))
    return np.asarray(codec.decode(padded[None]))[0, : frames * codec.hop_length]


class _Streams(NamedTuple):
    """The state of all slots."""

    dynamics: DynamicsState
    """Of one stream each, [S, 1, ...]."""
    decoder: Any
    """[S, ...]."""


# What the step is told of each slot, int32 [S, 8 + Q]: these columns, the two reals by their bits, then codes given.
_PLAYS, _SOUNDS, _GIVEN, _ACTION, _NOISE, _TOP_K, _TEMPERATURE, _STRENGTH, _CODES = range(9)


def dispatch_in_place() -> None:
    """Make a CPU run programs in the thread that calls them; to be called before anything else uses JAX.

    A frame is waited for before the next is begun: to hand it to another thread would gain nothing, and cost a third
    of a small model's time.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


class StreamingGenerator(Streamer):
    """A trained run's dynamics model and codec, playing `slots` streams."""

    def __init__(self, run: Run, slots: int):
        self.instrument, self.slots = instrument_of(run), slots
        self._codec = run.codec
        model = run.models.dynamics(run.state["dynamics"])
        layers = model.layers()
        _drop_stacked_blocks(model)
        self._null_action = model.null_action
        # Products take their operands in the compute type: cast once, not for every frame. Norms and sinks stay.
        cast = lambda leaf: leaf.astype(run.models.compute.dtype) if leaf.ndim > 1 else leaf  # noqa: E731
        leaves, self._structure = jax.tree.flatten(jax.tree.map(cast, (model, layers)))
        self._weights = jax.device_put(leaves)
        depth = run.config.dynamics.window * run.config.dynamics.num_layers
        stride = self.instrument.action_stride
        self.start_frames = run.codec.start_frames
        wanted = max(min(depth, MAX_PRIMING_FRAMES), self.start_frames)
        self.priming_frames = wanted + -wanted % stride
        self._fresh = jax.tree.map(np.asarray, model.init_state(1))
        self._streams = self._silent_streams()
        size = self.instrument.codebook_size
        self._noise = jnp.zeros((slots, NOISE_FRAMES, self.instrument.num_codebooks, 1, size))
        # The seed and the first frame of the noise that lies in each slot.
        self._noise_of: list[tuple[int, int] | None] = [None] * slots
        self._advance = jax.jit(self._frame, static_argnames="ranked", donate_argnames="streams")
        self._place = jax.jit(_place, donate_argnames="streams")
        self._draw = jax.jit(_draw, donate_argnames="noise")
        self._warm_up()

    def _silent_streams(self) -> _Streams:
        dynamics = jax.tree.map(lambda leaf: jnp.tile(leaf, (self.slots,) + (1,) * leaf.ndim), self._fresh)
        # A codec's fresh state may hold one array in several places; what is donated must be its own.
        decoder = jax.tree.map(jnp.copy, self._codec.initial_state(self.slots).decoder)
        return _Streams(dynamics, decoder)

    def _warm_up(self) -> None:
        """Compile all that playing needs."""
        self.start(0, 0, np.zeros((self.start_frames, self.instrument.num_codebooks), np.int32))
        for top_k in (0, 1):
            self.step([NextFrame(0, 0, Sampling(top_k=top_k))] + [None] * (self.slots - 1))

    def _frame(
        self, weights: list[jax.Array], streams: _Streams, noise: jax.Array, told: jax.Array, *, ranked: bool
    ) -> tuple[_Streams, jax.Array, jax.Array]:
        """All streams one frame on, each with its noise and as it is told; see the columns above.

        `ranked` if any stream samples from its likeliest tokens only, which costs all of them the ranking.
        """
        model, layers = jax.tree.unflatten(self._structure, weights)

        def one(state: DynamicsState, noise: jax.Array, told: jax.Array) -> tuple[DynamicsState, jax.Array]:
            temperature, strength = jax.lax.bitcast_convert_type(told[_TEMPERATURE:_CODES], jnp.float32)
            noise = jax.lax.dynamic_index_in_dim(noise, told[_NOISE], keepdims=False)
            action = model.action_embedding(told[_ACTION][None], strength[None])
            top_k = told[_TOP_K] if ranked else 0
            given, is_given = told[None, _CODES:], told[_GIVEN][None] > 0
            state, codes = play_frame(model, layers, state, action, given, is_given, noise, temperature, top_k)
            return state, codes[0]

        dynamics, codes = jax.vmap(one)(streams.dynamics, noise, told)
        if self.slots > 1:  # the only stream is not stepped unless it plays
            dynamics = _where(told[:, _PLAYS] > 0, dynamics, streams.dynamics)
        state = self._codec.initial_state(self.slots)._replace(decoder=streams.decoder)
        state, sound = self._codec.decode_chunk(state, codes[:, None])
        decoder = _where(told[:, _SOUNDS] > 0, state.decoder, streams.decoder)
        pcm = to_samples(sound)
        return _Streams(dynamics, decoder), codes, pcm

    def start(self, slot: int, first_frame: int, codes: np.ndarray) -> None:
        state = self._codec.initial_state(1)
        state, _ = self._codec.decode_chunk(state, jnp.asarray(codes[None], jnp.int32))
        # Positions stay those of the stream, so that a primed stream computes what it computed before.
        fresh = self._fresh._replace(position=np.int32(first_frame))
        self._streams = self._place(self._streams, slot, fresh, state.decoder)

    def step(self, frames: Sequence[NextFrame | None]) -> tuple[np.ndarray, np.ndarray]:
        told = np.zeros((self.slots, _CODES + self.instrument.num_codebooks), np.int32)
        reals = told[:, _TEMPERATURE:_CODES].view(np.float32)
        ranked = False
        for slot, frame in enumerate(frames):
            if frame is None:
                continue
            given = frame.given
            told[slot, :_NOISE] = 1, frame.sounds, given is not None, min(frame.action, self._null_action)
            reals[slot] = frame.sampling.temperature, frame.sampling.strength
            if given is not None:
                told[slot, _CODES:] = given
                continue
            told[slot, _NOISE:_TEMPERATURE] = self._find_noise(slot, frame), frame.sampling.top_k
            ranked |= frame.sampling.top_k > 0
        self._streams, codes, pcm = self._advance(self._weights, self._streams, self._noise, told, ranked=ranked)
        return np.asarray(codes), np.asarray(pcm)

    def _find_noise(self, slot: int, frame: NextFrame) -> int:
        """Where among a slot's noise that of a frame lies; drawn now if it does not."""
        # Slots draw at different frames, or streams that began together would all be late together.
        index = (frame.frame + slot) % NOISE_FRAMES
        wanted = frame.sampling.seed, frame.frame - index
        if self._noise_of[slot] != wanted:
            self._noise = self._draw(self._noise, slot, np.uint32(wanted[0]), wanted[1])
            self._noise_of[slot] = wanted
        return index

    def render(self, codes: np.ndarray) -> np.ndarray:
        return render_codes(self._codec, codes)

    def made_with(self, slot: int) -> dict[str, Any]:
        return {
            "engine": "jax",
            "device": jax.devices()[0].device_kind,
            "versions": {name: version(name) for name in ("jax", "jaxlib", "melodjinn-jax")},
            "batch": self.slots,
            "slot": slot,
        }


def _drop_stacked_blocks(model: DynamicsModel) -> None:
    """Leave out of a model what its `layers()` hold already."""
    for transformer in vars(model).values():
        if isinstance(transformer, Transformer):
            del transformer.blocks


def _draw(noise: jax.Array, slot: jax.Array, seed: jax.Array, first_frame: jax.Array) -> jax.Array:
    """The noise [S, NOISE_FRAMES, Q, 1, K] of all slots, that of one drawn anew."""
    frames = first_frame + jnp.arange(NOISE_FRAMES)
    _, _, num_codebooks, *shape = noise.shape
    drawn = jax.vmap(lambda frame: frame_noise(jax.random.key(seed), frame, num_codebooks, tuple(shape)))(frames)
    return noise.at[slot].set(drawn)


def _where(chosen_S: jax.Array, new: Any, old: Any) -> Any:
    """`new` of the chosen slots and `old` of the others, leaf by leaf."""
    return jax.tree.map(lambda n, o: jnp.where(chosen_S.reshape(-1, *(1,) * (n.ndim - 1)), n, o), new, old)


def _place(streams: _Streams, slot: jax.Array, dynamics: DynamicsState, decoder: Any) -> _Streams:
    """The streams with one slot replaced: its dynamics [1, ...], not yet stacked, and its decoder [1, ...]."""
    return _Streams(
        jax.tree.map(lambda all_, one: all_.at[slot].set(one), streams.dynamics, dynamics),
        jax.tree.map(lambda all_, one: all_.at[slot].set(one[0]), streams.decoder, decoder),
    )
