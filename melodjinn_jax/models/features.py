"""What the latent action model sees: features of waveform patches, computed inside jit.

Transforms are matrix products with fixed windows (a DFT as a product is what matrix units do best), and every
feature is causal: the features of a frame depend on samples up to that frame's end and no later.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from melodjinn_jax.config import LatentActionConfig

WINDOWS_PER_FRAME = 4

# The newest window is left to the next frame. A hit in the last quarter of a frame has hardly sounded there: were it
# labelled there, the likeliest token under its action would be that of silence, and a greedy player would come late.
LAG_WINDOWS = 1
COMPANDING = 30.0
MEL_GAIN = 3.0

# Of `spectra_features`.
SPECTRA_GAIN = 100.0
LEVEL_WEIGHT = 4.0
SEMITONE_SAMPLES = 4096  # tells semitones apart from 200 Hz on, and nearly so from 100
SEMITONE_RANGE = (100.0, 1600.0)  # hertz
SEMITONE_SCALE = 16.0  # the long window's gain over the short one's


@functools.cache
def _mel_bases(sample_rate: int, hop_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Windowed DFT matrices and band matrices: (short DFT, short bands, long DFT, long bands).

    Two resolutions. Above about 450 Hz, Hann windows of 3/4 frame tell onsets apart in time. Below, where such a
    window cannot tell a kick from a tom, one of 1 1/2 frames with a slow rise and a fast fall, so that it still
    reacts at once to the newest samples.
    """
    advance = hop_length // WINDOWS_PER_FRAME
    short = 3 * advance
    rise, fall = 5 * advance, advance
    long_window = np.concatenate([np.hanning(2 * rise)[:rise], np.hanning(2 * fall)[fall:]])

    def dft(window: np.ndarray, num_bins: int, size: int) -> np.ndarray:
        angles = 2 * np.pi * np.outer(np.arange(len(window)), np.arange(num_bins)) / size
        return window[:, None] * np.concatenate([np.cos(angles), -np.sin(angles)], axis=1)

    short_size = 256
    short_frequencies = np.arange(short_size // 2 + 1) * sample_rate / short_size
    lowest, highest = (2595 * float(np.log10(1 + frequency / 700)) for frequency in (20, sample_rate / 2))
    edges = 700 * (10 ** (np.linspace(lowest, highest, 30) / 2595) - 1)
    rising = (short_frequencies[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - short_frequencies[:, None]) / (edges[2:] - edges[1:-1])
    # Twice the power: this transform has half the bins of the one that the scale of the features is tuned for.
    short_bands = 2 * np.maximum(0, np.minimum(rising, falling))[:, 4:]

    long_size = 512
    groups = [(1, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 9), (9, 12)]
    long_bands = np.zeros((12, len(groups)))
    for band, (low, high) in enumerate(groups):
        long_bands[low:high, band] = 0.12**2
    return (
        dft(np.hanning(short), short_size // 2 + 1, short_size).astype(np.float32),
        short_bands.astype(np.float32),
        dft(long_window, 12, long_size).astype(np.float32),
        long_bands.astype(np.float32),
    )


def mel_features(waveform_BFH: jax.Array, sample_rate: int) -> jax.Array:
    """Mel bands of short windows, max-pooled over each frame.

    Max-pooling makes a hit look alike wherever in the frame it falls.

    Args:
      waveform_BFH: int16 or float samples [B, F, H]; int16 is scaled to [-1, 1].
      sample_rate: in Hz.

    Returns:
      float32 [B, F, 31]: log1p(3 * magnitude), 7 low bands and 24 mel bands.
    """
    B, F, H = waveform_BFH.shape
    short_dft, short_bands, long_dft, long_bands = _mel_bases(sample_rate, H)
    advance = H // WINDOWS_PER_FRAME
    past = len(long_dft) - advance + LAG_WINDOWS * advance
    samples = jnp.pad(to_float(waveform_BFH).reshape(B, F * H), ((0, 0), (past, 0)))
    pieces = samples.reshape(B, -1, advance)
    count = F * WINDOWS_PER_FRAME
    windows = jnp.concatenate([pieces[:, i : i + count] for i in range(len(long_dft) // advance)], axis=-1)

    def power(windows: jax.Array, dft: np.ndarray) -> jax.Array:
        real, imaginary = jnp.split(windows @ dft, 2, axis=-1)
        return real**2 + imaginary**2

    low = jnp.sqrt(power(windows, long_dft) @ long_bands)
    high = jnp.sqrt(power(windows[..., -len(short_dft) :], short_dft) @ short_bands)
    bands = jnp.log1p(MEL_GAIN * jnp.concatenate([low, high], axis=-1))
    return bands.reshape(B, F, WINDOWS_PER_FRAME, -1).max(axis=2)


@functools.cache
def _semitone_basis(sample_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Windowed DFT matrix [T, 2 bins] and band matrix [bins, 48] of the semitones of four octaves."""
    bins = np.arange(int(SEMITONE_RANGE[1] * SEMITONE_SAMPLES / sample_rate) + 2)
    angles = 2 * np.pi * np.outer(np.arange(SEMITONE_SAMPLES), bins) / SEMITONE_SAMPLES
    window = np.hanning(SEMITONE_SAMPLES)[:, None]
    dft = window * np.concatenate([np.cos(angles), -np.sin(angles)], axis=1)
    semitones = 12 * np.log2(np.maximum(bins, 0.5) * sample_rate / SEMITONE_SAMPLES / SEMITONE_RANGE[0])
    # Triangles one semitone wide to each side; low ones are wider than the bins are apart, so none is empty.
    bands = np.maximum(0, 1 - np.abs(semitones[:, None] - np.arange(48)))
    return dft.astype(np.float32), bands.astype(np.float32)


def spectra_features(waveform_BFH: jax.Array, stride: int, sample_rate: int) -> jax.Array:
    """Blocks as spectra of two resolutions, in logarithms that hear quiet sounds, the level set apart.

    The mean of the bands, which is the level, would be by far the largest part of any error; here it counts as much
    as `LEVEL_WEIGHT` bands. Mel bands in up to four parts of the block tell when, semitones over a long window that
    ends with the block tell which notes.

    Args:
      waveform_BFH: int16 or float samples [B, F, H].
      stride: frames per block (S).
      sample_rate: in Hz.

    Returns:
      float32 [B, N, P * 32 + 48], N = F / S, P = the largest of 4, 2, 1 parts that divides S.
    """
    B, F, H = waveform_BFH.shape
    N, parts = F // stride, next(parts for parts in (4, 2, 1) if stride % parts == 0)
    magnitudes = jnp.expm1(mel_features(waveform_BFH, sample_rate)) / MEL_GAIN
    bands = jnp.log1p(SPECTRA_GAIN * magnitudes.reshape(B, N, parts, stride // parts, -1).max(axis=3))
    level = bands.mean(axis=-1, keepdims=True)
    shape = jnp.concatenate([bands - level, LEVEL_WEIGHT**0.5 * level], axis=-1).reshape(B, N, -1)

    dft, semitone_bands = _semitone_basis(sample_rate)
    samples = jnp.pad(to_float(waveform_BFH).reshape(B, F * H), ((0, 0), (len(dft), 0)))
    ends = np.arange(1, N + 1) * stride * H
    real, imaginary = jnp.split(samples[:, ends[:, None] + np.arange(len(dft))] @ dft, 2, axis=-1)
    notes = jnp.log1p(SPECTRA_GAIN * jnp.sqrt((real**2 + imaginary**2) @ semitone_bands) / SEMITONE_SCALE)
    return jnp.concatenate([shape, notes - notes.mean(axis=-1, keepdims=True)], axis=-1)


def magnitudes_of_mel(mel: np.ndarray) -> np.ndarray:
    """The magnitudes that `mel_features` are the logarithms of."""
    return np.expm1(mel) / MEL_GAIN


def mel_of_magnitudes(magnitudes: np.ndarray) -> np.ndarray:
    """The inverse of `magnitudes_of_mel`."""
    return np.log1p(MEL_GAIN * magnitudes)


def to_float(waveform: jax.Array) -> jax.Array:
    """Samples as float32; int16 is scaled to [-1, 1]."""
    if waveform.dtype == jnp.int16:
        return waveform.astype(jnp.float32) / 32768
    return waveform.astype(jnp.float32)


def to_samples(sound: jax.Array) -> jax.Array:
    """Sound of full scale 1 as int16, inside jit: rounded and clipped as `data.audio.to_int16` does it."""
    return jnp.clip(jnp.round(sound * 32768), -32768, 32767).astype(jnp.int16)


def compand(waveform: jax.Array) -> jax.Array:
    """Mu-law-like companding: sign(x) log(1 + 30 |x|) / log 31, so that quiet drums weigh like loud ones."""
    return jnp.sign(waveform) * jnp.log1p(COMPANDING * jnp.abs(waveform)) / np.log1p(COMPANDING)


def block_features(waveform_BFH: jax.Array, config: LatentActionConfig, sample_rate: int) -> jax.Array:
    """Features of blocks of `config.action_stride` frames.

    Args:
      waveform_BFH: int16 samples [B, F, H]; F is a multiple of the action stride.
      config: of the latent action model.
      sample_rate: in Hz.

    Returns:
      float32 [B, N, C], N = F / S.
    """
    B, F, H = waveform_BFH.shape
    stride = config.action_stride
    if config.features == "mel":
        return mel_features(waveform_BFH, sample_rate).reshape(B, F // stride, stride, -1).max(axis=2)
    if config.features == "spectra":
        return spectra_features(waveform_BFH, stride, sample_rate)
    patches = to_float(waveform_BFH)
    if config.features == "waveform":
        patches = compand(patches)
    else:
        rms = jnp.sqrt(jnp.mean(patches**2, axis=-1, keepdims=True))
        patches = patches / jnp.maximum(rms, 1e-3)
    return patches.reshape(B, F // stride, stride * H)


def num_channels(config: LatentActionConfig, sample_rate: int, hop_length: int) -> int:
    """Width C of `block_features`."""
    if config.features == "mel":
        _, short_bands, _, long_bands = _mel_bases(sample_rate, hop_length)
        return short_bands.shape[1] + long_bands.shape[1]
    if config.features == "spectra":
        silence = jax.ShapeDtypeStruct((1, config.action_stride, hop_length), jnp.float32)
        return jax.eval_shape(lambda x: spectra_features(x, config.action_stride, sample_rate), silence).shape[-1]
    return config.action_stride * hop_length
