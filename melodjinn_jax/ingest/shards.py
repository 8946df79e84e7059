"""The second pass: one shard of the DATASET from the scanned tracks that belong to it.

A shard is a unit of work: what it holds depends on its tracks, the codec and the kind of device, and on nothing else.
So a unit may be done anywhere, again, or last, and the DATASET is the same.
"""

import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import soundfile

from melodjinn_jax.codecs import Codec
from melodjinn_jax.data.audio import to_float32
from melodjinn_jax.data.dataset import shard_name
from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.data.records import Record, shard_index
from melodjinn_jax.data.writer import Shard, write_shard
from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.scan import SILENT_PEAK, audio_file

TRACKS, SHARDS, DATASET = "tracks", "shards", "dataset"
"""What lies in the folder of an unfinished DATASET: scans, notes on finished shards, and what it will be."""
ENCODE_TRACKS = 8
"""Tracks that are encoded side by side. A constant, for the arithmetic of one may depend on how many there are."""


@dataclass(frozen=True)
class ShardTrack:
    """A track that a shard takes in."""

    id: str
    start: int
    """The first sample of the scanned sound that is taken; a multiple of the hop length."""
    samples: int
    provenance: dict[str, Any]


@dataclass(frozen=True)
class ShardUnit:
    """All that a machine must know to write a shard. It pickles."""

    split: str
    index: int
    num_shards: int
    chunk_frames: int
    tracks: tuple[ShardTrack, ...]

    @property
    def name(self) -> str:
        return shard_name(self.split, self.index, self.num_shards)


@dataclass
class Counts:
    """What was done to tracks to make records of them."""

    silent_records: int = 0
    """Left out."""
    repeated_frames: int = 0
    """Frames in two records: the last one of a track ends where the track does, and overlaps the one before."""


def write_unit(unit: ShardUnit, folder: Path, codec: Codec, tell: Callable[[], object] = lambda: None) -> None:
    """Write a shard into `folder/dataset` and, after it, what is in it into `folder/shards`; nothing if that is there.

    The scanned tracks lie in `folder/tracks`. `tell` is called after each record. Raises `OSError` if `folder` cannot
    be written.
    """
    if read_unit(unit, folder) is not None:
        return
    counts = Counts()
    records = _told(unit_records(unit, folder / TRACKS, codec, counts), tell)
    shard = write_shard(folder / DATASET / unit.name, records)
    done = json.dumps({"shard": asdict(shard), "counts": asdict(counts)})
    write_atomically(folder / SHARDS / f"{unit.name}.json", done.encode())


def _told(records: Iterator[Record], tell: Callable[[], object]) -> Iterator[Record]:
    for record in records:
        yield record
        tell()


def read_unit(unit: ShardUnit, folder: Path) -> tuple[Shard, Counts] | None:
    """What was written for a unit, if it was."""
    try:
        done = json.loads((folder / SHARDS / f"{unit.name}.json").read_bytes())
    except FileNotFoundError:
        return None
    return Shard(**done["shard"]), Counts(**done["counts"])


def unit_records(unit: ShardUnit, tracks: Path, codec: Codec, counts: Counts) -> Iterator[Record]:
    """The records of a unit: its tracks, several side by side, chunk after chunk. `counts` is added to."""
    # The longest first, so that all lanes end at about the same time.
    waiting = deque(sorted(unit.tracks, key=lambda track: (-track.samples, track.id)))
    # Fewer lanes for few tracks; the number depends on the unit alone, and so does the arithmetic.
    lanes: list[_Lane | None] = [None] * min(ENCODE_TRACKS, len(waiting))
    encoder = ChunkEncoder(codec, len(lanes))
    silence = np.zeros(unit.chunk_frames * codec.hop_length, np.int16)
    while True:
        for index, lane in enumerate(lanes):
            if lane is None or lane.is_done:
                following = waiting.popleft() if waiting else None
                lanes[index] = _Lane(following, tracks, unit.chunk_frames, codec.hop_length) if following else None
                encoder.restart(index)
        if not any(lanes):
            return
        chunks = [lane.read() if lane else silence for lane in lanes]
        codes = encoder(to_float32(np.stack(chunks))).astype(np.uint16)
        for lane, waveform, code in zip(lanes, chunks, codes, strict=True):
            if lane:
                yield from lane.records(waveform, code, counts)


class ChunkEncoder:
    """From the next chunks of several streams, float32 `[streams, F * H]`, to their codes `[streams, F, Q]`.

    The codes are those of the whole streams: the codec's state is carried from chunk to chunk.
    """

    def __init__(self, codec: Codec, streams: int):
        self._codec = codec
        self._state = self._initial = codec.initial_state(streams)

    def restart(self, stream: int) -> None:
        """The next chunk of a stream is the first of another one."""
        self._state = jax.tree.map(
            lambda now, new: jnp.asarray(now).at[stream].set(new[stream]), self._state, self._initial
        )

    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        size, codes = self._codec.chunk_frames * self._codec.hop_length, []
        for start in range(0, waveform.shape[1], size):
            self._state, piece = self._codec.encode_chunk(self._state, jnp.asarray(waveform[:, start : start + size]))
            codes.append(np.asarray(piece))
        return np.concatenate(codes, axis=1)


class _Lane:
    """One track on its way through the encoder."""

    def __init__(self, track: ShardTrack, tracks: Path, chunk_frames: int, hop_length: int):
        self._track, self._size, self._hop = track, chunk_frames, hop_length
        self._frames = math.ceil(track.samples / hop_length)
        self._file = soundfile.SoundFile(audio_file(tracks, track.id))
        self._file.seek(track.start)
        self._done = 0
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def is_done(self) -> bool:
        """Whether the track is at its end."""
        return self._done >= self._frames

    def read(self) -> np.ndarray:
        """The next chunk, int16 `[F * H]`; after the track's end, silence. Raises `UserError` for a damaged scan."""
        size = self._size * self._hop
        wanted = min(size, self._track.samples - self._done * self._hop)
        samples = self._file.read(wanted, dtype="int16")
        if len(samples) < wanted:
            raise UserError(
                f"{self._file.name} is shorter than the scan of it said: remove it and its .json, run again"
            )
        return np.pad(samples, (0, size - len(samples)))

    def records(self, waveform: np.ndarray, codes: np.ndarray, counts: Counts) -> Iterator[Record]:
        """The record of a chunk; that of the last one is as long as any and ends with the track."""
        waveform = waveform.reshape(-1, self._hop)
        fresh = min(self._size, self._frames - self._done)
        if fresh < self._size and self._last:
            counts.repeated_frames += self._size - fresh
            waveform, codes = (
                np.concatenate([last[fresh:], new[:fresh]])
                for last, new in zip(self._last, (waveform, codes), strict=True)
            )
        self._last = waveform, codes
        self._done += fresh
        if self.is_done:
            self._file.close()
        start = self._track.start // self._hop + self._done - self._size
        if np.abs(waveform.astype(np.int32)).max() < SILENT_PEAK:
            counts.silent_records += 1
        else:
            provenance = {**self._track.provenance, "start_frame": start}
            yield Record(f"{self._track.id}/{start:07d}", waveform, codes, provenance=provenance)


def split_units(split: str, tracks: Sequence[ShardTrack], num_shards: int, chunk_frames: int) -> list[ShardUnit]:
    """The units of a split; tracks go to shards by a hash of their id."""
    of_shard: list[list[ShardTrack]] = [[] for _ in range(num_shards)]
    for track in tracks:
        of_shard[shard_index(f"{track.id}/", num_shards)].append(track)
    return [ShardUnit(split, index, num_shards, chunk_frames, tuple(own)) for index, own in enumerate(of_shard)]
