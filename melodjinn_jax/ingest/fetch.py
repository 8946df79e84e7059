"""Where the audio of tracks comes from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from melodjinn_jax.ingest.track import Track


@dataclass(frozen=True)
class Fetched:
    """The audio of one track, or why it could not be had."""

    track: Track
    path: Path | None
    reason: str | None = None


class Fetcher(Protocol):
    """Brings audio files, one after another; a temporary file is removed when the next one is asked for."""

    def fetch(self, tracks: Sequence[Track]) -> Iterator[Fetched]: ...


class LocalFolder:
    """Audio that is here already: the tracks' locations are paths below a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def fetch(self, tracks: Sequence[Track]) -> Iterator[Fetched]:
        for track in tracks:
            path = self.folder / track.location
            yield Fetched(track, path) if path.is_file() else Fetched(track, None, f"{path} is not there")
