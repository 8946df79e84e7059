"""One record of a DATASET: its schema, its bytes, its shard, and random access to the records of a split.

Arrays are little-endian bytes in `tfds.features.Text` fields: TFDS reads those without TensorFlow, and numpy views
them without a copy, where a `Tensor` feature is parsed number by number.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, SupportsIndex

import grain
import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from tensorflow_datasets.proto import tf_example_pb2

from melodjinn_jax.errors import UserError

FEATURES = tfds.features.FeaturesDict(
    {
        "waveform": tfds.features.Text(doc="little-endian int16 [frames, hop_length]"),
        "codes": tfds.features.Text(doc="little-endian uint16 [frames, codebooks]"),
        "ground_truth": tfds.features.Text(doc="what is known to happen in this record, as a JSON object"),
        "provenance": tfds.features.Text(doc="where this record is from and whose it is, as a JSON object"),
        "id": tfds.features.Text(doc="track, or track/chunk"),
    }
)
FIELDS = tuple(FEATURES)
_JSON_FIELDS = ("ground_truth", "provenance")


@dataclass(frozen=True, eq=False)
class Record:
    """A fixed-length chunk of sound: `waveform` int16 `[F, H]`, `codes` uint16 `[F, Q]`, and what is known of it.

    `ground_truth` says what happens in it, which only a made world knows; `provenance` where it is from.
    """

    id: str
    waveform: np.ndarray
    codes: np.ndarray
    ground_truth: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)


def serialize(record: Record) -> bytes:
    """The record as a serialised `tf.train.Example`, the same bytes in every process."""
    values = {
        "waveform": record.waveform.astype("<i2").tobytes(),
        "codes": record.codes.astype("<u2").tobytes(),
        **{name: json.dumps(getattr(record, name)).encode() for name in _JSON_FIELDS},
        "id": record.id.encode(),
    }
    example = tf_example_pb2.Example()
    for name, value in values.items():
        example.features.feature[name].bytes_list.value.append(value)
    # Otherwise the order of the fields would be drawn anew by each process, and TFDS does not ask for this.
    return bytes(example.SerializeToString(deterministic=True))


def shard_index(record_id: str, num_shards: int) -> int:
    """The shard of a record: a hash of its track, so that it depends neither on order nor on other records.

    The track is the id up to its last slash; all chunks of a track share a shard.
    """
    track = record_id.rpartition("/")[0] or record_id
    return int.from_bytes(hashlib.sha256(track.encode()).digest()[:8], "big") % num_shards


def shard_of(paths: Sequence[str], index: int) -> tuple[Path, int]:
    """The shard of a record and its index in there, for an error to name; the first shard that cannot be opened."""
    for path in paths:
        try:
            count = ArrayRecordReader(path).num_records()
        except (RuntimeError, ValueError, OSError):
            return Path(path), index
        if index < count:
            return Path(path), index
        index -= count
    return Path(paths[-1]), index


class RecordSource:
    """Random access to the records of one split, for Grain. Files open at the first read, so it pickles to workers."""

    def __init__(self, paths: Sequence[Path], length: int, shapes: dict[str, tuple[int, int]], fields: tuple[str, ...]):
        self._paths = [str(path) for path in paths]
        self._length = length
        self._shapes = shapes
        self._fields = fields
        self._reader: grain.sources.ArrayRecordDataSource | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """The chosen fields: arrays are read-only views. Raises `UserError` if the record is damaged."""
        index = int(index)
        if not 0 <= index < self._length:
            raise IndexError(f"record {index} of {self._length}")
        try:
            if self._reader is None:
                self._reader = grain.sources.ArrayRecordDataSource(self._paths)
            # Parsed as the protocol buffer it is: TFDS's own parser costs ten times as much.
            values = tf_example_pb2.Example.FromString(self._reader[index]).features.feature
            return {name: self._decode(name, values[name].bytes_list.value[0]) for name in self._fields}
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            shard, record = shard_of(self._paths, index)
            raise UserError(
                f"record {record} of {shard} is damaged: remove {shard.parent} and prepare it again"
            ) from error

    def _decode(self, name: str, data: bytes) -> Any:
        if name == "waveform":
            return np.frombuffer(data, "<i2").reshape(self._shapes[name])
        if name == "codes":
            return np.frombuffer(data, "<u2").reshape(self._shapes[name])
        return json.loads(data) if name in _JSON_FIELDS else data.decode()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}

    def __repr__(self) -> str:
        return f"RecordSource({Path(self._paths[0]).name}, {self._length} records)"  # the same in every run
