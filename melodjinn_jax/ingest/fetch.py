"""From tracks to audio files on this machine: the interface of all sources, and a folder that has them already."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.track import Track

WRONG_CHECKSUM = "its SHA-256 is not the published one"


@dataclass(frozen=True)
class Fetched:
    """The audio file of a track, or why there is none."""

    track: Track
    path: Path | None
    """Is there until the iterator that gave it advances; then the fetcher removes it, if it brought it."""
    reason: str | None = None
    """Why there is no file; None if there is."""


class Fetcher(Protocol):
    """Brings the audio of tracks, in the order that suits the source, each track once."""

    def fetch(self, tracks: Sequence[Track]) -> Iterator[Fetched]:
        """Every track exactly once, with its file or a reason. Few files are on disk at any time.

        Raises `UserError` when going on is useless: no network, no space, a wrong archive.
        """
        ...


class LocalFolder:
    """A folder that holds the audio files at the locations of the tracks; nothing there is changed or verified."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise UserError(f"--input {folder} is not a folder: give the folder of the audio files")
        self._folder = folder

    def fetch(self, tracks: Sequence[Track]) -> Iterator[Fetched]:
        """The files, in the order of the tracks."""
        for track in tracks:
            file = self._folder / track.location
            there = os.path.isfile(file)  # a folder that may not be entered is no reason to stop
            yield Fetched(track, file if there else None, None if there else "no such file in the folder")


@contextlib.contextmanager
def lent(file: Path) -> Iterator[Path]:
    """A file that is removed when the consumer is done with it."""
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def tidied(folder: Path) -> Iterator[None]:
    """In the end the folder of downloads is removed, if nothing is left in it."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()
