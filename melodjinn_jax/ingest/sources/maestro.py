"""The metadata of MAESTRO: its CSV, or the JSON twin (a list of records in version 2, columns in version 3)."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.plan import Selection
from melodjinn_jax.ingest.rows import NOT_TEXT, clean, safe_id, seconds_of, unreadable
from melodjinn_jax.ingest.track import SPLITS, Plan, Track

NAME = "maestro"
LICENCE = "https://creativecommons.org/licenses/by-nc-sa/4.0/"

_COLUMNS = ("canonical_composer", "canonical_title", "split", "year", "midi_filename", "audio_filename", "duration")
_WAV = re.compile(r"[^/\\\x00-\x1f]+(/[^/\\\x00-\x1f]+)*\.wav")
_UNREADABLE = "unreadable row"


def read_plan(metadata: Path) -> Plan:
    """All recordings, with their official splits. The performers are not named, so no recording has an artist.

    Raises `UserError` if the file is neither MAESTRO's CSV nor its JSON.
    """
    selection = Selection(NAME)
    for row in _json_rows(metadata) if metadata.suffix.lower() == ".json" else _csv_rows(metadata):
        _read_row(row, selection)
    return selection.plan()


def _csv_rows(file: Path) -> Iterator[dict[str, Any] | None]:
    """The rows by column; None for one that cannot be read."""
    try:
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            rows = csv.reader(stream)
            header = _next_row(rows)
            if header is None or not set(_COLUMNS) <= set(header):
                raise _not_maestro(file)
            while (row := _next_row(rows)) != []:
                yield None if row is None else dict(zip(header, row, strict=False))
    except OSError as error:
        raise unreadable(file, error) from error


def _next_row(rows: Iterator[list[str]]) -> list[str] | None:
    """The next row that is not blank, [] at the end, None for one that cannot be read."""
    try:
        return next((row for row in rows if row), [])
    except csv.Error:
        return None


def _json_rows(file: Path) -> Iterator[dict[str, Any] | None]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, RecursionError) as error:
        raise _not_maestro(file) from error
    if isinstance(content, dict):
        columns = {name: content.get(name) for name in _COLUMNS}
        if not all(isinstance(column, dict) for column in columns.values()):
            raise _not_maestro(file)
        indices = dict.fromkeys(index for column in columns.values() for index in column)  # type: ignore[union-attr]
        content = [{name: column.get(index) for name, column in columns.items()} for index in indices]  # type: ignore[union-attr]
    if not isinstance(content, list):
        raise _not_maestro(file)
    yield from (row if isinstance(row, dict) else None for row in content)


def _not_maestro(file: Path) -> UserError:
    return UserError(f"{file} is not the metadata of MAESTRO: give maestro-v3.0.0.csv or maestro-v3.0.0.json")


def _read_row(row: dict[str, Any] | None, selection: Selection) -> None:
    if row is None:
        return selection.skip(_UNREADABLE)
    fields = {name: clean(row.get(name)) for name in _COLUMNS}
    path = fields["audio_filename"]
    if not path:
        return selection.skip("no audio file named")
    if any("\ufffd" in text for text in fields.values()):
        return selection.skip(NOT_TEXT)
    if not _WAV.fullmatch(path) or any(part.startswith("..") for part in path.split("/")):
        return selection.skip("no path of an audio file")
    track = Track(
        id=safe_id(path.removesuffix(".wav").replace("/", "_")),
        location=path,
        artist=None,
        licence=LICENCE,
        split=fields["split"] if fields["split"] in SPLITS else None,
        seconds=seconds_of(row.get("duration")),
        provenance={
            "source": NAME,
            "title": fields["canonical_title"],
            "composer": fields["canonical_composer"],
            "year": fields["year"],
            "file": path,
        },
    )
    return selection.add(track)
