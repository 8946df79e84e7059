"""Batches for training: shuffled, cropped at random, endless, and the same however many hosts or workers read them."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import absl.flags
import grain
import numpy as np

from melodjinn_jax.data.dataset import Dataset
from melodjinn_jax.data.mixture import Mixture
from melodjinn_jax.errors import UserError

# One thread makes a few batches ahead; more threads only contend for the interpreter lock.
_READ_OPTIONS = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)


Hear = Callable[[np.ndarray], np.ndarray]
"""From codes uint16 [B, F, Q] to the waveform int16 [B, F, H] that stands for the recording."""


class RandomCrop(grain.transforms.RandomMap):
    """The same `frames` frames of every array, whole blocks of `stride`, from a random block of the record's.

    Labelled records bring `first_frame`, where their first whole block begins, and keep the `actions` between the
    blocks of the crop; an `id` stays as it is. Grain draws `rng` from the seed and the index.
    """

    def __init__(self, frames: int, stride: int):
        self._frames, self._stride = frames, stride

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        arrays = {name: value for name, value in element.items() if name not in ("actions", "first_frame", "id")}
        first = element.get("first_frame", 0)
        places = (len(next(iter(arrays.values()))) - first - self._frames) // self._stride + 1
        block = int(rng.integers(places))
        start = first + block * self._stride
        crop = {name: array[start : start + self._frames] for name, array in arrays.items()}
        if "actions" in element:
            crop["actions"] = element["actions"][block : block + self._frames // self._stride - 1]
        if "id" in element:
            crop["id"] = np.array(element["id"])
        return crop


class HostShare(NamedTuple):
    """Which parts of every global batch, cut into `num_parts` equal ones, one host reads, in the batch's order."""

    parts: tuple[int, ...] = (0,)
    num_parts: int = 1


ALL_ROWS = HostShare()
"""The share of a host that is alone."""


class HostRows:
    """One host's rows of endless global batches, one after another, as a Grain source."""

    def __init__(self, rows: grain.MapDataset, batch_size: int, share: HostShare):
        self._rows, self._batch_size, self._share = rows, batch_size, share
        self._part_size = batch_size // share.num_parts

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        batch, row = divmod(index, self._part_size * len(self._share.parts))
        part, row = divmod(row, self._part_size)
        return self._rows[batch * self._batch_size + self._share.parts[part] * self._part_size + row]


class BatchIterator(grain.DatasetIterator):
    """An endless iterator over a random-access dataset of batches.

    Its state is the number of the next batch and nothing else, so a run may resume with other workers or hosts.
    """

    def __init__(self, batches: grain.MapDataset, workers: int, hear: Hear | None = None):
        super().__init__()
        self._batches, self._workers, self._hear = batches, workers, hear
        self._next_batch = 0
        self._iterator: grain.DatasetIterator | None = None

    def __next__(self) -> dict[str, np.ndarray]:
        self._assert_not_closed()
        if self._iterator is None:
            self._iterator = self._start()
        batch = next(self._iterator)
        self._next_batch += 1
        return batch if self._hear is None else {**batch, "waveform": self._hear(batch["codes"])}

    def _start(self) -> grain.DatasetIterator:
        remaining = self._batches.slice(slice(self._next_batch, None)).to_iter_dataset(_READ_OPTIONS)
        if self._workers:
            if not absl.flags.FLAGS.is_parsed():
                absl.flags.FLAGS.mark_as_parsed()  # Grain's workers inherit absl flags, which this program has none of
            remaining = remaining.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._workers))
        return iter(remaining)

    def get_state(self) -> dict[str, Any]:
        """`{"next_batch": n}`."""
        return {"next_batch": self._next_batch}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on at the batch that `state` names."""
        self._stop()
        self._next_batch = int(state["next_batch"])

    def close(self) -> None:
        """Stop the readers; the iterator cannot be used again."""
        self._stop()
        super().close()

    def _stop(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None


def training_iterator(
    data: Dataset | Mixture,
    *,
    split: str = "train",
    batch_size: int,
    crop_frames: int,
    seed: int,
    stride: int = 1,
    share: HostShare = ALL_ROWS,
    workers: int = 0,
    fields: tuple[str, ...] = ("waveform", "codes"),
    hear: Hear | None = None,
) -> BatchIterator:
    """This host's share of endless batches: waveform int16 `[B, F, H]` and codes uint16 `[B, F, Q]`, as `fields` name.

    Of labelled data also actions uint16 `[B, F / stride - 1]`; `fields` may name `id`, str `[B]`, too. `batch_size` is
    the global one, of which this host reads the parts that `share` names: those of all hosts, put in order, are the
    batch of a single host. Each DATASET has its share of every stretch of rows, and is shuffled and cropped anew in
    every epoch of its own. With `hear` the waveform is made from the codes and none is read. Raises `UserError` naming
    the fields if no such batch can be made.
    """
    if hear is not None:
        fields = tuple(name for name in fields if name != "waveform")
    mixture = data if isinstance(data, Mixture) else Mixture((data,))
    _check_crop(mixture, crop_frames, stride)
    if batch_size < 1 or batch_size % share.num_parts:
        raise UserError(
            f"training.batch_size is {batch_size}: it must be a multiple of the {share.num_parts} part(s) of a batch"
        )
    if seed < 0:
        raise UserError(f"seed is {seed}: it must not be negative")
    sources = [
        mixture.labels[i].source(dataset, split, fields) if mixture.labels else dataset.source(split, fields)
        for i, dataset in enumerate(mixture.datasets)
    ]
    crops = [
        # A seed for each, or records of the same number would be cropped alike.
        grain.MapDataset.source(source).seed(seed + i).shuffle().repeat().random_map(RandomCrop(crop_frames, stride))
        for i, source in enumerate(sources)
    ]
    rows = crops[0] if len(crops) == 1 else grain.MapDataset.mix(crops, mixture.weights)
    if share.num_parts == len(share.parts):
        return BatchIterator(rows.batch(batch_size, drop_remainder=True), workers, hear)
    # Chosen after the crops are drawn, so that they do not depend on the hosts.
    own = grain.MapDataset.source(HostRows(rows, batch_size, share))
    rows_here = batch_size // share.num_parts * len(share.parts)
    return BatchIterator(own.batch(rows_here, drop_remainder=True), workers, hear)


def _check_crop(mixture: Mixture, crop_frames: int, stride: int) -> None:
    frames = mixture.crop_frames(stride)
    if not 1 <= crop_frames <= frames:
        paths = ", ".join(str(dataset.path) for dataset in mixture.datasets)
        raise UserError(
            f"training.crop_frames is {crop_frames}, but the records of {paths} have {frames} frames to crop from "
            "(data.clip_frames of the drum world, --chunk-frames of recordings): choose a crop of 1 frame to that many"
        )
