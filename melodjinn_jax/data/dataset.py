"""The DATASET on disk: ArrayRecord files with TFDS metadata, the codec, and a manifest with the hash of every file.

    DATASET/dataset.json                                 the manifest
    DATASET/melodjinn-train.array_record-00000-of-00002  records, one per group
    DATASET/dataset_info.json, features.json             TFDS metadata
    DATASET/codec/                                       the codec that made the codes

It is written under another name beside its place and renamed when complete, so it exists whole or not at all.
"""

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from melodjinn_jax.data.records import FEATURES, FIELDS, Record, RecordSource, serialize, shard_index
from melodjinn_jax.errors import UserError

FORMAT_VERSION = 1
MANIFEST = "dataset.json"
_NAME = "melodjinn"
# One record per group makes a random read cost one record; sound hardly compresses.
_WRITER_OPTIONS = "group_size:1,uncompressed"


class StorableCodec(Protocol):
    """What a DATASET needs of the codec it stores."""

    sample_rate: int
    hop_length: int
    num_codebooks: int
    codebook_size: int
    digest: str

    def save(self, folder: Path) -> None: ...


@dataclass(frozen=True)
class DatasetInfo:
    """The manifest: what the records are, what they were made from, and the size and SHA-256 of every file."""

    format_version: int
    sample_rate: int
    hop_length: int
    frames_per_record: int
    num_codebooks: int
    codebook_size: int
    codec_digest: str
    fingerprint: dict[str, Any]
    records: dict[str, int]
    shards: dict[str, int]
    files: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Dataset:
    """An opened DATASET."""

    path: Path
    info: DatasetInfo

    @property
    def codec_folder(self) -> Path:
        """The folder of the codec that made the codes."""
        return self.path / "codec"

    def source(self, split: str, fields: tuple[str, ...] = FIELDS) -> RecordSource:
        """Random access to a split: dicts of waveform int16 `[F, H]`, codes uint16 `[F, Q]`, ground_truth and id.

        Raises `UserError` if there is no such split.
        """
        info = self.info
        if split not in info.records:
            raise UserError(f"{self.path} has no split named {split}: choose one of {', '.join(info.records)}")
        paths = [self.path / _shard_name(split, index, info.shards[split]) for index in range(info.shards[split])]
        shapes = {
            "waveform": (info.frames_per_record, info.hop_length),
            "codes": (info.frames_per_record, info.num_codebooks),
        }
        return RecordSource(paths, info.records[split], shapes, fields)

    def load_split(self, split: str, limit: int | None = None) -> dict[str, Any]:
        """The first `limit` records (all, if None) in file order: stacked waveform int16 `[B, F, H]` and codes uint16
        `[B, F, Q]`, and lists of ground_truth and id."""
        source = self.source(split)
        records = [source[index] for index in range(len(source) if limit is None else min(limit, len(source)))]
        columns: dict[str, Any] = {field: [record[field] for record in records] for field in FIELDS}
        return columns | {field: np.stack(columns[field]) for field in ("waveform", "codes")}

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Read these files (all, if None) and compare their hashes. Raises `UserError` naming the damaged ones."""
        files = self.info.files
        damaged = [name for name in names or files if _sha256(self.path / name) != files[name]["sha256"]]
        if damaged:
            raise UserError(f"{self.path} is damaged in {', '.join(damaged)}: remove the folder and prepare it again")

    def check_fingerprint(self, wanted: dict[str, Any]) -> "Dataset":
        """This DATASET, if it was made from `wanted`. Raises `UserError` naming every setting that differs."""
        there, asked = _flatten(self.info.fingerprint), _flatten(json.loads(json.dumps(wanted)))
        changed = [
            f"{name} ({there.get(name, 'nothing')} there, {asked.get(name, 'nothing')} asked for)"
            for name in sorted(there.keys() | asked.keys())
            if there.get(name) != asked.get(name)
        ]
        if changed:
            raise UserError(
                f"{self.path} was prepared from other settings, {'; '.join(changed)}: "
                "ask for the same, choose another path, or remove the folder"
            )
        return self


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def open_dataset(path: str | Path) -> Dataset:
    """Open a DATASET, checking its manifest and the size of each of its files.

    Raises `UserError` if there is none at `path`, or if it is incomplete, damaged or of a newer format.
    """
    path = Path(path)
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{path} is not a DATASET (it has no {MANIFEST}): prepare one, for example with "
            "python -m data_pipelines.toy_drums --output DATASET"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path / MANIFEST} cannot be read: remove the folder and prepare it again") from error
    info = _parse_manifest(content, path)
    for name, entry in info.files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise UserError(f"{file} is missing or has a wrong size: remove {path} and prepare it again")
    return Dataset(path, info)


def _parse_manifest(content: Any, path: Path) -> DatasetInfo:
    version = content.get("format_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise UserError(f"{path} has DATASET format {version}, newer than this program's {FORMAT_VERSION}: update it")
    try:
        checksum = content.pop("checksum")
        if checksum != _checksum(content):
            raise ValueError("checksum")
        return DatasetInfo(**content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / MANIFEST} is damaged: remove the folder and prepare it again") from error


def write_dataset(
    path: str | Path,
    splits: Mapping[str, Iterable[Record]],
    *,
    codec: StorableCodec,
    fingerprint: dict[str, Any],
    shards: Mapping[str, int],
    extra_files: Mapping[str, bytes] | None = None,
) -> Dataset:
    """Write a DATASET at `path` and open it. One made from the same `fingerprint` meanwhile is opened instead.

    `fingerprint` says what it is made from (JSON), `shards` the number of files of each split, `extra_files` what else
    belongs to it. Raises `UserError` if the place is taken by something else or cannot be written to.
    """
    path = Path(path)
    if is_taken(path):
        return open_dataset(path).check_fingerprint(fingerprint)
    try:
        with _scratch_folder(path) as scratch:
            for name, data in (extra_files or {}).items():
                (scratch / name).write_bytes(data)
            codec.save(scratch / "codec")
            written = [_write_split(scratch, name, records, shards[name]) for name, records in splits.items()]
            _write_tfds_metadata(scratch, written)
            _write_manifest(scratch, codec, fingerprint, written)
            try:
                os.rename(scratch, path)
            except OSError:
                if not is_taken(path):  # else another process was first, and what it made is opened below
                    raise
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    return open_dataset(path).check_fingerprint(fingerprint)


def is_taken(path: Path) -> bool:
    """Whether there is anything at `path` but an empty folder. Raises `UserError` if that cannot be seen."""
    try:
        return path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


@contextlib.contextmanager
def _scratch_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, on the same file system; removed at the end, if it is still there."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(frozen=True)
class _WrittenSplit:
    name: str
    shard_lengths: list[int]
    num_bytes: int
    num_frames: int


def _write_split(folder: Path, name: str, records: Iterable[Record], num_shards: int) -> _WrittenSplit:
    writers = [
        ArrayRecordWriter(str(folder / _shard_name(name, index, num_shards)), _WRITER_OPTIONS)
        for index in range(num_shards)
    ]
    lengths, num_bytes, frames = [0] * num_shards, 0, set()
    for record in records:
        shard, data = shard_index(record.id, num_shards), serialize(record)
        writers[shard].write(data)
        lengths[shard] += 1
        num_bytes += len(data)
        frames |= {len(record.waveform), len(record.codes)}
    for writer in writers:
        writer.close()
    if len(frames) != 1:
        raise ValueError(f"split {name} needs at least one record, and all of one length: it has {sorted(frames)}")
    return _WrittenSplit(name, lengths, num_bytes, frames.pop())


def _shard_name(split: str, index: int, num_shards: int) -> str:
    return f"{_NAME}-{split}.array_record-{index:05d}-of-{num_shards:05d}"


def _write_tfds_metadata(folder: Path, splits: list[_WrittenSplit]) -> None:
    templates = {
        split.name: tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=_NAME, split=split.name, filetype_suffix="array_record"
        )
        for split in splits
    }
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=FEATURES,
        split_infos=[
            tfds.core.SplitInfo(
                name=split.name,
                shard_lengths=split.shard_lengths,
                num_bytes=split.num_bytes,
                filename_template=templates[split.name],
            )
            for split in splits
        ],
        filename_template=next(iter(templates.values())),
        check_data=False,  # its check would need TensorFlow
        description="Chunks of sound and their codec codes, prepared by Melodjinn.",
    )


def _write_manifest(
    folder: Path, codec: StorableCodec, fingerprint: dict[str, Any], splits: list[_WrittenSplit]
) -> None:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    info = DatasetInfo(
        format_version=FORMAT_VERSION,
        sample_rate=codec.sample_rate,
        hop_length=codec.hop_length,
        frames_per_record=splits[0].num_frames,
        num_codebooks=codec.num_codebooks,
        codebook_size=codec.codebook_size,
        codec_digest=codec.digest,
        fingerprint=fingerprint,
        records={split.name: sum(split.shard_lengths) for split in splits},
        shards={split.name: len(split.shard_lengths) for split in splits},
        files={
            file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            for file in files
        },
    )
    content = json.loads(json.dumps(asdict(info)))  # tuples become lists, as they will be when read
    content["checksum"] = _checksum(content)
    (folder / MANIFEST).write_text(json.dumps(content, indent=2), encoding="utf-8")


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str | None:
    """None if the file cannot be read."""
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None
