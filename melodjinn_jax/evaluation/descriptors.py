"""What a listener could say of a sound, frame by frame: how loud, how sudden, how bright, which pitch classes.

All need nothing but the sound, so they compare recordings, generations and presses of any run.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from melodjinn_jax.data.audio import SILENCE_DB
from melodjinn_jax.evaluation.onsets import log_mel, mel_power

DECIBELS_PER_NEPER = 10 / np.log(10)
PITCH_CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")

_ONSET_WINDOW, _ONSET_FFT, _ONSET_BANDS = 480, 1024, 36
_ONSET_LAG = 2  # half frames: what rises within one frame
_CHROMA_WINDOW = 4096  # tells semitones apart from 100 Hz on
_CHROMA_RANGE = (100.0, 2000.0)  # hertz
_FLOOR = 1e-4


def levels(waveform: np.ndarray, hop_length: int) -> np.ndarray:
    """Level of each frame in decibels of full scale, not below silence: [B, F * H] to [B, F]."""
    frames = waveform.reshape(len(waveform), -1, hop_length).astype(np.float64)
    return 10 * np.log10(np.maximum(np.mean(frames**2, axis=-1), 10 ** (SILENCE_DB / 10)))


@functools.partial(jax.jit, static_argnums=(1, 2))
def onset_strength(waveform: jax.Array, sample_rate: int, hop_length: int) -> jax.Array:
    """Rise of the spectrum in decibels, two values a frame: [B, F * H] to [B, 2 F]."""
    power = mel_power(waveform, sample_rate, _ONSET_WINDOW, hop_length // 2, _ONSET_FFT, _ONSET_BANDS)
    mel = DECIBELS_PER_NEPER * jnp.log(power + _FLOOR)
    earlier = jnp.concatenate([mel[:, :1].repeat(_ONSET_LAG, axis=1), mel[:, :-_ONSET_LAG]], axis=1)
    return jnp.maximum(0, mel - earlier).mean(axis=-1)


def spectrum(waveform: np.ndarray, sample_rate: int, hop_length: int) -> np.ndarray:
    """Log-mel spectrogram in decibels: [B, F * H] to [B, F, 64]."""
    return DECIBELS_PER_NEPER * np.asarray(log_mel(waveform, sample_rate, hop_length))


def brightness(spectrum_BFM: np.ndarray, sample_rate: int) -> np.ndarray:
    """Where the sound lies, in octaves above 20 Hz, each band weighted by its magnitude: [..., M] to [...]."""
    lowest, highest = (2595 * float(np.log10(1 + frequency / 700)) for frequency in (20, sample_rate / 2))
    edges = np.linspace(lowest, highest, spectrum_BFM.shape[-1] + 2)
    octaves = np.log2(700 * (10 ** (edges[1:-1] / 2595) - 1) / 20)
    # Over the floor, so that silence weighs nothing; evenly spread where there is nothing but silence.
    magnitude = np.sqrt(np.maximum(10 ** (spectrum_BFM / 10) - _FLOOR, 1e-9))
    return magnitude @ octaves / magnitude.sum(axis=-1)


@functools.cache
def _pitch_class_filters(sample_rate: int) -> np.ndarray:
    """float32 [_CHROMA_WINDOW // 2 + 1, 12]."""
    frequencies = np.fft.rfftfreq(_CHROMA_WINDOW, 1 / sample_rate)
    filters = np.zeros((len(frequencies), 12), np.float32)
    for index in np.flatnonzero((frequencies >= _CHROMA_RANGE[0]) & (frequencies <= _CHROMA_RANGE[1])):
        # A lies 9 semitones above C.
        filters[index, round(12 * np.log2(frequencies[index] / 440) + 9) % 12] = 1.0
    return filters


@functools.partial(jax.jit, static_argnums=(1, 2))
def chroma(waveform: jax.Array, sample_rate: int, hop_length: int) -> jax.Array:
    """Share of each pitch class in the magnitude, C first; all alike in silence: [B, F * H] to [B, F, 12]."""
    window = np.hanning(_CHROMA_WINDOW).astype(np.float32)
    padded = jnp.pad(waveform, ((0, 0), (_CHROMA_WINDOW // 2, _CHROMA_WINDOW // 2)))
    starts = np.arange(0, waveform.shape[1], hop_length)
    segments = padded[:, starts[:, None] + np.arange(_CHROMA_WINDOW)] * window
    magnitude = jnp.abs(jnp.fft.rfft(segments)) @ _pitch_class_filters(sample_rate) + 1.0
    return magnitude / magnitude.sum(axis=-1, keepdims=True)


def correlations(truth: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Correlation over time of each pair of curves, [B, T] or [B, T, M] (every band about its own mean): float64 [B].

    NaN where the truth never changes; 0 where only the other never does.
    """
    x, y = (curve.reshape(*curve.shape[:2], -1).astype(np.float64) for curve in (truth, other))
    x, y = (curve - curve.mean(axis=1, keepdims=True) for curve in (x, y))
    covariance, xx, yy = (np.sum(a * b, axis=(1, 2)) for a, b in ((x, y), (x, x), (y, y)))
    tiny = 1e-9 * x[0].size
    scale = np.sqrt(np.maximum(xx, tiny) * np.maximum(yy, tiny))
    return np.where(xx > tiny, np.where(yy > tiny, covariance / scale, 0.0), np.nan)
