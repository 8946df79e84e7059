"""Checkpoints: Orbax writes the arrays, a manifest makes them count.

Orbax alone loads wrong values from a flipped byte without a word. So each checkpoint gets a manifest with the SHA-256
of every file and of every array (`manifest.py`); loading verifies the files first and the arrays afterwards, names what
is damaged, and falls back to the checkpoint before it.

A save goes to `<step>.saving`, and is renamed to `<step>` when its manifest is there: a folder whose name is a number
is complete or was damaged later, never half written.
"""

import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from melodjinn_jax.data.files import sync_folder
from melodjinn_jax.errors import UserError
from melodjinn_jax.training.hosts import is_primary, primary_first
from melodjinn_jax.training.manifest import (
    DamagedCheckpointError,
    LeafRecord,
    Manifest,
    array_digest,
    describe_files,
    leaf_name,
    read_manifest,
    verify,
    write_manifest,
)

if TYPE_CHECKING:
    import grain  # it imports Orbax

_Path = tuple[str | int, ...]
LEFTOVER = re.compile(r"\d+\.(saving|removing).*")
ARRAYS = "arrays"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint: its step, and the metadata that its writer gave."""

    step: int
    metadata: dict[str, Any]


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


class CheckpointStore:
    """The checkpoints of a run, one folder each.

    With `keep` it is the run's one writer: it keeps the newest `keep` checkpoints, clears away what killed saves left,
    and moves damaged checkpoints aside. Without, it only reads, and leaves the folder as it is (a run may be going on).

    All processes of a run make the same calls: Orbax shares the arrays out among them, and the first process alone
    verifies files and writes the manifest. A checkpoint can be loaded by any number of processes, on any devices.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, folder: Path, keep: int | None = None, warn: Callable[[str], None] = _warn) -> None:
        self.folder = folder.resolve()  # Orbax wants it absolute
        self._keep = keep
        self._warn = warn
        self._verified: dict[int, Manifest] = {}
        self._background = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: tuple[int, Future[None]] | None = None
        if keep is not None and is_primary():
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._remove_leftovers()
            except OSError as error:
                raise UserError(f"the checkpoint folder {folder} cannot be written: {error.strerror}") from error

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, damaged or not, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    # Saving

    def save(self, step: int, arrays: Any, iterator: "grain.DatasetIterator", metadata: dict[str, Any]) -> None:
        """Start a checkpoint of this very moment, and return while it is written in the background.

        The arrays may be donated and the iterator advanced as soon as this returns. An earlier save is waited for.

        Args:
            step: Optimiser steps done; larger than that of every checkpoint there.
            arrays: A pytree of arrays; typed PRNG keys may be among them.
            iterator: The iterator over the batches; its state is the next batch to come.
            metadata: Anything JSON can hold; `latest` returns it before a single array is loaded.

        Raises:
            UserError: this save or the one before it failed for want of space, permission or the like.
        """
        self.wait()
        if self._keep is None:
            raise ValueError("this CheckpointStore was opened to read")
        if step in self.steps():
            raise ValueError(f"there is a checkpoint of step {step} already")
        # A copy, and a TypeError now rather than later. The iterator's state is the same in every process.
        content = json.loads(json.dumps([metadata, iterator.get_state()], allow_nan=False))
        leaves = _flatten(arrays)
        # Copies: a view would let later writes to a numpy array in, and keep JAX from donating a CPU buffer.
        snapshot = [(leaf, np.array(_to_host(leaf.stored))) for leaf in leaves.values()]
        stored = {name: leaf.stored for name, leaf in leaves.items()}
        try:
            response = _start_orbax(self._saving_folder(step), {ARRAYS: stored})
        except Exception as error:
            raise self._save_error(step, error) from error
        self._saving = (step, self._background.submit(self._finish, step, response, snapshot, *content))

    def _saving_folder(self, step: int) -> Path:
        return self.folder / f"{step}.saving"

    def _finish(
        self,
        step: int,
        response: Any,
        snapshot: list[tuple["_Leaf", np.ndarray]],
        metadata: dict[str, Any],
        iterator: dict[str, Any],
    ) -> None:
        """The part of a save that runs in the background; everything before the rename can be killed harmlessly."""
        leaves = tuple(
            LeafRecord(leaf.path, str(array.dtype), array.shape, leaf.key_impl, array_digest(array))
            for leaf, array in snapshot
        )
        response.result()
        if not is_primary():
            return
        folder = self._saving_folder(step)
        write_manifest(folder, Manifest(step, metadata, iterator, leaves, describe_files(folder, sync=True)))
        folder.rename(self.folder / str(step))
        sync_folder(self.folder)
        self._remove_old()

    def _remove_old(self) -> None:
        assert self._keep is not None
        for step in self.steps()[: -self._keep]:
            # Out of sight first, in one rename: a removal cut short must not look like a damaged checkpoint.
            removing = (self.folder / str(step)).rename(self.folder / f"{step}.removing")
            shutil.rmtree(removing)

    def _remove_leftovers(self) -> None:
        for path in self.folder.iterdir():
            if LEFTOVER.fullmatch(path.name):
                shutil.rmtree(path)

    def wait(self) -> None:
        """Wait until the save that is under way, if any, is complete.

        Raises:
            UserError: it failed for want of space, permission or the like.
        """
        if self._saving is None:
            return
        (step, future), self._saving = self._saving, None
        try:
            future.result()
        except Exception as error:
            raise self._save_error(step, error) from error

    def _save_error(self, step: int, error: Exception) -> Exception:
        reason = _system_error(error)
        if reason is None:
            return error
        if is_primary():
            # What was written of it takes up the very space that may be missing.
            for path in self.folder.glob(f"{step}.saving*"):
                shutil.rmtree(path, ignore_errors=True)
        steps = self.steps()
        kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "there is no earlier checkpoint"
        return UserError(
            f"the checkpoint of step {step} cannot be written to {self.folder}: {reason}; {kept}: "
            "mend that and run the same command again"
        )

    def close(self) -> None:
        """Wait for the save under way.

        Raises:
            UserError: as `wait`.
        """
        try:
            self.wait()
        finally:
            self._background.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            self.close()
        except UserError as failure:
            if error is None:
                raise
            self._warn(str(failure))  # the error that ended the run goes first

    # Loading

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, every file of it verified; None if there is none at all.

        Each damaged checkpoint on the way is named in a warning; a writer moves it to `<step>.damaged`.

        Raises:
            UserError: there are checkpoints, and every one is damaged.
        """
        self.wait()
        return primary_first(self._latest)

    def _latest(self) -> Checkpoint | None:
        damaged: set[int] = set()
        while steps := [step for step in self.steps() if step not in damaged]:
            step = steps[-1]
            try:
                return Checkpoint(step, self._verify(step).metadata)
            except DamagedCheckpointError as error:
                if self._folder(step).is_dir():  # else the run that is going on removed it just now
                    damaged.add(step)
                    self._warn(f"checkpoint of step {step} is damaged and not used: {error}{self._set_aside(step)}")
        if damaged or any(self.folder.glob("*.damaged*")):
            raise UserError(f"every checkpoint in {self.folder} is damaged: restore one, or use another --workdir")
        return None

    def _folder(self, step: int) -> Path:
        return self.folder / str(step)

    def _verify(self, step: int) -> Manifest:
        self._verified.pop(step, None)
        manifest = (verify if is_primary() else read_manifest)(self._folder(step))
        if manifest.step != step:
            raise DamagedCheckpointError(f"{self._folder(step)}: it is the checkpoint of step {manifest.step}")
        self._verified[step] = manifest
        return manifest

    def _set_aside(self, step: int) -> str:
        """Make room for the next save of this step; nothing is deleted."""
        if self._keep is None or not is_primary():
            return ""
        count = len(list(self.folder.glob(f"{step}.damaged*")))
        aside = self.folder / (f"{step}.damaged" + (f"-{count + 1}" if count else ""))
        self._folder(step).rename(aside)
        return f" (moved to {aside.name})"

    def load(self, step: int, abstract: Any, iterator: "grain.DatasetIterator") -> Any:
        """All arrays of a checkpoint, and the iterator set to where it was.

        Args:
            step: A step that `latest` returned.
            abstract: The tree as it was saved, with `jax.ShapeDtypeStruct` (or arrays) as leaves; their shardings say
                where the arrays go, by default the first device.
            iterator: An iterator over the same data; its state is set.

        Raises:
            UserError: the checkpoint is damaged, or its arrays are not those of `abstract`.
        """
        manifest = self._verified.get(step) or self._verify(step)
        targets = _flatten(abstract)
        self._check_structure(manifest, targets)
        abstract_arrays = {name: _with_sharding(leaf.stored) for name, leaf in targets.items()}
        loaded = _load_orbax(self._folder(step), {ARRAYS: abstract_arrays})[ARRAYS]
        self._check_digests(step, manifest.leaves, loaded)
        iterator.set_state(manifest.iterator)
        records = {record.name: record for record in manifest.leaves}
        leaves = [_restore_key(loaded[name], records[name]) for name in targets]  # in the order of `abstract`
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves)

    def read_arrays(self, step: int, *names: str) -> dict[str, Any]:
        """Parts of a checkpoint as nested dicts of numpy arrays (and typed PRNG keys), without the rest of it.

        Args:
            step: A step that `latest` returned.
            names: What to read: `"lam"` is everything below `arrays["lam"]`, `"lam/encoder"` a part of that; the dicts
                start at the root all the same. A tuple's or list's items have the keys 0, 1, ..., a named tuple's
                items their names.

        Raises:
            UserError: the checkpoint is damaged or holds nothing of such a name.
        """
        manifest = self._verified.get(step) or self._verify(step)
        records = self._select(manifest, names)
        targets = {record.name: np.empty(record.shape, jax.numpy.dtype(record.dtype)) for record in records}
        loaded = _load_orbax(self._folder(step), {ARRAYS: targets})[ARRAYS]
        self._check_digests(step, records, loaded)
        tree: dict[Any, Any] = {}
        for record in records:
            node = tree
            for key in record.path[:-1]:
                node = node.setdefault(key, {})
            node[record.path[-1]] = _restore_key(loaded[record.name], record)
        return tree

    def _select(self, manifest: Manifest, names: Sequence[str]) -> list[LeafRecord]:
        selected = []
        for name in names:
            found = [leaf for leaf in manifest.leaves if f"{leaf.name}/".startswith(f"{name}/")]
            if not found:
                parts = ", ".join(sorted({str(leaf.path[0]) for leaf in manifest.leaves}))
                raise UserError(f"the checkpoint {self._folder(manifest.step)} holds no {name}; it holds {parts}")
            selected += found
        return selected

    def _check_structure(self, manifest: Manifest, targets: dict[str, "_Leaf"]) -> None:
        saved = {record.name: record for record in manifest.leaves}
        for name in sorted(saved.keys() | targets.keys()):
            old = _describe(saved[name].dtype, saved[name].shape, saved[name].key_impl) if name in saved else "absent"
            new = "absent"
            if name in targets:
                leaf = targets[name]
                new = _describe(str(leaf.stored.dtype), leaf.stored.shape, leaf.key_impl)
            if old != new:
                raise UserError(
                    f"the checkpoint {self._folder(manifest.step)} does not fit this run: {name} is {old} in it and "
                    f"{new} here; use another --workdir, or the version of Melodjinn that wrote it"
                )

    def _check_digests(self, step: int, records: Sequence[LeafRecord], loaded: dict[str, Any]) -> None:
        for record in records:
            if array_digest(np.asarray(_to_host(loaded[record.name]))) != record.sha256:
                raise DamagedCheckpointError(
                    f"{self._folder(step)}: {record.name} was loaded with other values than were saved; "
                    f"remove that checkpoint to go on from the one before it"
                )


# Trees of arrays as flat dicts by name, in the form in which Orbax stores them


@dataclass(frozen=True)
class _Leaf:
    """An array, or the shape of one, as it is stored: of a typed PRNG key, the key data."""

    path: _Path
    stored: Any
    key_impl: str | None


def _flatten(tree: Any) -> dict[str, _Leaf]:
    leaves = {}
    for key_path, value in jax.tree_util.tree_leaves_with_path(tree):
        path = tuple(_plain_key(key) for key in key_path)
        assert leaf_name(path) not in leaves, f"two arrays are named {leaf_name(path)}"
        leaves[leaf_name(path)] = _stored_leaf(path, value)
    return leaves


def _plain_key(key: Any) -> str | int:
    """The key of a dict, the index of a sequence, or the name of a field."""
    for attribute in ("key", "idx", "name"):
        if hasattr(key, attribute):
            plain = getattr(key, attribute)
            return plain if isinstance(plain, int) else str(plain)
    raise TypeError(f"{key!r} is no path of a pytree")


def _stored_leaf(path: _Path, value: Any) -> _Leaf:
    if not jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        return _Leaf(path, value, None)
    if isinstance(value, jax.Array):
        return _Leaf(path, jax.random.key_data(value), str(jax.random.key_impl(value)))
    data, key_impl = _abstract_key_data(value)
    return _Leaf(path, jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=value.sharding), key_impl)


def _abstract_key_data(keys: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, str]:
    """The shape of the keys' data and the name of their generator, which JAX tells of (traced) keys only."""
    names = []

    def trace(traced: jax.Array) -> jax.Array:
        names.append(str(jax.random.key_impl(traced)))
        return jax.random.key_data(traced)

    return jax.eval_shape(trace, keys), names[0]


def _restore_key(array: Any, record: LeafRecord) -> Any:
    return array if record.key_impl is None else jax.random.wrap_key_data(array, impl=record.key_impl)


def _describe(dtype: str, shape: tuple[int, ...], key_impl: str | None) -> str:
    return f"{dtype}{list(shape)}" + (f" (keys of {key_impl})" if key_impl else "")


def _to_host(array: Any) -> np.ndarray:
    """The whole array as numpy, also where every process holds a part of it."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _with_sharding(target: Any) -> jax.ShapeDtypeStruct:
    # Without a sharding Orbax takes the saved one, whose devices may not be there.
    sharding = target.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(target.shape, target.dtype, sharding=sharding)


# Orbax


def _start_orbax(folder: Path, checkpointables: dict[str, Any]) -> Any:
    """Snapshot and start writing; the result's `result()` waits for Orbax's own commit."""
    from orbax.checkpoint import v1 as ocp  # here, for it takes 0.2 s that most commands need not spend

    # Orbax logs a traceback for what it raises as well, and a full disk is told in one sentence.
    logging.getLogger("absl").addFilter(_is_no_thread_failure)
    context = ocp.Context()
    # Otherwise a folder that cannot be made shows as a time-out, many minutes later.
    context.asynchronous.create_directories_asynchronously = False
    with context:
        return ocp.save_checkpointables_async(folder, checkpointables)


def _is_no_thread_failure(record: logging.LogRecord) -> bool:
    return "_SignalingThread.run() raised" not in record.getMessage()


def _load_orbax(folder: Path, targets: dict[str, Any]) -> dict[str, Any]:
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.pytree.loading.partial_load = True
    with context:
        return ocp.load_checkpointables(folder, targets)


def _system_error(error: BaseException) -> str | None:
    """What the operating system refused, in its words; None if the error is of another kind."""
    if isinstance(error, OSError):
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore raises ValueError for everything
    return os.strerror(int(code[1])) if code else None
