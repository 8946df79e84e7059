"""Writing a frozen LAM's actions of every record beside a DATASET.

The actions of a record are those of its whole track: the records of a track are put together again, and what its first
blocks depend on comes from the records before them. Records that a pipeline left out as silent are silence here.
"""

import fcntl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from melodjinn_jax.data.dataset import Dataset
from melodjinn_jax.data.labels import (
    MANIFEST,
    Labels,
    complete_labels,
    encode_label,
    labels_folder,
    open_labels,
    shard_names,
)
from melodjinn_jax.data.records import RecordSource
from melodjinn_jax.data.writer import write_array_record
from melodjinn_jax.errors import UserError
from melodjinn_jax.evaluation.actions import encode_track, require_frozen_lam
from melodjinn_jax.training.run import Run, check_codec

LOCK = ".lock"


def label_dataset(run: Run, dataset: Dataset, progress: Callable[[str], None] = lambda line: None) -> Labels:
    """The labels of a DATASET under a run's actions; shards that are labelled already are kept, so it may be killed.

    Raises `UserError` if the run's actions are not frozen, its codec is another one, or they cannot be written.
    """
    require_frozen_lam(run)
    check_codec(dataset, run.codec)
    folder = labels_folder(dataset, run.action_space)
    if (folder / MANIFEST).exists():
        return open_labels(dataset, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("a") as lock:
            _claim(lock, folder)
            for name in shard_names(dataset):
                if not (folder / name).exists():
                    write_array_record(folder / name, shard_labels(run, dataset, name))
                    progress(f"labelled {name}")
            return complete_labels(dataset, run.action_space)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error


def _claim(lock: IO[str], folder: Path) -> None:
    """Hold a lock, which the kernel drops with its process; raise `UserError` if another process holds it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"another process is writing labels to {folder}: wait for it") from error


def shard_labels(run: Run, dataset: Dataset, name: str) -> Iterator[bytes]:
    """The labels of one shard's records, in their order."""
    source = dataset.shard_source(name, ("waveform", "codes", "id", "provenance"))
    tracks: dict[str, dict[int, int]] = {}
    for index in range(len(source)):
        record = source[index]
        # A record without a place is a track of its own.
        track = record["id"].rpartition("/")[0] or record["id"]
        tracks.setdefault(track, {})[index] = record["provenance"].get("start_frame", 0)
    labels: dict[int, bytes] = {}
    for starts in tracks.values():
        labels |= track_labels(run, source, starts)
    yield from (labels[index] for index in range(len(source)))


def track_labels(run: Run, source: RecordSource, starts: dict[int, int]) -> dict[int, bytes]:
    """Label of each record of one track, whose records begin at the frames `starts`."""
    stride, frames = run.action_space.stride, len(source[next(iter(starts))]["waveform"])
    length = max(starts.values()) + frames
    patches = np.zeros((length, run.codec.hop_length), np.int16)
    codes = np.zeros((length, run.codec.num_codebooks), np.int32)
    is_silent = np.ones(length, bool)
    for index, start in starts.items():
        record = source[index]
        patches[start : start + frames] = record["waveform"]
        codes[start : start + frames] = record["codes"]
        is_silent[start : start + frames] = False
    # What lies before was never encoded: no codec is to decode it, and to remember it.
    begin = min(starts.values())
    heard = np.zeros_like(patches)
    heard[begin:] = run.heard(patches[None, begin:], codes[None, begin:])[0]
    keys = encode_track(run, np.where(is_silent[:, None], 0, heard).astype(np.int16))
    labels = {}
    for index, start in starts.items():
        block = -(-start // stride)
        first = block * stride - start
        count = (frames - first) // stride
        labels[index] = encode_label(first, keys[block : block + count - 1])
    return labels
