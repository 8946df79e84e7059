"""The small codec fitted on the data: an autoencoder around a residual vector quantiser, causal both ways.

Encoder: a windowed cosine transform of the frame and the one before it, and short-time levels that place an attack
inside the frame, through a small network to a latent. Decoder: the latents of the frame and a few before it through a
small network to cosine amplitudes on a curve that makes loud and soft alike to it, then overlap-add with a short tail
into the next frame. It is judged by what is heard through it, not by its signal-to-noise ratio: mostly free of phase.
"""

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from melodjinn_jax.codecs.base import Codec, CodecState
from melodjinn_jax.codecs.rvq import lookup, quantize

SAMPLE_RATE = 24000
HOP_LENGTH = 320
LATENT_DIM = 12
TAIL = 64  # samples of a frame's sound that overlap the next frame
CONTEXT = 5  # past frames that the decoder sees
_WIDTH = 128
_LEVELS = 16  # short-time levels per frame
NUM_FEATURES = HOP_LENGTH + 2 * _LEVELS
MAX_EXPONENT = 8.0
_SECONDS_AT_ONCE = 20

Params = dict[str, list[dict[str, jax.Array]]]
"""Layers of `encoder`, `decoder` and whatever else a design has, each with a kernel [in, out] and a bias [out]."""


def cosines(length: int, count: int) -> np.ndarray:
    """`count` orthonormal cosines of half-integer frequencies, as in the MDCT, [length, count]."""
    time = np.arange(length)[:, None] + 0.5
    return np.sqrt(2 / length) * np.cos(np.pi / length * time * (np.arange(count) + 0.5))


def _analysis_basis() -> np.ndarray:
    """[2 H, H]: a slow rise over the past frame; the newest samples, where a hit may begin, count almost in full."""
    window = np.ones(2 * HOP_LENGTH)
    window[:HOP_LENGTH] = np.sin(np.pi / 2 * (np.arange(HOP_LENGTH) + 0.5) / HOP_LENGTH) ** 2
    window[-32:] = 0.5 + 0.5 * np.cos(np.pi / 2 * (np.arange(32) + 0.5) / 32)
    return (cosines(2 * HOP_LENGTH, HOP_LENGTH) * window[:, None]).astype(np.float32)


def _synthesis_basis() -> np.ndarray:
    """[H + tail, H]: cosines that fade in while the last frame's fade out; the two fades add up to one."""
    length = HOP_LENGTH + TAIL
    fade = np.sin(np.pi / 2 * (np.arange(TAIL) + 0.5) / TAIL) ** 2
    window = np.concatenate([fade, np.ones(length - 2 * TAIL), fade[::-1]])
    return (cosines(length, HOP_LENGTH) * window[:, None]).astype(np.float32)


_ANALYSIS = _analysis_basis()
SYNTHESIS = _synthesis_basis()


def initial_params(key: jax.Array) -> Params:
    """Networks before the fit."""
    sizes = {
        "encoder": (NUM_FEATURES, _WIDTH, _WIDTH, LATENT_DIM),
        "decoder": (LATENT_DIM * (CONTEXT + 1), _WIDTH, _WIDTH, _WIDTH, HOP_LENGTH),
    }
    return initial_networks(key, sizes, first_exponents=0.3)


def initial_networks(key: jax.Array, sizes: dict[str, tuple[int, ...]], first_exponents: float) -> Params:
    """Networks with layers of these widths; what the decoder says at first is of the size `first_exponents`."""
    params: Params = {}
    for name, widths in sizes.items():
        *hidden, last = itertools.pairwise(widths)
        # Small first amplitudes: they are exponents of the sound.
        scales = [1.0] * len(hidden) + [first_exponents if name == "decoder" else 1.0]
        params[name] = []
        for (fan_in, fan_out), scale in zip([*hidden, last], scales, strict=True):
            key, layer_key = jax.random.split(key)
            kernel = scale * jax.random.normal(layer_key, (fan_in, fan_out)) / np.sqrt(fan_in)
            params[name].append({"kernel": kernel, "bias": jnp.zeros(fan_out)})
    return params


def network(layers: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    """Residual layers between a first and a last one; zero goes to zero, so that silence stays silence."""

    def apply(x: jax.Array) -> jax.Array:
        first, *middle, last = layers
        h = jax.nn.gelu(x @ first["kernel"] + first["bias"])
        for layer in middle:
            h = h + jax.nn.gelu(h @ layer["kernel"] + layer["bias"])
        return h @ last["kernel"] + last["bias"]

    return apply(x) - apply(jnp.zeros((1, x.shape[-1])))


def features(frames: jax.Array, past: jax.Array) -> jax.Array:
    """What the encoder sees, [B, F, features], of frames [B, F, H] and the ones before each; zero for silence."""
    spectrum = jnp.concatenate([past, frames], axis=-1) @ _ANALYSIS
    slope = jnp.diff(frames, axis=-1, prepend=past[..., -1:])  # the levels of what is high in pitch

    def levels(x: jax.Array) -> jax.Array:
        power = (x.reshape(*x.shape[:2], _LEVELS, -1) ** 2).mean(axis=-1)
        return jnp.log1p(30 * (jnp.sqrt(power + 1e-10) - 1e-5))

    compressed = jnp.sign(spectrum) * jnp.log1p(10 * jnp.abs(spectrum))
    return jnp.concatenate([compressed, levels(frames), levels(slope)], axis=-1)


class Sounding(NamedTuple):
    """What the decoder keeps of the past: the last latents [B, C, Z] and the tail [B, 1, T] of the last frame."""

    latents: jax.Array
    tail: jax.Array


def silent_frame(batch: int) -> jax.Array:
    """The frame [B, 1, H] before the first one."""
    return jnp.zeros((batch, 1, HOP_LENGTH))


def silent_past(batch: int, context: int = CONTEXT, latent_dim: int = LATENT_DIM) -> Sounding:
    """The state of a decoder before the first frame."""
    return Sounding(jnp.zeros((batch, context, latent_dim)), jnp.zeros((batch, 1, TAIL)))


def embed(params: Params, last: jax.Array, waveform: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The last frame, and latents [B, F, Z] of a waveform [B, F * H] that follows the frame `last` [B, 1, H]."""
    frames = waveform.reshape(waveform.shape[0], -1, HOP_LENGTH)
    past = jnp.concatenate([last, frames[:, :-1]], axis=1)
    return frames[:, -1:], network(params["encoder"], features(frames, past))


def synthesize(params: Params, past: Sounding, latents: jax.Array) -> tuple[Sounding, jax.Array]:
    """The new past, and the waveform [B, F * H] of latents [B, F, Z] that follow `past`."""
    kept, seen = with_past(past.latents, latents)
    tail, waveform = overlap_add(past.tail, amplitudes(network(params["decoder"], seen)))
    return Sounding(kept, tail), waveform


def with_past(past: jax.Array, latents: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The new past [B, C, Z], and latents [B, F, Z] each followed by the C before it, [B, F, (C + 1) * Z]."""
    context, F = past.shape[1], latents.shape[1]
    known = jnp.concatenate([past, latents], axis=1)
    seen = [known[:, context - age : context - age + F] for age in range(context + 1)]
    return known[:, F:], jnp.concatenate(seen, axis=-1)


def amplitudes(exponents: jax.Array) -> jax.Array:
    """Loud and soft alike: about linear below 1, exponential above, either sign."""
    return jnp.sinh(jnp.clip(exponents, -MAX_EXPONENT, MAX_EXPONENT)) / 10


def overlap_add(tail: jax.Array, amplitudes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The new tail [B, 1, T], and the waveform [B, F * H] of cosine amplitudes [B, F, H] after the tail before."""
    B, F, _ = amplitudes.shape
    sound = amplitudes @ SYNTHESIS.T
    tails = jnp.concatenate([tail, sound[..., HOP_LENGTH:]], axis=1)
    overlap = jnp.pad(tails[:, :-1], ((0, 0), (0, 0), (0, HOP_LENGTH - TAIL)))
    return tails[:, -1:], (sound[..., :HOP_LENGTH] + overlap).reshape(B, F * HOP_LENGTH)


class Functions(NamedTuple):
    """What a design of fitted codec computes; pure functions."""

    embed: Callable[[Params, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
    synthesize: Callable[[Params, Sounding, jax.Array], tuple[Sounding, jax.Array]]
    silent_past: Callable[[int], Sounding]


@functools.partial(jax.jit, static_argnums=0)
def _encode(
    functions: Functions, params: Params, entries: jax.Array, last: jax.Array, waveform: jax.Array
) -> tuple[jax.Array, jax.Array]:
    last, latents = functions.embed(params, last, waveform)
    return last, quantize(entries, latents)[1]


@functools.partial(jax.jit, static_argnums=0)
def _decode(
    functions: Functions, params: Params, entries: jax.Array, gain: jax.Array, past: Sounding, codes: jax.Array
) -> tuple[Sounding, jax.Array]:
    past, waveform = functions.synthesize(params, past, lookup(entries, codes))
    return past, gain * waveform


class FittedCodec(Codec):
    """The codec that `fit_codec` makes: its networks, its codebooks [Q, K, Z] and an output gain.

    This is the design for drums; another design is a subclass with functions of its own. Silence has the code 0 in
    every codebook, and these codes decode to silence.
    """

    kind = "fitted"
    functions: ClassVar[Functions] = Functions(embed, synthesize, silent_past)
    sample_rate = SAMPLE_RATE
    hop_length = HOP_LENGTH
    start_frames = 1
    chunk_frames = _SECONDS_AT_ONCE * SAMPLE_RATE // HOP_LENGTH

    def __init__(self, params: Params, entries: np.ndarray, gain: float):
        self.num_codebooks, self.codebook_size, _ = entries.shape
        arrays: dict[str, Any] = {"codebooks": entries, "gain": gain}
        for name, layers in params.items():
            for i, layer in enumerate(layers):
                arrays |= {f"{name}.{i}.{part}": array for part, array in layer.items()}
        super().__init__(
            {
                "sample_rate": SAMPLE_RATE,
                "hop_length": HOP_LENGTH,
                "num_codebooks": self.num_codebooks,
                "codebook_size": self.codebook_size,
            },
            {name: np.asarray(array, np.float32) for name, array in arrays.items()},
        )
        self._params, self._entries, self._gain = params, jnp.asarray(entries), jnp.float32(gain)

    @classmethod
    def from_arrays(cls, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> "FittedCodec":
        layers: dict[str, dict[int, dict[str, jax.Array]]] = defaultdict(lambda: defaultdict(dict))
        for name in arrays.keys() - {"codebooks", "gain"}:
            network_name, index, part = name.split(".")
            layers[network_name][int(index)][part] = jnp.asarray(arrays[name])
        params = {name: [of[index] for index in sorted(of)] for name, of in layers.items()}
        return cls(params, arrays["codebooks"], float(arrays["gain"]))

    def initial_state(self, batch: int) -> CodecState:
        return CodecState(silent_frame(batch), self.functions.silent_past(batch))

    def encode_chunk(self, state: CodecState, waveform: jax.Array) -> tuple[CodecState, jax.Array]:
        last, codes = _encode(self.functions, self._params, self._entries, state.encoder, waveform)
        return state._replace(encoder=last), codes

    def decode_chunk(self, state: CodecState, codes: jax.Array) -> tuple[CodecState, jax.Array]:
        past, waveform = _decode(self.functions, self._params, self._entries, self._gain, state.decoder, codes)
        return state._replace(decoder=past), waveform
