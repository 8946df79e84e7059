"""Decoding one recording to 24 kHz mono, block by block: memory does not grow with its length.

A recording decodes whole or is refused with the reason; it is never shortened silently.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import TextIO

import numpy as np
import scipy.signal
import soundfile

from melodjinn_jax.data.audio import SAMPLE_RATE
from melodjinn_jax.ingest.containers import Container, read_container

BLOCK_SECONDS = 10  # the same always: how an MP3 rounds depends on it
_RATES = (8000, 192_000)
_MAX_CHANNELS = 8
_UNKNOWN_FRAMES = 1 << 40  # libsndfile states about 2^63 frames where it found no length
# What a decoder may leave out of its first and last blocks, beside a share for rounded headers.
_SLACK_SECONDS, _SLACK_SHARE = 0.3, 0.005
# Catalogues round, and count silence that was cut off later.
_CATALOGUE_SLACK_SECONDS, _CATALOGUE_SLACK_SHARE = 3.0, 0.1
_FILTER_REACH = 10  # periods of the lower rate on each side, the length that scipy.signal.resample_poly takes


class RejectedError(Exception):
    """A recording that cannot be used. Its text is `kind: detail`, the kind one of a few, the detail without names."""

    def __init__(self, kind: str, detail: str):
        super().__init__(f"{kind}: {detail}")


@dataclass(frozen=True)
class Header:
    """What a file says of itself before it is decoded."""

    format: str
    sample_rate: int
    channels: int
    frames: int | None
    """None where the file does not say."""
    artist: str
    title: str
    licence: str


def read_header(path: Path) -> Header:
    """Format, rate, channels, length and tags of a file. Raises `RejectedError` if it is no readable audio."""
    try:
        _check_there(path)
        with soundfile.SoundFile(os.fsencode(path)) as file:  # as bytes, for a name need not be text
            frames = file.frames if 0 < file.frames < _UNKNOWN_FRAMES else None
            licence = file.license.strip() or file.copyright.strip()
            header = Header(
                file.format, file.samplerate, file.channels, frames, file.artist.strip(), file.title.strip(), licence
            )
    except OSError as error:
        raise RejectedError("unreadable", f"it cannot be read ({error.strerror or error})") from error
    except (soundfile.SoundFileError, ValueError, RuntimeError, TypeError) as error:
        # libsndfile's own words mislead: of a damaged MP3 it says that the file does not exist.
        raise RejectedError("not audio", _not_audio(path)) from error
    if not _RATES[0] <= header.sample_rate <= _RATES[1]:
        raise RejectedError("unsupported", f"{header.sample_rate} Hz is not within {_RATES[0]} to {_RATES[1]} Hz")
    if not 1 <= header.channels <= _MAX_CHANNELS:
        raise RejectedError("unsupported", f"it has {header.channels} channels, more than {_MAX_CHANNELS}")
    return header


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise RejectedError("missing", "it is not a file")
    if path.stat().st_size == 0:
        raise RejectedError("empty", "the file has no bytes")


def _not_audio(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(256).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page"
    return "its format is not known, or its header is damaged"


def decode_blocks(path: Path, stated_seconds: float | None = None) -> Iterator[np.ndarray]:
    """The sound of a file as float32 blocks `[samples]` at 24 kHz, the channels averaged; levels are as decoded.

    Args:
      path: any file that libsndfile reads.
      stated_seconds: the duration that the source's catalogue gives, if it does.

    Raises:
      RejectedError: when it is opened, or after any block: the file cannot be decoded, to its end and to the length
        that its header, its container and the catalogue state, or it holds no samples or some that are not finite.
    """
    container = _container_of(path)  # first, for it knows what is wrong where libsndfile only refuses
    header = read_header(path)
    resampler = Resampler(header.sample_rate, SAMPLE_RATE)
    decoded = 0
    for block in _native_blocks(path, header):
        decoded += len(block)
        with np.errstate(all="ignore"):  # what overflows here is reported as not finite
            mono = block.mean(axis=1)
            resampled = resampler.push(mono)
        if not (np.isfinite(mono).all() and np.isfinite(resampled).all()):
            raise RejectedError("damaged", "it holds samples that are not finite numbers (NaN or Inf)")
        if len(resampled):
            yield resampled
    if decoded == 0:
        raise RejectedError("empty", "it holds no samples")
    if len(last := resampler.finish()):
        yield last
    _check_length(decoded / header.sample_rate, header, container, stated_seconds)


def _container_of(path: Path) -> Container:
    try:
        _check_there(path)
        container = read_container(path)
    except OSError as error:
        raise RejectedError("unreadable", f"it cannot be read ({error.strerror or error})") from error
    if container.fault:
        raise RejectedError(*container.fault)
    return container


def _native_blocks(path: Path, header: Header) -> Iterator[np.ndarray]:
    """float32 `[samples, channels]` at the file's own rate."""
    decoded = 0
    try:
        with soundfile.SoundFile(os.fsencode(path)) as file:
            # Never as many as the header states: a damaged one may state any number.
            while len(block := file.read(BLOCK_SECONDS * header.sample_rate, dtype="float32", always_2d=True)):
                decoded += len(block)
                yield block
    except OSError as error:
        raise RejectedError("unreadable", f"it cannot be read ({error.strerror or error})") from error
    except (soundfile.SoundFileError, ValueError, RuntimeError, TypeError) as error:
        raise RejectedError("damaged", f"its decoder fails after {decoded / header.sample_rate:.1f} s") from error


def _check_length(seconds: float, header: Header, container: Container, catalogue: float | None) -> None:
    """Too long is no fault: headers and catalogues err, and what was decoded is there."""
    stated = {
        "its header states": header.frames and header.frames / header.sample_rate,
        "its frames hold": container.seconds,
    }
    for who, length in stated.items():
        if length and seconds < length * (1 - _SLACK_SHARE) - _SLACK_SECONDS:
            raise RejectedError("incomplete", f"only {seconds:.1f} s of the {length:.1f} s that {who} can be decoded")
    if catalogue and seconds < catalogue * (1 - _CATALOGUE_SLACK_SHARE) - _CATALOGUE_SLACK_SECONDS:
        raise RejectedError("incomplete", f"it lasts {seconds:.1f} s, but its catalogue states {catalogue:.1f} s")


@contextlib.contextmanager
def quiet_decoders() -> Iterator[TextIO]:
    """libmpg123 writes remarks straight to standard error: they go nowhere. What is yielded goes there, and so does
    what Python writes to `sys.stderr`, such as why a download waits.

    For the whole process, so not for several threads at once.
    """
    sys.stderr.flush()
    terminal = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        with (
            open(terminal, "w", buffering=1, errors="backslashreplace", closefd=False) as stream,
            contextlib.redirect_stderr(stream if _is_standard_error(sys.stderr) else sys.stderr),
        ):
            yield stream
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _is_standard_error(stream: TextIO) -> bool:
    """Whether a stream is the process's standard error, and not what a caller has put in its place."""
    try:
        return stream.fileno() == 2
    except OSError:
        return False


class Resampler:
    """`scipy.signal.resample_poly` of a stream: what comes out block by block is what it makes of the whole, exactly.

    A polyphase filter at the ratio of the rates; between blocks it keeps the input that later outputs still need.
    """

    def __init__(self, rate: int, new_rate: int):
        divisor = gcd(rate, new_rate)
        self._up, self._down = new_rate // divisor, rate // divisor
        self._reach = _FILTER_REACH * max(self._up, self._down)  # of the filter, at the common multiple of the rates
        if self._up != self._down:
            cutoff = 1 / max(self._up, self._down)
            taps = scipy.signal.firwin(2 * self._reach + 1, cutoff, window=("kaiser", 5.0)).astype(np.float32)
            # Zeros before the taps align its outputs with a multiple of `down`.
            self._lead = -self._reach % self._down
            self._filter = np.concatenate([np.zeros(self._lead, np.float32), taps * np.float32(self._up)])
        self._kept = np.zeros(0, np.float32)
        self._kept_from = 0
        self._made = 0

    def push(self, block: np.ndarray) -> np.ndarray:
        """The next float32 `[samples]` in; those that it settles out."""
        if self._up == self._down:
            return block
        self._kept = np.concatenate([self._kept, block])
        received = self._kept_from + len(self._kept)
        # Output n is centred on sample n * down / up of the input and reaches `reach / up` samples beyond it.
        settled = ((received - 1) * self._up - self._reach) // self._down + 1
        return self._make(max(settled, self._made))

    def finish(self) -> np.ndarray:
        """What the last samples still owe; the sound beyond them is silence. As many in all as `resample_poly`."""
        received = self._kept_from + len(self._kept)
        return np.zeros(0, np.float32) if self._up == self._down else self._make(-(-received * self._up // self._down))

    def _make(self, stop: int) -> np.ndarray:
        """Outputs from the first one not yet made up to `stop`."""
        first = self._made
        shift = (self._reach + self._lead) // self._down  # outputs of the causal filter before output 0
        begin = self._kept_from * self._up // self._down  # the output at the first kept sample: whole, see below
        filtered = scipy.signal.upfirdn(self._filter, self._kept, self._up, self._down)
        short = max(0, stop - begin + shift - len(filtered))
        made = np.pad(filtered, (0, short))[first - begin + shift : stop - begin + shift]
        self._made = stop
        # Kept from a multiple of `down`, so that it falls on an output.
        needed = max(0, (stop * self._down - self._reach) // self._up)
        drop = needed // self._down * self._down - self._kept_from
        if drop > 0:
            self._kept = self._kept[drop:]
            self._kept_from += drop
        return made.astype(np.float32)
