"""What a source says of its recordings before any audio is touched."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Track:
    """One recording of a source, as its metadata describe it."""

    id: str
    """Unique in its source and safe as a file name: letters, digits, dot, hyphen and underscore."""
    location: str
    """Where its audio is: a path below the source's audio folder, or what the source's fetcher understands."""
    artist: str | None
    """The source's id of the artist; None if unknown, and then the track is an artist of its own."""
    licence: str
    """The licence of the recording, as the source states it ("unknown" if it does not)."""
    split: str | None = None
    """The official split, one of `SPLITS`, where the source has one; None: decided by a hash of the artist."""
    seconds: float | None = None
    """Duration that the metadata state; the decoded length decides."""
    sha256: str | None = None
    """Checksum of the audio file, where the source publishes it."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What else is carried into each record, as JSON: source, title, album, tags, address."""


@dataclass(frozen=True)
class Plan:
    """What a source would bring."""

    source: str
    tracks: tuple[Track, ...]
    skipped: Counter[str] = field(default_factory=Counter)
    """Metadata rows left out, counted by reason."""
