"""How fast are batches? Examples per second, and times real time, of 10 s crops from records of several lengths.

    python benchmarks/loader.py

Writes DATASETs of noise (what is in a record does not matter to the loader), reads them through
`training_iterator` and prints a table: for records of 10, 12, 15, 20 and 30 s, with waveform and codes, with codes
only, and with codes and labels (stride 1).
One process, one reading thread: the numbers are per core. `read MB` is what the disk must deliver for one example, so
the column says what a longer record costs; the files are in the page cache here.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from melodjinn_jax.codecs.fitted import FittedCodec, initial_params
from melodjinn_jax.data.audio import HOP_LENGTH
from melodjinn_jax.data.dataset import Dataset
from melodjinn_jax.data.labels import complete_labels, encode_label, labels_folder, shard_names
from melodjinn_jax.data.loader import training_iterator
from melodjinn_jax.data.mixture import Mixture
from melodjinn_jax.data.records import Record
from melodjinn_jax.data.writer import write_array_record, write_dataset
from melodjinn_jax.models.action_space import ActionSpace

FRAMES_PER_SECOND = 75
CROP_SECONDS = 10
CODEBOOKS = 4
RECORDS = 96
BATCH = 16


def make_dataset(path: Path, seconds: int) -> Dataset:
    import jax

    rng = np.random.default_rng(0)
    frames = seconds * FRAMES_PER_SECOND
    entries = rng.normal(size=(CODEBOOKS, 1024, 12)).astype(np.float32)
    codec = FittedCodec(initial_params(jax.random.key(0)), entries, gain=1.0)
    records = (
        Record(
            id=f"track{index}/0",
            waveform=rng.integers(-9000, 9000, (frames, HOP_LENGTH)).astype(np.int16),
            codes=rng.integers(0, 1024, (frames, CODEBOOKS)).astype(np.uint16),
            provenance={"title": "noise", "start_frame": 0},
        )
        for index in range(RECORDS)
    )
    return write_dataset(path, {"train": records}, codec=codec, fingerprint={}, shards={"train": 4})


def label(dataset: Dataset) -> Mixture:
    """The same with labels, whose contents do not matter either."""
    space = ActionSpace(1, tuple(range(16)), "none")
    folder = labels_folder(dataset, space)
    folder.mkdir(parents=True)
    actions = np.random.default_rng(0).integers(0, 16, dataset.info.frames_per_record - 1)
    for name in shard_names(dataset):
        write_array_record(folder / name, [encode_label(0, actions)] * len(dataset.shard_source(name)))
    return Mixture((dataset,), labels=(complete_labels(dataset, space),))


def examples_per_second(dataset: Dataset | Mixture, fields: tuple[str, ...], seconds: float) -> float:
    iterator = training_iterator(
        dataset, batch_size=BATCH, crop_frames=CROP_SECONDS * FRAMES_PER_SECOND, seed=0, fields=fields
    )
    for _ in range(8):
        next(iterator)
    began, batches = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        next(iterator)
        batches += 1
    elapsed = time.monotonic() - began
    iterator.close()
    return batches * BATCH / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="time of each measurement")
    arguments = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    print("|record s|fields|examples / s|times real time|read MB / example|\n|---|---|---|---|---|")
    for length in (10, 12, 15, 20, 30):
        with tempfile.TemporaryDirectory() as folder:
            dataset = make_dataset(Path(folder) / "dataset", length)
            size = length * FRAMES_PER_SECOND * 2 * (HOP_LENGTH + CODEBOOKS) / 1e6
            labelled = label(dataset)
            kinds = {"waveform + codes": dataset, "codes": dataset, "codes + actions": labelled}
            for name, data in kinds.items():
                fields = ("waveform", "codes") if "waveform" in name else ("codes",)
                rate = examples_per_second(data, fields, arguments.seconds)
                row = [length, name, f"{rate:,.0f}", f"{rate * CROP_SECONDS:,.0f}", f"{size:.2f}"]
                print("|" + "|".join(map(str, row)) + "|", flush=True)


if __name__ == "__main__":
    main()
