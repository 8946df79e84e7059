"""What a source would bring: the rows that become tracks, their splits, and the numbers that `--plan` prints."""

import difflib
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.track import SPLITS, Plan, Track

SUPERSEDED = "repeated row (the last one counts)"
OTHER_TAGS = "without the tags asked for"


class Selection:
    """Collects the rows of a source.

    The last row of an id wins, and every row that becomes no track is counted under exactly one reason, so the tracks
    and the counts of the plan add up to the rows read.
    """

    def __init__(self, source: str, tags: Sequence[str] = ()):
        self._source = source
        self._wanted = frozenset(tags)
        self._known: set[str] = set()
        self._rows: dict[str, Track | str] = {}
        self._skipped: Counter[str] = Counter()

    def add(self, track: Track, tags: Iterable[str] = ()) -> None:
        """A row that is a track with these tags."""
        tags = set(tags)
        self._known |= tags
        self._put(track.id, track if not self._wanted or self._wanted & tags else OTHER_TAGS)

    def refuse(self, track_id: str, reason: str) -> None:
        """A row of this track that cannot be used; it takes the place of an earlier row."""
        self._put(track_id, reason)

    def skip(self, reason: str) -> None:
        """A row that does not even say whose it is."""
        self._skipped[reason] += 1

    def plan(self) -> Plan:
        """The tracks, in order of their ids. Raises `UserError` for a tag that no row has."""
        for tag in sorted(self._wanted - self._known):
            raise UserError(f"--tags {tag}: no track has it{_perhaps(tag, self._known)}")
        skipped = self._skipped + Counter(row for row in self._rows.values() if isinstance(row, str))
        tracks = sorted((row for row in self._rows.values() if isinstance(row, Track)), key=lambda track: track.id)
        return Plan(self._source, tuple(tracks), skipped)

    def _put(self, track_id: str, row: Track | str) -> None:
        if track_id in self._rows:
            self._skipped[SUPERSEDED] += 1
        self._rows[track_id] = row


def _perhaps(tag: str, known: Iterable[str]) -> str:
    """The tags nearest to `tag`, with or without their category, as the end of a sentence."""
    by_name: dict[str, str] = {}
    for name in sorted(known):
        by_name.setdefault(name.rpartition("---")[2], name)
        by_name[name] = name
    near = [*difflib.get_close_matches(tag, by_name), *difflib.get_close_matches(tag.rpartition("---")[2], by_name)]
    names = list(dict.fromkeys(by_name[name] for name in near))[:3]
    return f" (perhaps you meant {' or '.join(names)})" if names else ": choose a tag of the metadata"


@dataclass(frozen=True)
class Fractions:
    """Shares of the artists that are held out, where a source has no official split."""

    validation: float = 0.05
    """Share of the artists in the validation split."""
    test: float = 0.05
    """Share of the artists in the test split."""


def check_fractions(fractions: Fractions) -> None:
    """Raise `UserError` for fractions that are none."""
    if not (fractions.validation >= 0 and fractions.test >= 0 and fractions.validation + fractions.test < 1):
        raise UserError(
            f"--held-out.validation {fractions.validation:g} and --held-out.test {fractions.test:g}: "
            "they must not be negative and leave something for training"
        )


def assign_splits(tracks: Iterable[Track], fractions: Fractions) -> tuple[Track, ...]:
    """The tracks with their split: the official one, else the one that the artist's other tracks have officially, else
    by a hash of the artist (of the track, if the artist is unknown), which depends on nothing else.

    Raises `UserError` for fractions that are none.
    """
    check_fractions(fractions)
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


def summary(plan: Plan, fractions: Fractions) -> dict[str, Any]:
    """What `--plan` prints. Hours add up the durations that the metadata state; unknown artists are not counted."""
    tracks = assign_splits(plan.tracks, fractions)
    of_split = {split: [track for track in tracks if track.split == split] for split in SPLITS}
    return {
        "tracks": len(tracks),
        "hours": _hours(tracks),
        "artists": len({track.artist for track in tracks if track.artist}),
        "splits": {split: {"tracks": len(own), "hours": _hours(own)} for split, own in of_split.items()},
        "licences": dict(Counter(track.licence for track in tracks).most_common()),
        "skipped": dict(plan.skipped.most_common()),
    }


def _hours(tracks: Iterable[Track]) -> float:
    return round(sum(track.seconds or 0 for track in tracks) / 3600, 3)
