"""Small DATASETs of generated music, for the tests of training on recordings."""

from pathlib import Path

import jax
import numpy as np
from ingest_stubs import tune

from melodjinn_jax.codecs.fitted import FittedCodec, initial_params
from melodjinn_jax.data.audio import HOP_LENGTH, to_float32, to_int16
from melodjinn_jax.data.dataset import Dataset
from melodjinn_jax.data.records import Record
from melodjinn_jax.data.writer import write_dataset

CHUNK = 50


def codec() -> FittedCodec:
    """A codec that was never fitted: it has the shapes of one."""
    entries = np.random.default_rng(0).normal(size=(2, 16, 12)).astype(np.float32)
    return FittedCodec(initial_params(jax.random.key(0)), entries, gain=1.0)


def track(seed: int, frames: int) -> np.ndarray:
    """int16 [frames, 320]."""
    return to_int16(tune(seed, frames * HOP_LENGTH / 24000 + 0.1)[: frames * HOP_LENGTH]).reshape(frames, HOP_LENGTH)


def records_of(name: str, waveform: np.ndarray, codes: np.ndarray) -> list[Record]:
    """A track in chunks; the last ends where the track does."""
    starts = [*range(0, len(waveform) - CHUNK, CHUNK), len(waveform) - CHUNK]
    return [
        Record(f"{name}/{s:07d}", waveform[s:][:CHUNK], codes[s:][:CHUNK], provenance={"start_frame": s})
        for s in starts
    ]


def write_music(path: Path, tracks: dict[str, dict[str, int]], seed: int = 0) -> Dataset:
    """A DATASET of tracks with these frames, by split and name."""
    encoder, splits = codec(), {}
    for split, named in tracks.items():
        splits[split] = []
        for number, (name, frames) in enumerate(named.items()):
            sound = track(seed + number, frames)
            codes = encoder.encode(to_float32(sound).reshape(1, -1))[0].astype(np.uint16)
            splits[split] += records_of(name, sound, codes)
    return write_dataset(path, splits, codec=encoder, fingerprint={}, shards=dict.fromkeys(splits, 2))
