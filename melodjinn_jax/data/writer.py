"""Writing a DATASET: shards, each there whole or not at all; then what describes them; then the rename to its place.

One writer for all sources. Which records make a shard is their affair; the same records make the same bytes.
"""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from melodjinn_jax.data.dataset import (
    FORMAT_VERSION,
    MANIFEST,
    NAME,
    Dataset,
    DatasetInfo,
    is_taken,
    manifest_content,
    open_dataset,
    sha256_or_none,
    shard_name,
)
from melodjinn_jax.data.files import sync_folder, write_atomically
from melodjinn_jax.data.records import FEATURES, Record, serialize, shard_index
from melodjinn_jax.errors import UserError

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
class Shard:
    """What was written into one shard."""

    num_records: int
    num_bytes: int
    num_frames: int | None
    """Frames of each of its records; None if it has none."""


def write_shard(file: Path, records: Iterable[Record]) -> Shard:
    """Write records, in their order, as one ArrayRecord file; it appears under its name when it is complete.

    Raises:
      OSError: the disk is full or the folder cannot be written.
      ValueError: the records are not all of one length.
    """
    frames: set[int] = set()

    def serialized() -> Iterator[bytes]:
        for record in records:
            frames.update((len(record.waveform), len(record.codes)))
            if len(frames) > 1:
                raise ValueError(f"{file.name} needs records of one length: it has {sorted(frames)}")
            yield serialize(record)

    count, num_bytes = write_array_record(file, serialized())
    return Shard(count, num_bytes, frames.pop() if frames else None)


def write_array_record(file: Path, contents: Iterable[bytes]) -> tuple[int, int]:
    """Write records of bytes as one ArrayRecord file, which appears under its name when it is complete.

    Returns their number and their size together. Raises `OSError` if the disk is full or the folder cannot be written.
    """
    partial = file.with_name(f".{file.name}.partial")
    count, num_bytes = 0, 0
    with _os_errors(file):
        writer = ArrayRecordWriter(str(partial), _WRITER_OPTIONS)
    for data in contents:
        with _os_errors(file):
            writer.write(data)
        count, num_bytes = count + 1, num_bytes + len(data)
    with _os_errors(file):
        writer.close()
    with open(partial, "rb+") as stream:
        os.fsync(stream.fileno())
    os.replace(partial, file)
    sync_folder(file.parent)
    return count, num_bytes


@contextlib.contextmanager
def _os_errors(file: Path) -> Iterator[None]:
    """What the operating system refuses, ArrayRecord reports as a `RuntimeError`."""
    try:
        yield
    except RuntimeError as error:
        is_full = "No space left" in str(error)
        reason = os.strerror(errno.ENOSPC) if is_full else " ".join(str(error).split())
        raise OSError(errno.ENOSPC if is_full else errno.EIO, reason, str(file)) from error


def complete_dataset(
    folder: Path,
    path: Path,
    *,
    codec: StorableCodec,
    fingerprint: dict[str, Any],
    splits: Mapping[str, Sequence[Shard]],
) -> None:
    """Describe the shards, codec and other files in `folder` and rename it to `path`.

    If something is at `path` by then, `folder` is left and nothing is renamed: another process was first.

    Raises:
      OSError: the disk is full, or `path` cannot be written.
      ValueError: a split has no record, or records of different lengths.
    """
    _write_tfds_metadata(folder, splits)
    info = _describe(folder, codec, fingerprint, splits)
    write_atomically(folder / MANIFEST, manifest_content(info))
    try:
        os.rename(folder, path)
    except OSError:
        if not is_taken(path):
            raise
    else:
        sync_folder(path.absolute().parent)


def write_dataset(
    path: str | Path,
    splits: Mapping[str, Iterable[Record]],
    *,
    codec: StorableCodec,
    fingerprint: dict[str, Any],
    shards: Mapping[str, int],
    extra_files: Mapping[str, bytes] | None = None,
) -> Dataset:
    """Write a small DATASET at `path` and open it. One made from the same `fingerprint` meanwhile is opened instead.

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
            written = {name: _write_split(scratch, name, records, shards[name]) for name, records in splits.items()}
            complete_dataset(scratch, path, codec=codec, fingerprint=fingerprint, splits=written)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
    return open_dataset(path).check_fingerprint(fingerprint)


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


def _write_split(folder: Path, name: str, records: Iterable[Record], num_shards: int) -> list[Shard]:
    of_shard: list[list[Record]] = [[] for _ in range(num_shards)]
    for record in records:
        of_shard[shard_index(record.id, num_shards)].append(record)
    return [write_shard(folder / shard_name(name, index, num_shards), own) for index, own in enumerate(of_shard)]


def _write_tfds_metadata(folder: Path, splits: Mapping[str, Sequence[Shard]]) -> None:
    templates = {
        name: tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=NAME, split=name, filetype_suffix="array_record"
        )
        for name in splits
    }
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=FEATURES,
        split_infos=[
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=[shard.num_records for shard in shards],
                num_bytes=sum(shard.num_bytes for shard in shards),
                filename_template=templates[name],
            )
            for name, shards in splits.items()
        ],
        filename_template=next(iter(templates.values())),
        check_data=False,  # its check would need TensorFlow
        description="Chunks of sound and their codec codes, prepared by Melodjinn.",
    )


def _describe(
    folder: Path, codec: StorableCodec, fingerprint: dict[str, Any], splits: Mapping[str, Sequence[Shard]]
) -> DatasetInfo:
    frames = {name: {shard.num_frames for shard in shards if shard.num_frames} for name, shards in splits.items()}
    lengths = set().union(*frames.values())
    if len(lengths) != 1 or not all(frames.values()):
        raise ValueError(f"every split needs records, and all of one length: they have {frames}")
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file != folder / MANIFEST)
    return DatasetInfo(
        format_version=FORMAT_VERSION,
        sample_rate=codec.sample_rate,
        hop_length=codec.hop_length,
        frames_per_record=lengths.pop(),
        num_codebooks=codec.num_codebooks,
        codebook_size=codec.codebook_size,
        codec_digest=codec.digest,
        fingerprint=fingerprint,
        records={name: sum(shard.num_records for shard in shards) for name, shards in splits.items()},
        shards={name: len(shards) for name, shards in splits.items()},
        files={
            file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_or_none(file)}
            for file in files
        },
    )
