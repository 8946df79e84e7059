"""The manifest of a checkpoint: every file and every array of it, each with its SHA-256.

A checkpoint counts only when its manifest is there and agrees with the folder to the last byte. The manifest's own
bytes are covered too: it carries its digest, and is written in one canonical form that reading compares with.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.errors import UserError

MANIFEST_NAME = "manifest.json"


class DamagedCheckpointError(UserError):
    """A checkpoint whose files or arrays are not the ones that were saved."""


@dataclass(frozen=True)
class LeafRecord:
    """One array: its path in the tree, and what its stored bytes must be.

    A typed PRNG key is stored as its `uint32` data; `key_impl` names its generator (None for any other array).
    """

    path: tuple[str | int, ...]
    dtype: str
    shape: tuple[int, ...]
    key_impl: str | None
    sha256: str

    @property
    def name(self) -> str:
        return leaf_name(self.path)


@dataclass(frozen=True)
class FileRecord:
    """One file: its size in bytes and its digest."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All that a complete checkpoint consists of; `metadata` is the caller's, `iterator` the state of the batches'."""

    step: int
    metadata: dict[str, Any]
    iterator: dict[str, Any]
    leaves: tuple[LeafRecord, ...]
    files: dict[str, FileRecord]


def leaf_name(path: tuple[str | int, ...]) -> str:
    """A leaf's path in the tree as one string: `lam/encoder/kernel`."""
    return "/".join(map(str, path))


def array_digest(array: np.ndarray) -> str:
    """SHA-256 of an array's dtype, shape and bytes: the same however the array is sharded."""
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    # A flat view as bytes: bfloat16 and the like have no buffer of their own that hashlib could read.
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def describe_files(folder: Path, sync: bool = False) -> dict[str, FileRecord]:
    """Size and digest of every file under `folder` but the manifest; `sync` also flushes each to the disk.

    Raises:
        OSError: a file cannot be read, or (with `sync`) the disk refuses it.
    """
    records = {}
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
        if path != folder / MANIFEST_NAME:
            with path.open("rb") as file:
                if sync:
                    os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                records[path.relative_to(folder).as_posix()] = FileRecord(os.fstat(file.fileno()).st_size, digest)
    return records


def _serialise(manifest: Manifest) -> bytes:
    content = json.dumps(asdict(manifest), indent=1, allow_nan=False)
    digest = hashlib.sha256(content.encode()).hexdigest()
    return f'{{"sha256": "{digest}",\n"manifest": {content}}}\n'.encode()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of the checkpoint in `folder`, atomically and durably.

    Raises:
        OSError: the disk is full or the folder cannot be written.
        TypeError, ValueError: the metadata is not JSON.
    """
    write_atomically(folder / MANIFEST_NAME, _serialise(manifest))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the checkpoint in `folder`, its own digest checked.

    Raises:
        DamagedCheckpointError: the manifest is missing or was changed.
    """
    try:
        raw = (folder / MANIFEST_NAME).read_bytes()
    except OSError as error:
        raise DamagedCheckpointError(f"{folder}: {MANIFEST_NAME} cannot be read ({error.strerror})") from error
    try:
        content = json.loads(raw)["manifest"]
        leaves = tuple(
            LeafRecord(**{**leaf, "path": tuple(leaf["path"]), "shape": tuple(leaf["shape"])})
            for leaf in content["leaves"]
        )
        files = {name: FileRecord(**record) for name, record in content["files"].items()}
        manifest = Manifest(content["step"], content["metadata"], content["iterator"], leaves, files)
        intact = _serialise(manifest) == raw
    # Whatever a damaged byte does to the parsing is the same news.
    except (ValueError, TypeError, KeyError, AttributeError):
        intact = False
    if not intact:
        raise DamagedCheckpointError(f"{folder}: {MANIFEST_NAME} is damaged")
    return manifest


def verify(folder: Path) -> Manifest:
    """Read and hash every file of the checkpoint in `folder`, and return its manifest.

    Raises:
        DamagedCheckpointError: a file is missing, unknown, unreadable or changed; the text names the first such file.
    """
    manifest = read_manifest(folder)
    try:
        found = describe_files(folder)
    except OSError as error:
        raise DamagedCheckpointError(f"{folder}: {error.filename} cannot be read ({error.strerror})") from error
    for name in sorted(manifest.files.keys() | found.keys()):
        if name not in found:
            raise DamagedCheckpointError(f"{folder}: {name} is missing")
        if name not in manifest.files:
            raise DamagedCheckpointError(f"{folder}: {name} does not belong to the checkpoint")
        if found[name] != manifest.files[name]:
            raise DamagedCheckpointError(f"{folder}: {name} was changed after it was saved")
    return manifest
