"""What every codec offers, and how a codec lies on disk: `codec.json` and `codec.npz`, under one digest."""

import hashlib
import io
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from melodjinn_jax.errors import UserError

HEADER_FILE = "codec.json"
ARRAYS_FILE = "codec.npz"
_CHUNK = 16


class Codec(ABC):
    """Waveforms to codes and back, frame by frame.

    Causal both ways: the codes of frame f depend on samples of frames <= f only, and the sound of frame f on codes of
    frames f - receptive_field + 1 .. f only. So decoding the last `receptive_field` frames gives the newest frame of
    a stream, the same as in the whole clip, without delay.
    """

    kind: ClassVar[str]
    sample_rate: int
    hop_length: int
    num_codebooks: int
    codebook_size: int
    receptive_field: int
    """Frames of codes that one decoded frame depends on, itself included."""

    def __init__(self, header: dict[str, Any], arrays: dict[str, np.ndarray]):
        self._files = _to_files({"kind": self.kind, **header}, arrays)
        self.digest = json.loads(self._files[HEADER_FILE])["digest"]
        """SHA-256, in hex, of all that is saved: codes of one digest mean nothing to a codec of another."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> "Codec":
        """The codec that was saved as `header` and `arrays`."""

    @abstractmethod
    def _encode(self, waveform: np.ndarray) -> np.ndarray: ...

    @abstractmethod
    def _decode(self, codes: np.ndarray) -> np.ndarray: ...

    def encode(self, waveform: np.ndarray) -> np.ndarray:
        """float32 [B, F * H] -> codes int32 [B, F, Q]. Raises `UserError` if it is not a whole number of frames."""
        waveform = np.asarray(waveform, np.float32)
        if waveform.ndim != 2 or waveform.shape[1] % self.hop_length:
            raise UserError(
                f"a waveform {list(waveform.shape)} is no batch of whole frames of {self.hop_length} samples"
            )
        return _in_chunks(self._encode, waveform)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes int [B, F, Q] -> float32 [B, F * H]. Before the first frame, the decoder takes silence."""
        codes = np.asarray(codes, np.int32)
        if codes.ndim != 3 or codes.shape[2] != self.num_codebooks:
            raise UserError(f"codes {list(codes.shape)} are not of the shape [batch, frames, {self.num_codebooks}]")
        return _in_chunks(self._decode, codes)

    def save(self, folder: str | Path) -> None:
        """Write `codec.json` and `codec.npz` into a folder, which is made if it does not exist."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self._files.items():
            (folder / name).write_bytes(content)


def require_same_codec(expected_digest: str, codec: Codec, what: str) -> None:
    """Raise `UserError` if `what` (a model, a DATASET) was made with another codec than this one."""
    if codec.digest != expected_digest:
        raise UserError(
            f"{what} was made with the codec {expected_digest[:12]}, but this is the codec {codec.digest[:12]}: "
            "use the codec that lies beside it"
        )


def read_codec_files(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header (with its `kind`) and arrays of a saved codec. Raises `UserError` if a file is missing or damaged."""
    damaged = UserError(f"{folder} holds a damaged codec: copy it again from where it was made, or fit it again")
    try:
        files = {name: (folder / name).read_bytes() for name in (HEADER_FILE, ARRAYS_FILE)}
    except OSError as error:
        raise UserError(f"{folder} holds no codec ({HEADER_FILE}, {ARRAYS_FILE}): give the folder of one") from error
    try:
        header = json.loads(files[HEADER_FILE])
        del header["digest"]
        # Compared as bytes, so that a change anywhere in the header shows as one in the arrays does.
        if _header_file(header, files[ARRAYS_FILE]) != files[HEADER_FILE]:
            raise damaged
        with np.load(io.BytesIO(files[ARRAYS_FILE])) as arrays:
            return header, dict(arrays)
    except (ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise damaged from error


def _to_files(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    buffer = io.BytesIO()
    # In the order of their names, so that a codec read back is saved as the same bytes.
    np.savez(buffer, allow_pickle=False, **{name: arrays[name] for name in sorted(arrays)})
    content = buffer.getvalue()
    return {HEADER_FILE: _header_file(header, content), ARRAYS_FILE: content}


def _header_file(header: dict[str, Any], arrays_file: bytes) -> bytes:
    text = json.dumps(header, sort_keys=True)
    digest = hashlib.sha256(text.encode() + arrays_file).hexdigest()
    return json.dumps({**header, "digest": digest}, sort_keys=True, indent=1).encode()


def _in_chunks(function: Callable[[np.ndarray], np.ndarray], batch: np.ndarray) -> np.ndarray:
    """Apply a compiled function to a fixed number of rows at a time, so that large batches of any size share one."""
    if len(batch) <= _CHUNK:
        return np.asarray(function(batch))
    padded = np.pad(batch, [(0, -len(batch) % _CHUNK)] + [(0, 0)] * (batch.ndim - 1))
    chunks = [np.asarray(function(padded[i : i + _CHUNK])) for i in range(0, len(padded), _CHUNK)]
    return np.concatenate(chunks)[: len(batch)]
