"""The small codec fitted on the data: an autoencoder around a residual vector quantiser, causal both ways.

Encoder: a windowed cosine transform of the frame and the one before it, and short-time levels that place an attack
inside the frame, through a small network to a latent. Decoder: the latents of the frame and a few before it through a
small network to cosine amplitudes on a curve that makes loud and soft alike to it, then overlap-add with a short tail
into the next frame. It is judged by what is heard through it, not by its signal-to-noise ratio: mostly free of phase.
"""

import itertools
from typing import Any, NamedTuple

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
_NUM_FEATURES = HOP_LENGTH + 2 * _LEVELS
MAX_EXPONENT = 8.0
_SECONDS_AT_ONCE = 20

Params = dict[str, list[dict[str, jax.Array]]]
"""Layers of `encoder` and `decoder`, each with a kernel [in, out] and a bias [out]."""


def _cosines(length: int, count: int) -> np.ndarray:
    """`count` orthonormal cosines of half-integer frequencies, as in the MDCT, [length, count]."""
    time = np.arange(length)[:, None] + 0.5
    return np.sqrt(2 / length) * np.cos(np.pi / length * time * (np.arange(count) + 0.5))


def _analysis_basis() -> np.ndarray:
    """[2 H, H]: a slow rise over the past frame; the newest samples, where a hit may begin, count almost in full."""
    window = np.ones(2 * HOP_LENGTH)
    window[:HOP_LENGTH] = np.sin(np.pi / 2 * (np.arange(HOP_LENGTH) + 0.5) / HOP_LENGTH) ** 2
    window[-32:] = 0.5 + 0.5 * np.cos(np.pi / 2 * (np.arange(32) + 0.5) / 32)
    return (_cosines(2 * HOP_LENGTH, HOP_LENGTH) * window[:, None]).astype(np.float32)


def _synthesis_basis() -> np.ndarray:
    """[H + tail, H]: cosines that fade in while the last frame's fade out; the two fades add up to one."""
    length = HOP_LENGTH + TAIL
    fade = np.sin(np.pi / 2 * (np.arange(TAIL) + 0.5) / TAIL) ** 2
    window = np.concatenate([fade, np.ones(length - 2 * TAIL), fade[::-1]])
    return (_cosines(length, HOP_LENGTH) * window[:, None]).astype(np.float32)


_ANALYSIS = _analysis_basis()
SYNTHESIS = _synthesis_basis()


def initial_params(key: jax.Array) -> Params:
    sizes = {
        "encoder": (_NUM_FEATURES, _WIDTH, _WIDTH, LATENT_DIM),
        "decoder": (LATENT_DIM * (CONTEXT + 1), _WIDTH, _WIDTH, _WIDTH, HOP_LENGTH),
    }
    params: Params = {}
    for name, widths in sizes.items():
        *hidden, last = itertools.pairwise(widths)
        # Small first amplitudes: they are exponents of the sound.
        scales = [1.0] * len(hidden) + [0.3 if name == "decoder" else 1.0]
        params[name] = []
        for (fan_in, fan_out), scale in zip([*hidden, last], scales, strict=True):
            key, layer_key = jax.random.split(key)
            kernel = scale * jax.random.normal(layer_key, (fan_in, fan_out)) / np.sqrt(fan_in)
            params[name].append({"kernel": kernel, "bias": jnp.zeros(fan_out)})
    return params


def _network(layers: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
    """Residual layers between a first and a last one; zero goes to zero, so that silence stays silence."""

    def apply(x: jax.Array) -> jax.Array:
        first, *middle, last = layers
        h = jax.nn.gelu(x @ first["kernel"] + first["bias"])
        for layer in middle:
            h = h + jax.nn.gelu(h @ layer["kernel"] + layer["bias"])
        return h @ last["kernel"] + last["bias"]

    return apply(x) - apply(jnp.zeros((1, x.shape[-1])))


def _features(frames: jax.Array, past: jax.Array) -> jax.Array:
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


def silent_past(batch: int) -> Sounding:
    """The state of a decoder before the first frame."""
    return Sounding(jnp.zeros((batch, CONTEXT, LATENT_DIM)), jnp.zeros((batch, 1, TAIL)))


def embed(params: Params, last: jax.Array, waveform: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The last frame, and latents [B, F, Z] of a waveform [B, F * H] that follows the frame `last` [B, 1, H]."""
    frames = waveform.reshape(waveform.shape[0], -1, HOP_LENGTH)
    past = jnp.concatenate([last, frames[:, :-1]], axis=1)
    return frames[:, -1:], _network(params["encoder"], _features(frames, past))


def synthesize(params: Params, past: Sounding, latents: jax.Array) -> tuple[Sounding, jax.Array]:
    """The new past, and the waveform [B, F * H] of latents [B, F, Z] that follow `past`."""
    B, F, _ = latents.shape
    known = jnp.concatenate([past.latents, latents], axis=1)
    seen = [known[:, CONTEXT - age : CONTEXT - age + F] for age in range(CONTEXT + 1)]
    exponents = _network(params["decoder"], jnp.concatenate(seen, axis=-1))
    amplitudes = jnp.sinh(jnp.clip(exponents, -MAX_EXPONENT, MAX_EXPONENT)) / 10
    sound = amplitudes @ SYNTHESIS.T
    tails = jnp.concatenate([past.tail, sound[..., HOP_LENGTH:]], axis=1)
    overlap = jnp.pad(tails[:, :-1], ((0, 0), (0, 0), (0, HOP_LENGTH - TAIL)))
    return Sounding(known[:, F:], tails[:, -1:]), (sound[..., :HOP_LENGTH] + overlap).reshape(B, F * HOP_LENGTH)


@jax.jit
def _encode(params: Params, entries: jax.Array, last: jax.Array, waveform: jax.Array) -> tuple[jax.Array, jax.Array]:
    last, latents = embed(params, last, waveform)
    return last, quantize(entries, latents)[1]


@jax.jit
def _decode(
    params: Params, entries: jax.Array, gain: jax.Array, past: Sounding, codes: jax.Array
) -> tuple[Sounding, jax.Array]:
    past, waveform = synthesize(params, past, lookup(entries, codes))
    return past, gain * waveform


class FittedCodec(Codec):
    """The codec that `fit_codec` makes: its networks, its codebooks [Q, K, Z] and an output gain.

    Silence has the code 0 in every codebook, and these codes decode to silence.
    """

    kind = "fitted"
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
        params: Params = {"encoder": [], "decoder": []}
        for name, layers in params.items():
            while f"{name}.{len(layers)}.kernel" in arrays:
                prefix = f"{name}.{len(layers)}"
                layers.append({part: jnp.asarray(arrays[f"{prefix}.{part}"]) for part in ("kernel", "bias")})
        return cls(params, arrays["codebooks"], float(arrays["gain"]))

    def initial_state(self, batch: int) -> CodecState:
        return CodecState(silent_frame(batch), silent_past(batch))

    def encode_chunk(self, state: CodecState, waveform: jax.Array) -> tuple[CodecState, jax.Array]:
        last, codes = _encode(self._params, self._entries, state.encoder, waveform)
        return state._replace(encoder=last), codes

    def decode_chunk(self, state: CodecState, codes: jax.Array) -> tuple[CodecState, jax.Array]:
        past, waveform = _decode(self._params, self._entries, self._gain, state.decoder, codes)
        return state._replace(decoder=past), waveform
