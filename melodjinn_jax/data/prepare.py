"""From settings to a DATASET: drums, clips, a codec fitted on the training clips, codes."""

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from melodjinn_jax import codecs
from melodjinn_jax.config import CodecConfig, DataConfig
from melodjinn_jax.data.audio import HOP_LENGTH, to_float32, to_int16
from melodjinn_jax.data.dataset import Dataset, is_taken, open_dataset
from melodjinn_jax.data.one_shots import OneShots, audio_files, one_shots_for
from melodjinn_jax.data.records import Record
from melodjinn_jax.data.toy_drums import SPLITS, Clip, Hit, check_data, make_clips
from melodjinn_jax.data.writer import write_dataset
from melodjinn_jax.errors import UserError

ONE_SHOTS = "one_shots.npz"
_WORLD_VERSION = 1  # raise it when the sounds or the rhythms change, so that an older DATASET is not taken for this one
_SHARDS = {"train": 2, "validation": 1, "test": 1}
_ENCODE_CLIPS = 64


def prepare_toy_drums(
    data: DataConfig, codec_config: CodecConfig, path: str | Path, progress: Callable[[str], None] = print
) -> Dataset:
    """The DATASET of the toy drum world at `path`; opened if it was prepared before from the same settings.

    Raises `UserError` for settings that cannot work, and if what is at `path` was made from others.
    """
    path = Path(path)
    check_data(data)
    fingerprint = _fingerprint(data, codec_config)
    if is_taken(path):
        return open_dataset(path).check_fingerprint(fingerprint)
    drums = one_shots_for(data)
    progress(f"preparing {path}: {data.train_clips} training clips of {data.clip_frames} frames")
    clips = {split: make_clips(data, drums, split) for split in SPLITS}
    # The codec hears what the DATASET stores: 16-bit sound.
    waveforms = {split: np.stack([to_int16(clip.waveform) for clip in clips[split]]) for split in SPLITS}
    codec = codecs.fit_codec(to_float32(waveforms["train"]), codec_config, progress)
    dataset = write_dataset(
        path,
        {split: _records(split, clips[split], waveforms[split], codec.encode) for split in SPLITS},
        codec=codec,
        fingerprint=fingerprint,
        shards=_SHARDS,
        extra_files={ONE_SHOTS: _to_npz(drums)},
    )
    progress(f"wrote {path}")
    return dataset


def load_one_shots(dataset: Dataset) -> OneShots:
    """The drums of a toy DATASET, at the level at which they sound in its clips. Raises `UserError` if it has none or
    they are damaged."""
    if ONE_SHOTS not in dataset.info.files:
        raise UserError(f"{dataset.path} holds no one-shots: it is not of the toy drum world")
    dataset.verify([ONE_SHOTS])
    with np.load(dataset.path / ONE_SHOTS) as file:
        return OneShots(tuple(file["names"].tolist()), file["waveforms"])


def hits_of(ground_truth: dict[str, Any]) -> tuple[Hit, ...]:
    """The hits of one record of the toy drum world, by time."""
    return tuple(Hit(**hit) for hit in ground_truth["hits"])


def _records(
    split: str, clips: list[Clip], waveforms: np.ndarray, encode: Callable[[np.ndarray], Any]
) -> Iterator[Record]:
    """The records of a split from int16 waveforms `[B, F * H]`, encoded a fixed number of clips at a time.

    The last batch is padded with silence, so that every batch has the same shape and so the same arithmetic.
    """
    for start in range(0, len(clips), _ENCODE_CLIPS):
        batch = waveforms[start : start + _ENCODE_CLIPS]
        padded = np.pad(batch, ((0, _ENCODE_CLIPS - len(batch)), (0, 0)))
        codes = np.asarray(encode(to_float32(padded)))[: len(batch)]
        for offset, (waveform, code) in enumerate(zip(batch, codes, strict=True)):
            index = start + offset
            yield Record(
                id=f"{split}-{index:06d}",
                waveform=waveform.reshape(-1, HOP_LENGTH),
                codes=code.astype(np.uint16),
                ground_truth={"hits": [hit._asdict() for hit in clips[index].hits]},
            )


def _to_npz(drums: OneShots) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, names=np.array(drums.names), waveforms=drums.waveforms)
    return buffer.getvalue()


def _fingerprint(data: DataConfig, codec_config: CodecConfig) -> dict[str, Any]:
    """All that the records depend on: of `data` only the fields that matter, and recordings by their content."""
    fields = asdict(data)
    for name in ("path", "one_shots", "datasets", "weights", "actions"):
        del fields[name]
    del fields["hits_per_second" if data.rhythm == "loop" else "loop_frames"]
    sounds: dict[str, Any] = {"synthetic": True}
    if data.one_shots:
        del fields["num_drums"]
        sounds = {file.name: _file_hash(file) for file in audio_files(data.one_shots)}
    return {"toy_drums": _WORLD_VERSION, "data": fields, "one_shots": sounds, "codec": asdict(codec_config)}


def _file_hash(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
