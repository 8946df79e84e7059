"""What is in a DATASET, for people: in words, and a few chunks to hear."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from melodjinn_jax.codecs import Codec, load_codec
from melodjinn_jax.data.audio import to_float32
from melodjinn_jax.data.dataset import Dataset
from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.summary import REJECTED, SUMMARY, TRACK_LIST, read_json_lines

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Chunk:
    """One record: its sound, the same through the codec, and where it is from."""

    split: str
    id: str
    waveform: np.ndarray
    """float32 `[F * H]`."""
    decoded: np.ndarray
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Contents:
    """A DATASET as `inspect` shows it. One that was not made from recordings has no tracks."""

    dataset: Dataset
    codec: Codec
    tracks: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    summary: dict[str, Any]
    chunks: list[Chunk]

    @property
    def hours(self) -> float:
        """Of the records, repeated frames included."""
        info = self.dataset.info
        return sum(info.records.values()) * info.frames_per_record * info.hop_length / info.sample_rate / 3600

    @property
    def bits_per_second(self) -> float:
        info = self.dataset.info
        return info.num_codebooks * math.log2(info.codebook_size) * info.sample_rate / info.hop_length

    def hours_by(self, field: str) -> dict[str, float]:
        """Hours of the tracks by a field of theirs, the most first."""
        hours: Counter[str] = Counter()
        for track in self.tracks:
            hours[track.get(field) or UNKNOWN] += track["seconds"] / 3600
        return dict(sorted(hours.items(), key=lambda item: (-item[1], item[0])))

    def rejected_by_kind(self) -> dict[str, int]:
        """Rejected tracks by the first word of their reason, the most first."""
        return dict(Counter(row["reason"].partition(":")[0] for row in self.rejected).most_common())


def read_contents(dataset: Dataset, chunks: int) -> Contents:
    """All that is shown, with about `chunks` records to hear. Raises `UserError` if something in it is damaged."""
    codec = load_codec(dataset.codec_folder)
    return Contents(
        dataset,
        codec,
        read_json_lines(dataset.path / TRACK_LIST),
        read_json_lines(dataset.path / REJECTED),
        _read_summary(dataset),
        [chunk for split, count in _shares(dataset, chunks).items() for chunk in _chunks(dataset, codec, split, count)],
    )


def _read_summary(dataset: Dataset) -> dict[str, Any]:
    if SUMMARY not in dataset.info.files:
        return {}
    try:
        return dict(json.loads((dataset.path / SUMMARY).read_bytes()))
    except (OSError, ValueError) as error:
        raise UserError(f"{dataset.path / SUMMARY} is damaged: prepare the DATASET again") from error


def _shares(dataset: Dataset, chunks: int) -> dict[str, int]:
    """Half of the chunks are of the training split, one at least if there are any to give."""
    others = max(1, len(dataset.info.records) - 1)
    of_train = max(chunks // 2, min(chunks, 1))
    return {
        split: of_train if split == "train" else -(-(chunks - of_train) // others) for split in dataset.info.records
    }


def _chunks(dataset: Dataset, codec: Codec, split: str, count: int) -> Iterable[Chunk]:
    source = dataset.source(split)
    # From the middles of equal parts, so that several tracks are heard.
    indices = sorted({(2 * part + 1) * len(source) // (2 * count) for part in range(count)})
    for index in indices:
        record = source[index]
        decoded = codec.decode(record["codes"][None].astype(np.int32))[0]
        waveform = to_float32(record["waveform"]).ravel()
        yield Chunk(split, record["id"], waveform, np.asarray(decoded), record["provenance"])


def describe(contents: Contents) -> str:
    """A page of text."""
    dataset, info = contents.dataset, contents.dataset.info
    records = f"{sum(info.records.values())} records of {info.frames_per_record} frames"
    lines = [f"{dataset.path}: {contents.hours:.2f} hours in {records}"]
    rate = f"{info.num_codebooks} codebooks of {info.codebook_size}, {contents.bits_per_second / 1000:.2f} kbps"
    lines.append(f"codec: {contents.codec.kind}, {rate}, digest {info.codec_digest[:12]}")
    for split, count in info.records.items():
        of = contents.summary.get("splits", {}).get(split)
        detail = f", {of['tracks']} tracks by {of['artists']} artists, {of['hours']:.2f} hours" if of else ""
        lines.append(f"{split}: {count} records{detail}")
    for title, field in (("artists", "artist"), ("licences", "licence")):
        if hours := contents.hours_by(field):
            lines.append(f"{title}: {_listed({name: f'{value:.2f} h' for name, value in hours.items()})}")
    for group in contents.summary.get("same_recordings", []):
        lines.append(f"the same recording, in one split: {', '.join(group)}")
    if contents.summary:
        kinds = _listed(contents.rejected_by_kind())
        out_of = f"{len(contents.rejected)} of {contents.summary['planned']} tracks"
        lines.append(f"rejected: {out_of}" + (f", {kinds}" if kinds else ""))
    return "\n".join(lines)


def _listed(values: Mapping[str, Any], most: int = 8) -> str:
    shown = ", ".join(f"{name} ({value})" for name, value in list(values.items())[:most])
    return shown + (f" and {len(values) - most} more" if len(values) > most else "")
