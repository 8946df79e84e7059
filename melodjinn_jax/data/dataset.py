"""The DATASET on disk: ArrayRecord files with TFDS metadata, the codec, and a manifest with the hash of every file.

    DATASET/dataset.json                                 the manifest
    DATASET/melodjinn-train.array_record-00000-of-00002  records, one per group
    DATASET/dataset_info.json, features.json             TFDS metadata
    DATASET/codec/                                       the codec that made the codes

It is written under another name beside its place and renamed when complete (`writer`), so it exists whole or not at
all.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from melodjinn_jax.data.files import file_sha256
from melodjinn_jax.data.records import FIELDS, RecordSource
from melodjinn_jax.errors import UserError

FORMAT_VERSION = 2
MANIFEST = "dataset.json"
NAME = "melodjinn"


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
        """Random access to a split: dicts of waveform int16 `[F, H]`, codes uint16 `[F, Q]`, ground_truth, provenance
        and id.

        Raises `UserError` if there is no such split.
        """
        info = self.info
        if split not in info.records:
            raise UserError(f"{self.path} has no split named {split}: choose one of {', '.join(info.records)}")
        paths = [self.path / shard_name(split, index, info.shards[split]) for index in range(info.shards[split])]
        return RecordSource(paths, info.records[split], self._shapes, fields)

    def shard_source(self, name: str, fields: tuple[str, ...] = FIELDS) -> RecordSource:
        """Random access to the records of one shard. Raises `UserError` if it cannot be read."""
        path = self.path / name
        try:
            count = ArrayRecordReader(str(path)).num_records()
        except RuntimeError as error:
            raise UserError(f"{path} is damaged: remove {self.path} and prepare it again") from error
        return RecordSource([path], count, self._shapes, fields)

    @property
    def _shapes(self) -> dict[str, tuple[int, int]]:
        frames = self.info.frames_per_record
        return {"waveform": (frames, self.info.hop_length), "codes": (frames, self.info.num_codebooks)}

    def load_split(self, split: str, limit: int | None = None) -> dict[str, Any]:
        """The first `limit` records (all, if None) in file order: stacked waveform int16 `[B, F, H]` and codes uint16
        `[B, F, Q]`, and lists of the other fields."""
        source = self.source(split)
        records = [source[index] for index in range(len(source) if limit is None else min(limit, len(source)))]
        columns: dict[str, Any] = {field: [record[field] for record in records] for field in FIELDS}
        return columns | {field: np.stack(columns[field]) for field in ("waveform", "codes")}

    def verify(self, names: Iterable[str] | None = None) -> None:
        """Read these files (all, if None) and compare their hashes. Raises `UserError` naming the damaged ones."""
        files = self.info.files
        damaged = [name for name in names or files if sha256_or_none(self.path / name) != files[name]["sha256"]]
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

    Raises `UserError` if there is none at `path`, or if it is incomplete, damaged or of another format.
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
    if isinstance(version, int) and version < FORMAT_VERSION:
        raise UserError(
            f"{path} has DATASET format {version}, older than this program's {FORMAT_VERSION}: "
            "remove the folder and prepare it again"
        )
    try:
        checksum = content.pop("checksum")
        if checksum != _checksum(content):
            raise ValueError("checksum")
        return DatasetInfo(**content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path / MANIFEST} is damaged: remove the folder and prepare it again") from error


def is_taken(path: Path) -> bool:
    """Whether there is anything at `path` but an empty folder. Raises `UserError` if that cannot be seen."""
    try:
        return path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def manifest_content(info: DatasetInfo) -> bytes:
    """The bytes of the manifest."""
    content = json.loads(json.dumps(asdict(info)))  # tuples become lists, as they will be when read
    content["checksum"] = _checksum(content)
    return json.dumps(content, indent=2).encode()


def shard_name(split: str, index: int, num_shards: int) -> str:
    """The file of a shard: a name that TFDS knows."""
    return f"{NAME}-{split}.array_record-{index:05d}-of-{num_shards:05d}"


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256_or_none(file: Path) -> str | None:
    """In hex; None if the file cannot be read."""
    try:
        return file_sha256(file)
    except OSError:
        return None
