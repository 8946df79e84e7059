"""Labels: a LAM's actions of every record of a DATASET, in files of their own beside it.

    DATASET/actions/<first 12 digits of the action space's digest>/
        actions.json                                    the manifest, written last
        melodjinn-train.array_record-00000-of-00002     the labels of the shard of that name, in its order

The DATASET's own files never change. One label is little-endian uint16: the frames of the record before its first whole
block, and then its actions. Blocks are those of the whole track, so a record may begin inside one.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np

from melodjinn_jax.data.dataset import Dataset, sha256_or_none, shard_name
from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.data.records import RecordSource, shard_of
from melodjinn_jax.errors import UserError
from melodjinn_jax.models.action_space import ActionSpace

FORMAT_VERSION = 1
FOLDER, MANIFEST = "actions", "actions.json"
AUTO = "auto"


@dataclass(frozen=True)
class Labels:
    """The complete labels of one DATASET under one action space."""

    folder: Path
    space: ActionSpace

    def source(self, dataset: Dataset, split: str, fields: tuple[str, ...]) -> "LabelledSource":
        """Random access to the records of a split with their labels."""
        paths = [self.folder / name for name in shard_names(dataset, split)]
        return LabelledSource(dataset.source(split, fields), paths)


class LabelledSource:
    """The records of a split, each with `actions` uint16 `[blocks - 1]` and `first_frame`, where its first whole block
    begins."""

    def __init__(self, records: RecordSource, paths: Sequence[Path]):
        self._records = records
        self._paths = [str(path) for path in paths]
        self._reader: grain.sources.ArrayRecordDataSource | None = None

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """Raises `UserError` if the record or its label is damaged."""
        record = self._records[index]
        try:
            if self._reader is None:
                self._reader = grain.sources.ArrayRecordDataSource(self._paths)
            label = np.frombuffer(self._reader[int(index)], "<u2")
            return record | {"first_frame": int(label[0]), "actions": label[1:]}
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            shard, number = shard_of(self._paths, int(index))
            raise UserError(
                f"label {number} of {shard} is damaged: remove {shard.parent} and label the DATASET again"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}

    def __repr__(self) -> str:
        return f"LabelledSource({self._records!r})"


def encode_label(first_frame: int, actions: np.ndarray) -> bytes:
    """The bytes of one label."""
    return np.concatenate([[first_frame], actions]).astype("<u2").tobytes()


def shard_names(dataset: Dataset, split: str | None = None) -> list[str]:
    """The files of a DATASET that hold records (those of one split, if it is given): they name their labels too."""
    shards = dataset.info.shards
    return [shard_name(name, i, shards[name]) for name in ([split] if split else shards) for i in range(shards[name])]


def labels_folder(dataset: Dataset, space: ActionSpace) -> Path:
    """Where the labels of an action space lie."""
    return dataset.path / FOLDER / space.digest[:12]


def complete_labels(dataset: Dataset, space: ActionSpace) -> Labels:
    """Describe the written shards of labels: from now on they count. Raises `OSError` if that cannot be written."""
    folder = labels_folder(dataset, space)
    files = {
        name: {
            "bytes": (folder / name).stat().st_size,
            "sha256": sha256_or_none(folder / name),
            "labels_sha256": dataset.info.files[name]["sha256"],
        }
        for name in shard_names(dataset)
    }
    content = {
        "format_version": FORMAT_VERSION,
        "action_space": space.to_json(),
        "codec_digest": dataset.info.codec_digest,
        "files": files,
    }
    content = json.loads(json.dumps(content))
    write_atomically(folder / MANIFEST, json.dumps({**content, "checksum": _checksum(content)}, indent=2).encode())
    return Labels(folder, space)


def find_labels(dataset: Dataset, digest: str) -> Labels:
    """The labels whose action space's digest begins so, or with `auto` the only ones.

    Raises `UserError` if there are none or several, or if they are damaged or belong to other records.
    """
    there = sorted(path.parent for path in (dataset.path / FOLDER).glob(f"*/{MANIFEST}"))
    chosen = [folder for folder in there if digest == AUTO or _begins(folder.name, digest)]
    if not chosen:
        known = f"it has {', '.join(folder.name for folder in there)}" if there else "it has none"
        raise UserError(
            f"{dataset.path} has no labels {digest} ({known}): make them with "
            f"python -m melodjinn_jax.label --workdir LAM_RUN --dataset {dataset.path}"
        )
    if len(chosen) > 1:
        names = ", ".join(folder.name for folder in chosen)
        raise UserError(f"{dataset.path} has the labels {names}: name one of them in data.actions")
    labels = open_labels(dataset, chosen[0])
    if digest != AUTO and not labels.space.digest.startswith(digest):
        raise UserError(f"{dataset.path} has no labels {digest}: it has {labels.space.digest}")
    return labels


def _begins(name: str, digest: str) -> bool:
    return name.startswith(digest) or digest.startswith(name)


def open_labels(dataset: Dataset, folder: Path) -> Labels:
    """The labels in a folder. Raises `UserError` if they are incomplete, damaged or of other records."""
    again = f"remove {folder} and label the DATASET again"
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        checksum = content.pop("checksum")
        if content["format_version"] != FORMAT_VERSION:
            raise UserError(f"{folder} has labels of format {content['format_version']}, not {FORMAT_VERSION}: {again}")
        if checksum != _checksum(content):
            raise ValueError("checksum")
        space, files = ActionSpace.from_json(content["action_space"]), content["files"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / MANIFEST} is damaged: {again}") from error
    for name in shard_names(dataset):
        entry, file = files.get(name, {}), folder / name
        if entry.get("labels_sha256") != dataset.info.files[name]["sha256"]:
            raise UserError(f"{folder} holds the labels of other records than {dataset.path / name}: {again}")
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise UserError(f"{file} is missing or has a wrong size: {again}")
    return Labels(folder, space)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
