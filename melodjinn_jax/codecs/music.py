"""The fitted codec for music: a transform computed from the data, and small networks that improve on it.

Music seldom repeats a frame, and its low tones last longer than one: their waves must go on where they were, which the
networks of the drums' design do not learn in a short fit. So here most of a latent is the frame's own wave, in the
coordinates in which recordings like these vary most (Karhunen-Loeve), under a square root of its level that keeps loud
and soft within reach of the same codebooks; the rest are levels of bands, for high sounds, whose waves cost more than
they are worth. Decoding undoes this, and the networks add on either side what a transform cannot say.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from melodjinn_jax.codecs.fitted import (
    HOP_LENGTH,
    NUM_FEATURES,
    SYNTHESIS,
    FittedCodec,
    Functions,
    Params,
    Sounding,
    amplitudes,
    cosines,
    features,
    initial_networks,
    network,
    overlap_add,
    silent_past,
    with_past,
)

_WAVE_DIM = 40  # latent coordinates of the frame's wave
_BANDS = 16  # and levels of bands
_LATENT_DIM = _WAVE_DIM + _BANDS
_FIRST_BAND = 24  # cosine where the bands begin, 900 Hz: below, the wave says all
_BAND_WEIGHT = 0.5  # of .15 and .5 the better by log-spectral distance
_CONTEXT = 3  # past frames that the decoder sees
_WIDTH = 256
_CORRECTION = 0.1  # size of what the encoder's network adds
_WHITENING = 0.3  # 0: coordinates that keep most energy, 1: every pitch counts the same
_TRANSFORM_FRAMES = 16000

_COSINES = cosines(HOP_LENGTH, HOP_LENGTH).astype(np.float32)


def _band_means() -> np.ndarray:
    """[H, bands]: means over ranges of cosines, each range wider than the one below it by the same ratio."""
    edges = np.round(np.geomspace(_FIRST_BAND, HOP_LENGTH, _BANDS + 1)).astype(int)
    means = np.zeros((HOP_LENGTH, _BANDS), np.float32)
    for band, (low, high) in enumerate(itertools.pairwise(edges)):
        means[low:high, band] = 1 / (high - low)
    return means


_BAND_MEANS = _band_means()


def starting_params(waveforms: np.ndarray, seed: int) -> Params:
    """The transform of clips float32 [B, F * H], and networks that hardly add to it yet."""
    sizes = {
        "encoder": (HOP_LENGTH + NUM_FEATURES, _WIDTH, _WIDTH, _LATENT_DIM),
        "decoder": (_LATENT_DIM * (_CONTEXT + 1), _WIDTH, _WIDTH, _WIDTH, HOP_LENGTH),
    }
    analysis, synthesis = _transform(waveforms, seed)
    transform = [{"kernel": jnp.asarray(matrix)} for matrix in (analysis, synthesis)]
    return {**initial_networks(jax.random.key(seed), sizes, first_exponents=0.05), "transform": transform}


def _transform(waveforms: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Karhunen-Loeve transform of frames at the same level: [H, wave], and back to amplitudes [wave, H]."""
    frames = waveforms.reshape(-1, HOP_LENGTH)
    chosen = np.random.default_rng(seed).permutation(np.flatnonzero(np.abs(frames).max(axis=1) > 1e-3))
    spectra = frames[chosen[:_TRANSFORM_FRAMES]] @ _COSINES
    spectra /= np.sqrt((spectra**2).mean(axis=1, keepdims=True))
    weights = (np.sqrt((spectra**2).mean(axis=0)) + 1e-3) ** -_WHITENING
    weights = np.convolve(np.pad(weights, 4, mode="edge"), np.full(9, 1 / 9), "valid")
    weighted = spectra * weights
    _, vectors = np.linalg.eigh(weighted.T @ weighted)
    vectors = vectors[:, : -_WAVE_DIM - 1 : -1]
    analysis = _COSINES @ (weights[:, None] * vectors)
    synthesis = (vectors.T / weights) @ _COSINES.T @ SYNTHESIS[:HOP_LENGTH]
    return analysis.astype(np.float32), synthesis.astype(np.float32)


def _power(x: jax.Array) -> jax.Array:
    return (x**2).mean(axis=-1, keepdims=True)


def embed(params: Params, last: jax.Array, waveform: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The last frame, and latents [B, F, Z] of a waveform [B, F * H] that follows the frame `last` [B, 1, H]."""
    frames = waveform.reshape(waveform.shape[0], -1, HOP_LENGTH)
    past = jnp.concatenate([last, frames[:, :-1]], axis=1)
    spectrum = frames @ _COSINES
    levels = jnp.log1p(300 * (jnp.sqrt(spectrum**2 @ _BAND_MEANS + 1e-10) - 1e-5))
    analysis = jax.lax.stop_gradient(params["transform"][0]["kernel"])
    wave = frames * (_power(frames) + 1e-8) ** -0.25 @ analysis
    seen = jnp.concatenate([jnp.sign(spectrum) * jnp.log1p(10 * jnp.abs(spectrum)), features(frames, past)], axis=-1)
    plain = jnp.concatenate([wave, _BAND_WEIGHT * levels], axis=-1)
    return frames[:, -1:], plain + _CORRECTION * network(params["encoder"], seen)


def synthesize(params: Params, past: Sounding, latents: jax.Array) -> tuple[Sounding, jax.Array]:
    """The new past, and the waveform [B, F * H] of latents [B, F, Z] that follow `past`."""
    kept, seen = with_past(past.latents, latents)
    wave = latents[..., :_WAVE_DIM] @ jax.lax.stop_gradient(params["transform"][1]["kernel"])
    wave = wave * jnp.sqrt(_power(wave) + 1e-12)
    tail, waveform = overlap_add(past.tail, wave + amplitudes(network(params["decoder"], seen)))
    return Sounding(kept, tail), waveform


class MusicCodec(FittedCodec):
    """The fitted codec for music."""

    kind = "fitted_music"
    functions = Functions(embed, synthesize, functools.partial(silent_past, context=_CONTEXT, latent_dim=_LATENT_DIM))
