"""Which split a track belongs to."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.track import Track


@dataclass(frozen=True)
class Fractions:
    """Shares of the artists that are held out, where a source has no official split."""

    validation: float = 0.05
    """Share of the artists in the validation split."""
    test: float = 0.05
    """Share of the artists in the test split."""


def assign_splits(tracks: Iterable[Track], fractions: Fractions) -> tuple[Track, ...]:
    """The tracks with their split: the official one, else the one that the artist's other tracks have officially, else
    by a hash of the artist (of the track, if the artist is unknown), which depends on nothing else.

    Raises `UserError` for fractions that are none.
    """
    if not (fractions.validation >= 0 and fractions.test >= 0 and fractions.validation + fractions.test < 1):
        raise UserError(
            f"--validation {fractions.validation:g} and --test {fractions.test:g}: "
            "they must not be negative and leave something for training"
        )
    tracks = tuple(tracks)
    official: dict[str, set[str]] = {}
    for track in tracks:
        if track.split and track.artist:
            official.setdefault(track.artist, set()).add(track.split)
    return tuple(replace(track, split=track.split or _split(track, official, fractions)) for track in tracks)


def _split(track: Track, official: dict[str, set[str]], fractions: Fractions) -> str:
    of_artist = official.get(track.artist, set()) if track.artist else set()
    return next(iter(of_artist)) if len(of_artist) == 1 else hash_split(artist_key(track), fractions)


def artist_key(track: Track) -> str:
    """Names the artist of a track; a track of an unknown artist is an artist of its own."""
    return f"artist {track.artist}" if track.artist else f"track {track.id}"


def hash_split(key: str, fractions: Fractions) -> str:
    """The split of everything that shares this key."""
    draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    if draw < fractions.validation:
        return "validation"
    return "test" if draw < fractions.validation + fractions.test else "train"
