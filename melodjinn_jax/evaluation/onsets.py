"""Which of the known one-shots sound when, whatever their phase; matching of onset lists; log-mel spectrograms.

The detector is convolutive non-negative matrix factorisation with fixed templates and the Kullback-Leibler
divergence (Smaragdis 2004, "Non-negative matrix factor deconvolution"). It knows the one-shots, so it is an
instrument for the drum worlds and no detector for real music.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from melodjinn_jax.errors import UserError

HOPS_PER_FRAME = 4
WINDOW_FRAMES = 1.5
NUM_BANDS = 36
MAX_TEMPLATE_FRAMES = 24
PHASES = 16
ITERATIONS = 60
SPARSITY = 0.02
MIN_GAIN = 0.3
CHUNK = 16


class Onset(NamedTuple):
    """One hit: its time in frames from the start of the clip, the index of its one-shot, its gain (1: as recorded)."""

    frame: float
    drum: int
    gain: float


@functools.cache
def mel_filters(sample_rate: int, fft_size: int, num_bands: int, lowest: float = 20.0) -> np.ndarray:
    """Triangular mel filters from `lowest` hertz to the Nyquist frequency, float32 [fft_size // 2 + 1, num_bands]."""
    frequencies = np.fft.rfftfreq(fft_size, 1 / sample_rate)
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(2595 * np.log10(1 + lowest / 700), top, num_bands + 2) / 2595) - 1)
    rising = (frequencies[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies[:, None]) / (edges[2:] - edges[1:-1])
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def _mel_magnitudes(waveform: jax.Array, sample_rate: int, hop: int, window: int, num_bands: int) -> jax.Array:
    """Magnitudes [..., T, bands]; column t is centred on sample t * hop."""
    fft_size = 1 << (2 * window - 1).bit_length() - 1
    padding = [(0, 0)] * (waveform.ndim - 1) + [(window // 2, window // 2)]
    padded = jnp.pad(waveform, padding)
    starts = np.arange(0, waveform.shape[-1], hop)
    segments = padded[..., starts[:, None] + np.arange(window)] * np.hanning(window).astype(np.float32)
    power = jnp.abs(jnp.fft.rfft(segments, fft_size)) ** 2
    return jnp.sqrt(power @ mel_filters(sample_rate, fft_size, num_bands) + 1e-12)
