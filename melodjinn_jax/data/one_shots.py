"""The sounds of the toy drum world: five synthetic drums, or one-shot recordings from a folder."""

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.signal

from melodjinn_jax.config import DRUM_NAMES, DataConfig
from melodjinn_jax.data.audio import AUDIO_SUFFIXES, HOP_LENGTH, SAMPLE_RATE, load_audio
from melodjinn_jax.errors import UserError

PEAK = 0.9
SYNTHETIC_FRAMES = 12
MAX_FRAMES = 24  # 0.32 s: hits come about every 19 frames, so longer tails only pile up under the next hits
MAX_SECONDS = 2.0  # a longer sound is a loop or a track, not a one-shot
MAX_FILES = 16

_ONSET = 0.1  # share of the peak at which a recording begins
_PRE_ONSET = 6  # samples (0.25 ms) kept before the onset and faded in, so that the cut does not click
_TAIL_FLOOR = 1e-3  # share of the peak (-60 dB) below which a recording has ended
_SILENT = 1e-3
_MIX_CEILING = 0.98


@dataclass(frozen=True, eq=False)
class OneShots:
    """The drums of a world: `names` (N) and `waveforms` float32 `[N, samples]`, each with its attack at sample 0."""

    names: tuple[str, ...]
    waveforms: np.ndarray


def one_shots_for(data: DataConfig) -> OneShots:
    """The drums that `data` asks for, at the level at which they sound in its clips.

    Raises `UserError` for a bad number of drums, or a bad folder or file of `data.one_shots`.
    """
    drums = read_one_shots(data.one_shots) if data.one_shots else synthetic_one_shots(data.num_drums)
    return level_for_mix(drums, data.min_gap)


def level_for_mix(drums: OneShots, min_gap: int) -> OneShots:
    """Scale all drums by one factor such that hits at least `min_gap` frames apart can never add up beyond 0.98.

    Of the hits that sound at any moment at most one is of an age in each interval of `min_gap` frames, so the sum over
    these intervals of the loudest sample of any drum bounds every mix.
    """
    if min_gap < 1:
        raise UserError(f"data.min_gap is {min_gap}: it must be at least 1 frame")
    envelope = np.abs(drums.waveforms).max(axis=0)
    interval = min_gap * HOP_LENGTH
    bound = sum(envelope[start : start + interval].max() for start in range(0, len(envelope), interval))
    gain = np.float32(min(1.0, _MIX_CEILING / bound))
    return dataclasses.replace(drums, waveforms=drums.waveforms * gain)


def synthetic_one_shots(num_drums: int) -> OneShots:
    """The first `num_drums` of kick, snare, hat, clap and tom: 12 frames each, peak 0.9, the same at every call."""
    if not 1 <= num_drums <= len(DRUM_NAMES):
        raise UserError(f"data.num_drums is {num_drums}: it must be from 1 to {len(DRUM_NAMES)}")
    length = SYNTHETIC_FRAMES * HOP_LENGTH
    seconds = np.arange(length) / SAMPLE_RATE
    fade = np.ones(length)
    fade[-HOP_LENGTH:] = np.linspace(1, 0, HOP_LENGTH)
    waveforms = []
    for index, name in enumerate(DRUM_NAMES[:num_drums]):
        noise = np.random.default_rng([20240, index]).standard_normal(length)
        waveforms.append(_normalise(_SYNTHS[name](seconds, noise) * fade))
    return OneShots(DRUM_NAMES[:num_drums], np.stack(waveforms))


def _kick(seconds: np.ndarray, noise: np.ndarray) -> np.ndarray:
    body = np.sin(_phase(50, 120, 0.025, seconds)) * np.exp(-seconds / 0.05)
    return body + 0.15 * _band(noise, 1000, 4000) * np.exp(-seconds / 0.002)


def _snare(seconds: np.ndarray, noise: np.ndarray) -> np.ndarray:
    wires = 0.6 * _band(noise, 500, 7000) * np.exp(-seconds / 0.035)
    return wires + 0.6 * np.sin(2 * np.pi * 190 * seconds) * np.exp(-seconds / 0.03)


def _hat(seconds: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return _band(noise, 7000, 11500) * np.exp(-seconds / 0.015)


def _clap(seconds: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Three hands almost together, then the room."""
    envelope = np.zeros_like(seconds)
    for delay, level, decay in ((0, 1, 0.006), (0.011, 1, 0.006), (0.022, 1, 0.006), (0.03, 0.7, 0.03)):
        envelope += np.where(seconds >= delay, level * np.exp(-(seconds - delay) / decay), 0)
    return _band(noise, 900, 3500) * envelope


def _tom(seconds: np.ndarray, noise: np.ndarray) -> np.ndarray:
    body = np.sin(_phase(171, 114, 0.04, seconds)) * np.exp(-seconds / 0.06)
    return body + 0.08 * _band(noise, 600, 2500) * np.exp(-seconds / 0.004)


_SYNTHS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "kick": _kick,
    "snare": _snare,
    "hat": _hat,
    "clap": _clap,
    "tom": _tom,
}


def _phase(low: float, sweep: float, decay: float, seconds: np.ndarray) -> np.ndarray:
    """Phase of a pitch that falls from `low + sweep` Hz to `low` Hz: the integral of low + sweep exp(-t / decay)."""
    return 2 * np.pi * (low * seconds + sweep * decay * (1 - np.exp(-seconds / decay)))


def _band(noise: np.ndarray, low: float, high: float) -> np.ndarray:
    filtered = scipy.signal.sosfilt(
        scipy.signal.butter(4, (low, high), "bandpass", fs=SAMPLE_RATE, output="sos"), np.concatenate([noise, noise])
    )[len(noise) :]  # the first half only settles the filter, so the attack is there at once
    return filtered / filtered.std()


def read_one_shots(folder: str | Path) -> OneShots:
    """All audio files of a folder, sorted by name: trimmed to the attack, at most 24 frames long, peak 0.9.

    Raises `UserError`, naming the folder or file, for a folder that is missing or holds no or too many audio files,
    and for a file that is unreadable, silent or longer than 2 s.
    """
    files = audio_files(folder)
    names = tuple(file.stem for file in files)
    for first, second in itertools.pairwise(files):
        if first.stem == second.stem:
            raise UserError(f"{first} and {second} would both be called {first.stem}: rename one")
    waveforms = [_prepare(file) for file in files]
    length = max(len(waveform) for waveform in waveforms)
    padded = [np.pad(waveform, (0, length - len(waveform))) for waveform in waveforms]
    return OneShots(names, np.stack(padded))


def audio_files(folder: str | Path) -> list[Path]:
    """The audio files of a folder of one-shots, sorted by name. Raises `UserError` as `read_one_shots` does."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"data.one_shots is {folder}, which is not a folder: give a folder of audio files")
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"data.one_shots is {folder}, which cannot be read: {error.strerror or error}") from error
    files = sorted(
        (entry for entry in entries if entry.suffix.lower() in AUDIO_SUFFIXES),
        key=lambda file: (file.stem, file.suffix),
    )
    if not files:
        raise UserError(f"data.one_shots is {folder}, which holds no WAV, FLAC, OGG, AIFF or MP3 file: put some there")
    if len(files) > MAX_FILES:
        raise UserError(f"data.one_shots is {folder}, which holds {len(files)} audio files: keep at most {MAX_FILES}")
    return files


def _prepare(file: Path) -> np.ndarray:
    """float32 `[samples]` of one recording."""
    waveform = load_audio(file)
    level = np.abs(waveform)
    peak = level.max()
    if peak < _SILENT:
        raise UserError(f"{file} is silent (peak {peak:.1g}): remove it or replace it")
    onset = int(np.argmax(level > _ONSET * peak))
    end = len(level) - int(np.argmax(level[::-1] > _TAIL_FLOOR * peak))
    if end - onset > MAX_SECONDS * SAMPLE_RATE:
        raise UserError(
            f"{file} sounds for {(end - onset) / SAMPLE_RATE:.1f} s: a one-shot may last {MAX_SECONDS:g} s, shorten it"
        )
    start = max(0, onset - _PRE_ONSET)
    trimmed = waveform[start:end].copy()
    trimmed[: onset - start] *= np.linspace(0, 1, onset - start, endpoint=False)
    return _normalise(_fade_out(trimmed))


def _fade_out(waveform: np.ndarray) -> np.ndarray:
    """Cut at MAX_FRAMES, fading through the second half; a shorter sound stays as it is."""
    length = MAX_FRAMES * HOP_LENGTH
    if len(waveform) <= length:
        return waveform
    half = length // 2
    fade = 0.5 + 0.5 * np.cos(math.pi * np.arange(half) / half)
    return np.concatenate([waveform[:half], waveform[half:length] * fade])


def _normalise(waveform: np.ndarray) -> np.ndarray:
    return (PEAK / np.abs(waveform).max() * waveform).astype(np.float32)
