"""The metadata of the MTG-Jamendo dataset: a ragged TSV of tracks, official splits, licences, checksums.

They lie in the dataset's repository, and what stands beside the TSV there is found by itself:

    data/autotagging_genre.tsv                              TRACK_ID ARTIST_ID ALBUM_ID PATH DURATION TAGS...
    data/splits/split-0/autotagging_genre-train.tsv         the same rows, by split
    data/download/raw_30s_audio_sha256_tracks.txt           SHA-256 and path
    audio_licenses.txt                                      blocks: path, title, licence
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.plan import Selection
from melodjinn_jax.ingest.rows import NOT_TEXT, clean, seconds_of, text_lines
from melodjinn_jax.ingest.track import SPLITS, Plan, Track

NAME = "mtg_jamendo"
Quality = Literal["audio", "audio-low"]

_HEADER = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]
_ID = re.compile(r"track_([0-9]{1,12})")
_PATH = re.compile(r"[0-9]{2}/[0-9]{1,12}\.mp3")
_CHECKSUM = re.compile(r"([0-9a-f]{64})\s+\*?(\S+)")
_ADDRESS = re.compile(r"https?://\S+")


@dataclass(frozen=True)
class Companions:
    """What is known of the tracks beside their rows."""

    splits: dict[str, str]
    """Track id -> split."""
    licences: dict[str, tuple[str, str]]
    """Path -> licence and credit line."""
    checksums: dict[str, str]
    """Path of the audio file -> SHA-256."""


def read_plan(metadata: Path, tags: Sequence[str], companions: Companions, quality: Quality) -> Plan:
    """The tracks that have any of `tags` (all, if there are none), from the TSV at `metadata`.

    Raises `UserError` if it is no such TSV, or no track has one of the tags.
    """
    lines = text_lines(metadata)
    header = next(lines, None)
    if header is None or header.split("\t") != _HEADER:
        raise UserError(f"{metadata} is not a TSV of MTG-Jamendo: its first line must be {' '.join(_HEADER)}")
    selection = Selection(NAME, tags)
    for line in lines:
        _read_row(line, selection, companions, quality)
    return selection.plan()


def _read_row(line: str | None, selection: Selection, companions: Companions, quality: Quality) -> None:
    if line is None:
        return selection.skip(NOT_TEXT)
    fields = [clean(field) for field in line.split("\t")]
    if not (match := _ID.fullmatch(fields[0])):
        return selection.skip("no track id")
    if len(fields) < len(_HEADER) - 1:
        return selection.refuse(fields[0], "row too short")
    track_id, artist, album, path, duration, *tags = fields
    if not _PATH.fullmatch(path):
        return selection.refuse(track_id, "no path of an audio file")
    tags = [tag for tag in tags if tag]
    licence, credit = companions.licences.get(path, ("unknown", ""))
    location = path if quality == "audio" else path.replace(".mp3", ".low.mp3")
    provenance: dict[str, Any] = {"album": album, "tags": tags, "credit": credit}
    provenance["address"] = f"https://www.jamendo.com/track/{int(match[1])}"
    track = Track(
        id=track_id,
        location=location,
        artist=artist or None,
        licence=licence,
        split=companions.splits.get(track_id),
        seconds=seconds_of(duration),
        sha256=companions.checksums.get(location),
        provenance={"source": NAME} | provenance,
    )
    return selection.add(track, tags)


def find_companions(
    metadata: Path, *, split: int | None, licences: Path | None, checksums: Path | None, quality: Quality
) -> Companions:
    """Reads what lies beside the TSV in the dataset's repository, and the files that are named.

    Without `split`, the official split 0 is taken if it is there. Raises `UserError` if a split asked for is not there
    or a named file cannot be read.
    """
    licences = licences or _beside(metadata, "audio_licenses.txt")
    checksums = checksums or _beside(metadata, f"download/raw_30s_{quality}_sha256_tracks.txt")
    return Companions(
        splits=_read_splits(metadata, split),
        licences=_read_licences(licences) if licences else {},
        checksums=_read_checksums(checksums) if checksums else {},
    )


def _beside(metadata: Path, name: str) -> Path | None:
    candidates = (folder / name for folder in (metadata.parent, metadata.absolute().parent.parent))
    return next((file for file in candidates if file.is_file()), None)


def _read_splits(metadata: Path, number: int | None) -> dict[str, str]:
    splits: dict[str, str] = {}
    for split in SPLITS:
        name = f"splits/split-{number or 0}/{metadata.stem}-{split}.tsv"
        file = _beside(metadata, name)
        if file is None and number is None:
            return {}
        if file is None:
            raise UserError(f"--split {number}: there is no {metadata.parent / name}, so choose another or none")
        splits |= {line.split("\t")[0]: split for line in text_lines(file) if line}
    return splits


def _read_licences(file: Path) -> dict[str, tuple[str, str]]:
    """Path -> licence and credit line. A block is the path, the credit, and a sentence that ends in the licence."""
    licences: dict[str, tuple[str, str]] = {}
    path = ""
    for line in text_lines(file):
        text = clean(line)
        if _PATH.fullmatch(text):
            path = text
            licences[path] = ("unknown", "")
        elif path and text.startswith("Available under"):
            licences[path] = ((_ADDRESS.findall(text) or [text])[-1], licences[path][1])
        elif path and not licences[path][1]:
            licences[path] = (licences[path][0], text)
    return licences


def _read_checksums(file: Path) -> dict[str, str]:
    matches = (_CHECKSUM.fullmatch(line.strip()) for line in text_lines(file) if line)
    return {match[2]: match[1] for match in matches if match}
