"""What every codec offers, and how a codec lies on disk: `codec.json` and `codec.npz`, under one digest."""

import hashlib
import io
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from melodjinn_jax.errors import UserError

HEADER_FILE = "codec.json"
ARRAYS_FILE = "codec.npz"
_ROWS = 16


class CodecState(NamedTuple):
    """What a stream carries from chunk to chunk, for each way; every array in it has the batch in front."""

    encoder: Any
    decoder: Any


Advance = Callable[[CodecState, jax.Array], tuple[CodecState, jax.Array]]


class Codec(ABC):
    """Waveforms to codes and back, frame by frame.

    Causal both ways: the codes of frame f depend on samples of frames <= f only, and the sound of frame f on codes of
    frames <= f only; the first `start_frames` frames of a clip may depend on each other. So a stream of chunks with
    carried state, the first of them of `start_frames` or more, gives what the whole clip gives, without delay.
    """

    kind: ClassVar[str]
    sample_rate: int
    hop_length: int
    num_codebooks: int
    codebook_size: int
    start_frames: int
    """Frames that the first chunk of a stream must hold for the stream to equal the whole clip."""
    chunk_frames: int
    """Frames that `encode` and `decode` take at a time, so that the length of a clip costs no memory."""

    def __init__(self, header: dict[str, Any], arrays: dict[str, np.ndarray]):
        self._files = _to_files({"kind": self.kind, **header}, arrays)
        self.digest = json.loads(self._files[HEADER_FILE])["digest"]
        """SHA-256, in hex, of all that is saved: codes of one digest mean nothing to a codec of another."""

    @classmethod
    @abstractmethod
    def from_arrays(cls, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> "Codec":
        """The codec that was saved as `header` and `arrays`."""

    @abstractmethod
    def initial_state(self, batch: int) -> CodecState:
        """The state before the first chunk of `batch` streams."""

    @abstractmethod
    def encode_chunk(self, state: CodecState, waveform: jax.Array) -> tuple[CodecState, jax.Array]:
        """The new state, and codes int32 [B, F, Q] of the next F frames, float32 [B, F * H]; pure and compiled."""

    @abstractmethod
    def decode_chunk(self, state: CodecState, codes: jax.Array) -> tuple[CodecState, jax.Array]:
        """The new state, and the sound float32 [B, F * H] of the next F frames' codes [B, F, Q]; pure and compiled."""

    def encode(self, waveform: np.ndarray) -> np.ndarray:
        """float32 [B, F * H] -> codes int32 [B, F, Q]. Raises `UserError` if it is not a whole number of frames."""
        waveform = np.asarray(waveform, np.float32)
        if waveform.ndim != 2 or waveform.shape[1] % self.hop_length or not waveform.shape[1]:
            raise UserError(
                f"a waveform {list(waveform.shape)} is no batch of whole frames of {self.hop_length} samples"
            )
        frames = waveform.reshape(len(waveform), -1, self.hop_length)

        def advance(state: CodecState, chunk: jax.Array) -> tuple[CodecState, jax.Array]:
            return self.encode_chunk(state, chunk.reshape(len(chunk), -1))

        return self._in_rows(advance, frames)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes int [B, F, Q] -> float32 [B, F * H]. Raises `UserError` for another shape, or without a frame."""
        codes = np.asarray(codes, np.int32)
        if codes.ndim != 3 or codes.shape[2] != self.num_codebooks or not codes.shape[1]:
            raise UserError(f"codes {list(codes.shape)} are not of the shape [batch, frames, {self.num_codebooks}]")
        return self._in_rows(self.decode_chunk, codes)

    def _in_rows(self, advance: Advance, frames: np.ndarray) -> np.ndarray:
        """A fixed number of rows at a time, so that large batches of any size share one compiled function."""
        if len(frames) <= _ROWS:
            return self._in_chunks(advance, frames)
        padded = np.pad(frames, [(0, -len(frames) % _ROWS), (0, 0), (0, 0)])
        rows = [self._in_chunks(advance, padded[i : i + _ROWS]) for i in range(0, len(padded), _ROWS)]
        return np.concatenate(rows)[: len(frames)]

    def _in_chunks(self, advance: Advance, frames: np.ndarray) -> np.ndarray:
        """`chunk_frames` frames [B, F, ...] at a time, with carried state; the last chunk is padded, then cut."""
        batch, total = frames.shape[:2]
        length = min(total, self.chunk_frames)
        state, results = self.initial_state(batch), []
        for start in range(0, total, length):
            chunk = frames[:, start : start + length]
            padded = np.pad(chunk, [(0, 0), (0, length - chunk.shape[1]), (0, 0)])
            state, result = advance(state, jnp.asarray(padded))
            results.append(np.asarray(result))
        whole = np.concatenate(results, axis=1)
        return whole[:, : whole.shape[1] * total // (len(results) * length)]

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
