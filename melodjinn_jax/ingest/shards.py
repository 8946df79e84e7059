"""The second pass: one shard of the DATASET from the scanned tracks that belong to it.

A shard is a unit of work: what it holds depends on its tracks, the codec and the kind of device, and on nothing else.
So a unit may be done anywhere, again, or last, and the DATASET is the same.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from melodjinn_jax.codecs import Codec
from melodjinn_jax.data.audio import to_float32
from melodjinn_jax.data.dataset import shard_name
from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.data.records import Record, shard_index
from melodjinn_jax.data.writer import Shard, write_shard
from melodjinn_jax.ingest.scan import SILENT_PEAK, audio_file

TRACKS, SHARDS, DATASET = "tracks", "shards", "dataset"
"""What lies in the folder of an unfinished DATASET: scans, notes on finished shards, and what it will be."""
ENCODE_TRACKS = 8
"""Tracks that are encoded side by side. A constant, for the arithmetic of a row may depend on how many there are."""


@dataclass(frozen=True)
class ShardTrack:
    """A track that a shard takes in."""

    id: str
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
    """The records of a unit: its tracks, a fixed number side by side, chunk after chunk. `counts` is added to."""
    # Tracks of like length side by side waste the least; the rows that stay over are silence.
    order = sorted(unit.tracks, key=lambda track: (-track.samples, track.id))
    for start in range(0, len(order), ENCODE_TRACKS):
        lanes = [_Lane(track, tracks, unit.chunk_frames, codec.hop_length) for track in order[start:][:ENCODE_TRACKS]]
        encode = chunk_encoder(codec, ENCODE_TRACKS)
        for _ in range(max(lane.num_chunks for lane in lanes)):
            chunks = [lane.read() for lane in lanes]
            chunks += [np.zeros_like(chunks[0])] * (ENCODE_TRACKS - len(lanes))
            codes = encode(to_float32(np.stack(chunks)))
            for lane, waveform, code in zip(lanes, chunks, codes, strict=False):
                yield from lane.records(waveform, code.astype(np.uint16), counts)
        for lane in lanes:
            lane.close()


def chunk_encoder(codec: Codec, batch: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function from the next chunks of `batch` streams, float32 `[batch, F * H]`, to their codes `[batch, F, Q]`.

    The codes are those of the whole streams: the codec's state is carried from chunk to chunk, or, where a codec has
    none, as much of the past as its frames can depend on is encoded again.
    """
    stream: Any = codec
    if hasattr(codec, "encode_chunk"):
        state = stream.initial_state(batch)

        def encode_next(waveform: np.ndarray) -> np.ndarray:
            nonlocal state
            size, codes = stream.chunk_frames * stream.hop_length, []
            for start in range(0, waveform.shape[1], size):
                state, piece = stream.encode_chunk(state, waveform[:, start : start + size])
                codes.append(np.asarray(piece))
            return np.concatenate(codes, axis=1)

        return encode_next

    past = np.zeros((batch, stream.receptive_field * stream.hop_length), np.float32)

    def encode_again(waveform: np.ndarray) -> np.ndarray:
        nonlocal past
        joined = np.concatenate([past, waveform], axis=1)
        past = joined[:, -past.shape[1] :]
        return codec.encode(joined)[:, stream.receptive_field :]

    return encode_again


class _Lane:
    """One track on its way through the encoder."""

    def __init__(self, track: ShardTrack, tracks: Path, chunk_frames: int, hop_length: int):
        self._track, self._size, self._hop = track, chunk_frames, hop_length
        self._frames = math.ceil(track.samples / hop_length)
        self.num_chunks = math.ceil(self._frames / chunk_frames)
        self._file = soundfile.SoundFile(audio_file(tracks, track.id))
        self._done = 0
        self._last: tuple[np.ndarray, np.ndarray] | None = None

    def read(self) -> np.ndarray:
        """The next chunk, int16 `[F * H]`; after the track's end, silence."""
        size = self._size * self._hop
        samples = self._file.read(size, dtype="int16")
        return np.pad(samples, (0, size - len(samples)))

    def records(self, waveform: np.ndarray, codes: np.ndarray, counts: Counts) -> Iterator[Record]:
        """The record of a chunk; that of the last one is as long as any and ends with the track."""
        waveform = waveform.reshape(-1, self._hop)
        fresh = min(self._size, self._frames - self._done)
        if fresh <= 0:
            return
        if fresh < self._size and self._last:
            counts.repeated_frames += self._size - fresh
            waveform, codes = (
                np.concatenate([last[fresh:], new[:fresh]])
                for last, new in zip(self._last, (waveform, codes), strict=True)
            )
        self._last = waveform, codes
        self._done += fresh
        start = self._done - self._size
        if np.abs(waveform.astype(np.int32)).max() < SILENT_PEAK:
            counts.silent_records += 1
        else:
            provenance = {**self._track.provenance, "start_frame": start}
            yield Record(f"{self._track.id}/{start:07d}", waveform, codes, provenance=provenance)

    def close(self) -> None:
        self._file.close()


def split_units(split: str, tracks: Sequence[ShardTrack], num_shards: int, chunk_frames: int) -> list[ShardUnit]:
    """The units of a split; tracks go to shards by a hash of their id."""
    of_shard: list[list[ShardTrack]] = [[] for _ in range(num_shards)]
    for track in tracks:
        of_shard[shard_index(f"{track.id}/", num_shards)].append(track)
    return [ShardUnit(split, index, num_shards, chunk_frames, tuple(own)) for index, own in enumerate(of_shard)]
