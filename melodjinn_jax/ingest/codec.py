"""The codec of a DATASET: fitted on a sample of its training tracks, or EnCodec."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import soundfile

from melodjinn_jax.codecs import Codec, EncodecCodec, MusicCodec, fit_codec
from melodjinn_jax.codecs.encodec.codec import BANDWIDTHS
from melodjinn_jax.config import CodecConfig
from melodjinn_jax.data.audio import HOP_LENGTH, to_float32
from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.decide import Kept
from melodjinn_jax.ingest.scan import SILENT_PEAK, audio_file
from melodjinn_jax.validation import check_codec

CodecName = Literal["fitted", "encodec_24khz"]
_FIT_CLIPS = 512
_FIT_FRAMES = 96
_TRIES = 8


@dataclass(frozen=True)
class CodecOptions:
    """Which codec encodes the tracks."""

    codec: CodecName = "fitted"
    """The codec: fitted on these recordings, or EnCodec 24 kHz with its published weights."""
    bandwidth: float = 3.0
    """kbps of EnCodec: 1.5, 3, 6, 12 or 24."""
    codec_weights: str = ""
    """Safetensors file with EnCodec's published weights; empty: from the Hub."""
    fit: CodecConfig = field(default_factory=lambda: CodecConfig(codebook_size=1024, num_codebooks=4, steps=200))
    """The fitted codec; at first the rate of EnCodec at 3 kbps."""


def check_options(options: CodecOptions) -> None:
    """Raise `UserError` for options that cannot work, before any recording is touched."""
    if options.codec == "fitted":
        check_codec(options.fit, "--fit")
        if options.codec_weights:
            raise UserError("--codec-weights is of no use to --codec fitted: give --codec encodec_24khz with it")
    elif options.bandwidth not in BANDWIDTHS:
        choices = ", ".join(f"{kbps:g}" for kbps in BANDWIDTHS)
        raise UserError(f"--bandwidth {options.bandwidth:g}: EnCodec has {choices} kbps")


def make_codec(options: CodecOptions, train: Sequence[Kept], folder: Path, progress: Callable[[str], None]) -> Codec:
    """The codec that the options ask for.

    Args:
      options: say which.
      train: the tracks of the training split, which the fitted codec is fitted on.
      folder: where their scans are.
      progress: told a line at each stage.

    Raises:
      UserError: the settings cannot work, or the weights cannot be had.
    """
    if options.codec == "fitted":
        return fit_codec(_sample(train, folder, options.fit.seed), options.fit, progress, MusicCodec)
    return EncodecCodec.from_published(options.bandwidth, options.codec_weights or None)


def _sample(train: Sequence[Kept], folder: Path, seed: int) -> np.ndarray:
    """Clips float32 `[B, F * H]` from random places of the training tracks; silence is drawn again."""
    rng = np.random.default_rng(seed)
    length = _FIT_FRAMES * HOP_LENGTH
    samples = np.array([kept.scan.samples for kept in train], np.float64)
    clips = np.zeros((_FIT_CLIPS, length), np.int16)
    chosen = np.sort(rng.choice(len(train), _FIT_CLIPS, p=samples / samples.sum()))  # each file is opened once
    for track in np.unique(chosen):
        scan = train[track].scan
        with soundfile.SoundFile(audio_file(folder, scan.id)) as file:
            for clip in np.flatnonzero(chosen == track):
                for _ in range(_TRIES):
                    file.seek(scan.start + int(rng.integers(max(1, scan.samples - length + 1))))
                    sound = file.read(min(length, scan.samples), dtype="int16")
                    if np.abs(sound.astype(np.int32)).max() >= SILENT_PEAK:
                        break
                clips[clip, : len(sound)] = sound
    return to_float32(clips)
