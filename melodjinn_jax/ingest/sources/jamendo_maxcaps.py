"""The metadata of JamendoMaxCaps: one JSONL file per day, whose rows are those of the Jamendo API (`/tracks`)."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.plan import Selection
from melodjinn_jax.ingest.rows import NOT_TEXT, clean, safe_id, seconds_of, text_lines, unreadable
from melodjinn_jax.ingest.track import Plan, Track

NAME = "jamendo_maxcaps"
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\.jsonl")


def read_plan(metadata: Path, tags: Sequence[str]) -> Plan:
    """The tracks that have any of `tags` (all, if there are none) among their genres.

    `metadata` is the folder of JSONL files, read in order of their days, or one of them; one row is in memory at a
    time. Raises `UserError` if there are none, or no track has one of the tags.
    """
    selection = Selection(NAME, tags)
    for file in _day_files(metadata):
        for line in text_lines(file):
            _read_row(line, selection)
    return selection.plan()


def download_address(track: Track) -> str:
    """The address of a track's audio at Jamendo; "" if its row names none."""
    return str(track.provenance["download"])


def _day_files(metadata: Path) -> list[Path]:
    if not metadata.is_dir():
        return [metadata]
    try:
        files = sorted(file for file in metadata.iterdir() if _DAY.fullmatch(file.name))
    except OSError as error:
        raise unreadable(metadata, error) from error
    if not files:
        raise UserError(
            f"--metadata {metadata} holds no file named YYYY-MM-DD.jsonl: give the folder of JamendoMaxCaps"
        )
    return files


def _read_row(line: str | None, selection: Selection) -> None:
    if line is None:
        return selection.skip(NOT_TEXT)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return selection.skip("row is not JSON")
    number = clean(row.get("id")) if isinstance(row, dict) else ""
    if not number:
        return selection.skip("no track id")
    track_id = safe_id(number)
    if not _may_be_downloaded(row):
        return selection.refuse(track_id, "download not allowed")
    tags = _tags(row)
    track = Track(
        id=track_id,
        location=f"{track_id}.mp3",
        artist=clean(row.get("artist_id")) or None,
        licence=clean(row.get("license_ccurl")) or "unknown",
        seconds=seconds_of(row.get("duration")),
        provenance=_provenance(row, tags),
    )
    return selection.add(track, tags["genres"])


def _may_be_downloaded(row: dict[str, Any]) -> bool:
    """The artist decides; where the row does not say, an address to download from is the permission."""
    allowed = row.get("audiodownload_allowed")
    if allowed is None:
        return row.get("audiodownload") != ""
    return allowed is True or clean(allowed).lower() in ("true", "1")


def _tags(row: dict[str, Any]) -> dict[str, list[str]]:
    """The tags by kind; whatever is missing or of another type is left out."""
    information = row.get("musicinfo")
    tags = information.get("tags") if isinstance(information, dict) else None
    lists = {kind: tags.get(kind) if isinstance(tags, dict) else None for kind in ("genres", "instruments", "vartags")}
    return {
        kind: [name for tag in found if (name := clean(tag))] if isinstance(found, list) else []
        for kind, found in lists.items()
    }


def _provenance(row: dict[str, Any], tags: dict[str, list[str]]) -> dict[str, Any]:
    address, download = clean(row.get("shareurl")), clean(row.get("audiodownload"))
    return {
        "source": NAME,
        "title": clean(row.get("name")),
        "artist_name": clean(row.get("artist_name")),
        "album": clean(row.get("album_id")),
        "tags": [tag for found in tags.values() for tag in found],
        "address": address,
        "download": download,
    }
