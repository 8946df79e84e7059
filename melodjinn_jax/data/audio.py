"""Sound files in and out: any rate, any channels and any common format become 24 kHz mono."""

from math import gcd
from pathlib import Path
from typing import BinaryIO

import numpy as np
import scipy.signal
import soundfile

from melodjinn_jax.errors import UserError

SAMPLE_RATE = 24000
HOP_LENGTH = 320
SILENCE_DB = -60.0
"""What is fainter than this, in decibels of full scale, is silence to a listener."""
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".aif", ".aiff"})

_FULL_SCALE = 32768  # a power of two, so int16 -> float32 -> int16 is exact
_BLOCK_SAMPLES = 1 << 20
_RATES = (1000, 768_000)  # outside, the header is wrong; and the resampling filter grows with the rate


def load_audio(path: str | Path, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """The sound of a file as float32 `[samples]`, at `sample_rate`, the channels averaged.

    Raises `UserError`, naming the file, if it is missing, empty or unreadable, holds no samples, or holds NaN or Inf.
    """
    path = Path(path)
    samples, rate = _decode(path)
    if len(samples) == 0:
        raise UserError(f"{path} holds no samples: remove it or replace it")
    if not _RATES[0] <= rate <= _RATES[1]:
        raise UserError(f"{path} states a sample rate of {rate} Hz: convert it to one of {_RATES[0]} to {_RATES[1]} Hz")
    if rate != sample_rate:
        divisor = gcd(rate, sample_rate)
        with np.errstate(all="ignore"):  # what overflows here is reported as not finite below
            samples = scipy.signal.resample_poly(samples, sample_rate // divisor, rate // divisor)
    with np.errstate(over="ignore"):
        samples = samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise UserError(f"{path} holds samples that are not finite numbers (NaN or Inf): export it again")
    return samples


def _decode(path: Path) -> tuple[np.ndarray, int]:
    """Mono float64 `[samples]` and the sample rate; read in blocks, because a damaged header may claim any length."""
    try:
        if not path.is_file():
            raise UserError(f"{path} is not a file: give the path of an audio file")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty: remove it or replace it")
        with soundfile.SoundFile(path) as file:
            block = max(1, _BLOCK_SAMPLES // file.channels)
            blocks = [np.zeros(0)]
            while len(data := file.read(block, dtype="float64", always_2d=True)):
                with np.errstate(all="ignore"):
                    blocks.append(data.mean(axis=1))
            return np.concatenate(blocks), file.samplerate
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (soundfile.SoundFileError, ValueError, RuntimeError, TypeError, MemoryError) as error:
        raise UserError(f"{path} cannot be read as audio: convert it to WAV or FLAC, or remove it") from error


def to_int16(waveform: np.ndarray) -> np.ndarray:
    """Float samples of full scale 1 as int16, rounded and clipped; the inverse of `to_float32` on its values."""
    return np.clip(np.round(waveform * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def to_float32(samples: np.ndarray) -> np.ndarray:
    """int16 samples as float32 of full scale 1, exactly."""
    return samples.astype(np.float32) / _FULL_SCALE


def write_wav(path: str | Path | BinaryIO, waveform: np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Write a float waveform `[samples]` as 16-bit PCM, clipped to full scale. Raises `UserError` if it cannot."""
    try:
        soundfile.write(path, to_int16(waveform), sample_rate, subtype="PCM_16", format="WAV")
    except (soundfile.SoundFileError, OSError) as error:
        raise UserError(f"{path} cannot be written: check that its folder exists and has room") from error
