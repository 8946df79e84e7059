"""The first pass over one track: decode it whole, judge it, and keep its 24 kHz sound losslessly for the second pass.

What a track gives lies under its id in a folder: `ID.flac`, and, written last, `ID.json`. So a scan is done once, on
any machine that sees the folder, however often the work is interrupted; and of a download nothing else need be kept.
"""

import base64
import errno
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from melodjinn_jax.data.audio import HOP_LENGTH, SAMPLE_RATE, SILENCE_DB, to_float32, to_int16
from melodjinn_jax.data.files import file_sha256, write_atomically
from melodjinn_jax.ingest.decode import RejectedError, decode_blocks, read_header
from melodjinn_jax.ingest.fingerprint import Fingerprinter
from melodjinn_jax.ingest.track import Track

SILENT_PEAK = 4
"""int16 units, -78 dB of full scale: a recording that never reaches it is silent."""
_MARGIN_FRAMES = 19  # .25 s of the silence at the ends of a recording stay
_ROOM = 1 << 20  # bytes below which a disk counts as full
_WORDS = np.dtype("<u4")


@dataclass(frozen=True)
class Scan:
    """What was found out about a track."""

    id: str
    reason: str | None = None
    """Why it cannot be used, `kind: detail`."""
    start: int = 0
    """Where what is used of it begins, in samples at 24 kHz; a multiple of `HOP_LENGTH`."""
    samples: int = 0
    """How many samples are used."""
    trimmed: int = 0
    """How many are not: silence at both ends."""
    peak: float = 0.0
    """As decoded, of full scale."""
    gain: float = 1.0
    """What its samples were multiplied by so that the peak fits 16 bits: 1, or less."""
    file_sha256: str = ""
    audio_sha256: str = ""
    """Of the int16 samples at 24 kHz."""
    original: dict[str, Any] | None = None
    """Format, sample rate and channels of the file."""
    words: str = ""
    """The fingerprint, as base64."""

    @property
    def fingerprint(self) -> np.ndarray:
        """The fingerprint's words, uint32."""
        return np.frombuffer(base64.b64decode(self.words), _WORDS)


def audio_file(folder: Path, track_id: str) -> Path:
    """Where the sound of a scanned track lies."""
    return folder / f"{track_id}.flac"


def read_scan(folder: Path, track_id: str) -> Scan | None:
    """The scan of a track, if it was done."""
    try:
        return Scan(**json.loads((folder / f"{track_id}.json").read_bytes()))
    except FileNotFoundError:
        return None


def write_scan(folder: Path, scan: Scan) -> None:
    """Keep a scan. Raises `OSError` if the folder cannot be written."""
    write_atomically(folder / f"{scan.id}.json", json.dumps(asdict(scan)).encode())


def scan_track(track: Track, path: Path, folder: Path) -> Scan:
    """Scan the audio file of a track and keep what comes of it in `folder`.

    Raises `OSError` if `folder` cannot be written; whatever is wrong with the audio is said in the scan.
    """
    partial = folder / f".{track.id}.partial"
    try:
        scan = _scan(track, path, partial)
        os.replace(partial, audio_file(folder, track.id))
    except RejectedError as error:
        partial.unlink(missing_ok=True)
        scan = Scan(track.id, reason=str(error))
    write_scan(folder, scan)
    return scan


def _scan(track: Track, path: Path, target: Path) -> Scan:
    found = _sha256(path)
    if track.sha256 and found != track.sha256.lower():
        raise RejectedError("checksum", "the file is not the one whose checksum its source publishes")
    fingerprinter = Fingerprinter()
    scan = _transcode(Scan(track.id, file_sha256=found), track, path, target, fingerprinter)
    if scan.peak > 1:
        # Lossy coders overshoot. One gain for the whole track keeps its dynamics, where clipping would bend the peaks.
        scan = _transcode(replace(scan, gain=1 / scan.peak), track, path, target, None)
    if scan.peak * scan.gain * 32768 < SILENT_PEAK:
        raise RejectedError("silent", f"its channels' average never exceeds {scan.peak:.1g} of full scale")
    header = read_header(path)
    return replace(
        scan,
        original={"format": header.format, "sample_rate": header.sample_rate, "channels": header.channels},
        words=base64.b64encode(fingerprinter.words().astype(_WORDS).tobytes()).decode(),
    )


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise RejectedError("unreadable", f"it cannot be read ({error.strerror or error})") from error


def _transcode(scan: Scan, track: Track, path: Path, target: Path, fingerprinter: Fingerprinter | None) -> Scan:
    """Write the sound under the scan's gain as 16-bit FLAC, and measure it."""
    digest, edges, peak = hashlib.sha256(), _Edges(), 0.0
    with _Flac(target) as output:
        for block in decode_blocks(path, track.seconds):
            if fingerprinter:
                fingerprinter.push(block)
            peak = max(peak, float(np.abs(block).max()))
            sound = to_int16(block * np.float32(scan.gain))
            digest.update(sound.astype("<i2").tobytes())
            edges.push(sound)
            output.write(sound)
    start, stop = edges.found()
    trimmed = edges.samples - (stop - start)
    return replace(scan, start=start, samples=stop - start, trimmed=trimmed, peak=peak, audio_sha256=digest.hexdigest())


class _Edges:
    """Where a stream of int16 blocks begins to sound, and where it ends.

    What lies outside is no music: a model that learns from seconds of it stays silent once it has fallen silent.
    """

    def __init__(self) -> None:
        self.samples = 0
        self._rest = np.zeros(0, np.int16)
        self._first = self._last = -1  # of the frames that sound

    def push(self, block: np.ndarray) -> None:
        """The next samples."""
        begin = (self.samples - len(self._rest)) // HOP_LENGTH
        sound = np.concatenate([self._rest, block])
        frames, self._rest = np.split(sound, [len(sound) // HOP_LENGTH * HOP_LENGTH])
        self._judge(begin, frames)
        self.samples += len(block)

    def _judge(self, begin: int, frames: np.ndarray) -> None:
        """Look at whole frames, of which the first is number `begin`."""
        power = np.mean(to_float32(frames).reshape(-1, HOP_LENGTH) ** 2, axis=1)
        loud = begin + np.flatnonzero(power > 10 ** (SILENCE_DB / 10))
        if len(loud):
            self._last = int(loud[-1])
            self._first = int(loud[0]) if self._first < 0 else self._first

    def found(self) -> tuple[int, int]:
        """At the stream's end, the first sample that is used and the one after the last.

        All are used, if none of it is loud enough to tell.
        """
        if len(self._rest):
            self._judge(self.samples // HOP_LENGTH, np.pad(self._rest, (0, HOP_LENGTH - len(self._rest))))
        if self._first < 0:
            return 0, self.samples
        stop = (self._last + 1 + _MARGIN_FRAMES) * HOP_LENGTH
        return max(0, self._first - _MARGIN_FRAMES) * HOP_LENGTH, min(self.samples, stop)


class _Flac:
    """A mono 16-bit FLAC file at 24 kHz to write; its errors are `OSError`s that say whether the disk is full."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> "_Flac":
        try:
            self._file = soundfile.SoundFile(self._path, "w", SAMPLE_RATE, 1, subtype="PCM_16", format="FLAC")
        except soundfile.SoundFileError as error:
            raise self._os_error() from error
        return self

    def write(self, samples: np.ndarray) -> None:
        try:
            self._file.write(samples)
        except soundfile.SoundFileError as error:
            raise self._os_error() from error

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _os_error(self) -> OSError:
        is_full = shutil.disk_usage(self._path.parent).free < _ROOM
        code = errno.ENOSPC if is_full else errno.EIO
        return OSError(code, os.strerror(code), str(self._path))
