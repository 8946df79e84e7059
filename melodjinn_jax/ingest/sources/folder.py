"""Any folder of recordings as a source: what its paths and tags say."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from melodjinn_jax.data.audio import AUDIO_SUFFIXES
from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.decode import RejectedError, quiet_decoders, read_header
from melodjinn_jax.ingest.track import Plan, Track

_MAX_NAME = 80


def plan_folder(folder: Path) -> Plan:
    """Every audio file below a folder, in the order of their paths; other files are counted.

    The artist is the one of the file's tags, else the file's own folder; in `folder` itself, unknown. Raises
    `UserError` if there is no such folder, it cannot be read, or no audio file is in it.
    """
    if not folder.is_dir():
        raise UserError(f"--input {folder} is not a folder: give the folder of the audio files")
    skipped: Counter[str] = Counter()
    tracks = []
    with quiet_decoders():
        for path in sorted(_files(folder)):
            # What lies in a hidden folder may be a wastebasket, or the unfinished DATASET of this very command.
            if any(part.startswith(".") for part in path.relative_to(folder).parts):
                skipped["hidden file"] += 1
            elif path.suffix.lower() not in AUDIO_SUFFIXES:
                skipped["not an audio file by its name"] += 1
            else:
                tracks.append(_track(path, folder))
    if not tracks:
        raise UserError(
            f"--input {folder} holds no audio file ({', '.join(sorted(AUDIO_SUFFIXES))}): give another folder"
        )
    return Plan("folder", tuple(tracks), skipped)


def _files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}): mend its permissions or move it away")

    for place, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(place) / name for name in names)


def _track(path: Path, folder: Path) -> Track:
    location = path.relative_to(folder)
    try:
        header = read_header(path)
        artist, title, licence, size = header.artist, header.title, header.licence, path.stat().st_size
    except (RejectedError, OSError):  # its scan will say what is wrong with it
        artist = title = licence = ""
        size = None
    return Track(
        id=_safe_id(location),
        location=str(location),
        artist=artist or (_as_text(location.parent) if location.parent.parts else None),
        licence=licence or "unknown",
        provenance={"title": title or _as_text(path.stem), "bytes": size},
    )


def _as_text(name: str | Path) -> str:
    """A name that any text can hold: bytes of it that are no UTF-8 are written out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _safe_id(location: Path) -> str:
    """A name with what can be read of the path, and a hash of all of it."""
    digest = hashlib.sha256(os.fsencode(location)).hexdigest()[:8]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(location.parts)).strip("._-")
    return f"{readable[-_MAX_NAME:]}-{digest}".lstrip("._-")
