"""Metadata files as rows and fields, whatever is in them."""

import hashlib
import math
import re
from collections.abc import Iterator
from pathlib import Path

from melodjinn_jax.errors import UserError

NOT_TEXT = "row is not UTF-8 text"
_LONGEST_LINE = 1 << 24  # bytes; a waveform drawing in a Jamendo row takes some thousands
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LONGEST_TRACK = 1e6  # seconds


def text_lines(file: Path) -> Iterator[str | None]:
    """The lines of a UTF-8 file that are not blank, without their ends; None for one that is not UTF-8 or endless.

    Only one line is in memory at a time. Raises `UserError` if the file cannot be read.
    """
    try:
        with file.open("rb") as stream:
            first = True
            while line := stream.readline(_LONGEST_LINE):
                whole = len(line) < _LONGEST_LINE or line.endswith(b"\n")
                while not whole and (rest := stream.readline(_LONGEST_LINE)):
                    whole, line = rest.endswith(b"\n"), b"\xff"
                text = _decode(line.removeprefix(b"\xef\xbb\xbf") if first else line)
                first = False
                if text is None or text.strip():
                    yield text
    except OSError as error:
        raise unreadable(file, error) from error


def unreadable(file: Path, error: OSError) -> UserError:
    """The error of a metadata file that cannot be read."""
    return UserError(f"{file} cannot be read: {error.strerror or error}")


def _decode(line: bytes) -> str | None:
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        return None


def clean(value: object) -> str:
    """A field as text that can be stored: trimmed, no lone surrogates, "" for anything but text and whole numbers."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        return ""
    return str(value).encode("utf-8", "replace").decode("utf-8").strip()


def seconds_of(value: object) -> float | None:
    """A duration in seconds as metadata state it, or None if that is no positive number of a credible size."""
    try:
        seconds = float(clean(value) if not isinstance(value, float) else value)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and 0 < seconds < _LONGEST_TRACK else None


def safe_id(text: str) -> str:
    """`text` as a file name of letters, digits, dots, hyphens and underscores; different texts stay different."""
    if _SAFE_ID.fullmatch(text):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", text).lstrip("._-")[:80]
    return f"{stem}-{digest}" if stem else digest
