"""What becomes of every track: in, in which split, or out, and why. A pure function of the plan and the scans."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from melodjinn_jax.data.audio import SAMPLE_RATE
from melodjinn_jax.ingest.fingerprint import components, find_near_duplicates
from melodjinn_jax.ingest.plan import Fractions, artist_key, assign_splits, hash_split
from melodjinn_jax.ingest.scan import Scan
from melodjinn_jax.ingest.track import SPLITS, Track

_NO_LOSS = ("silent", "too short", "copy", "held-out copy")
"""Kinds of rejection that say nothing of the source's health."""


@dataclass(frozen=True)
class Rejected:
    """A track that is left out."""

    id: str
    path: str
    reason: str
    """`kind: detail`."""

    @property
    def kind(self) -> str:
        return self.reason.partition(":")[0]

    @property
    def is_loss(self) -> bool:
        """Whether it should have been there: what is short, silent or a copy is whole as it is."""
        return self.kind not in _NO_LOSS


@dataclass(frozen=True)
class Kept:
    """A track that goes in."""

    track: Track
    """Its split is set."""
    scan: Scan
    same_as: str | None
    """The first of the other recordings that are nearly the same, itself included; None if there are none."""


@dataclass(frozen=True)
class Decision:
    """In order of their ids."""

    kept: tuple[Kept, ...]
    rejected: tuple[Rejected, ...]
    shares_artists: bool = False
    """Whether artists may be in several splits, because there are too few of them."""


def decide(tracks: Iterable[Track], scans: Mapping[str, Scan], min_samples: int, fractions: Fractions) -> Decision:
    """Reject what cannot be used and exact copies; give near-duplicates, and their artists, one split.

    Args:
      tracks: of the plan.
      scans: of every track, by id.
      min_samples: at 24 kHz; a shorter track is rejected.
      fractions: of the artists, held out where the source has no official split.
    """
    rejected: list[Rejected] = []
    whole: list[Track] = []
    # The most held-out of several copies stays, for its split is the one that others know.
    for track in sorted(tracks, key=lambda track: (-_seclusion(track), track.id)):
        reason = scans[track.id].reason or _too_short(scans[track.id], min_samples)
        if reason:
            rejected.append(Rejected(track.id, track.location, reason))
        else:
            whole.append(track)
    whole, copies = _without_copies(whole, scans)
    same = components(len(whole), find_near_duplicates([scans[track.id].fingerprint for track in whole]))
    whole, same, leaks = _without_leaks(whole, same)
    split, shares_artists = _splits(whole, same, scans, fractions)
    members: defaultdict[int, list[str]] = defaultdict(list)
    for track, root in zip(whole, same, strict=True):
        members[root].append(track.id)
    kept = [
        Kept(replace(track, split=own), scans[track.id], min(members[root]) if len(members[root]) > 1 else None)
        for track, own, root in zip(whole, split, same, strict=True)
    ]
    return Decision(
        tuple(sorted(kept, key=lambda kept: kept.track.id)),
        tuple(sorted([*rejected, *copies, *leaks], key=lambda rejected: rejected.id)),
        shares_artists,
    )


def _seclusion(track: Track) -> int:
    """How held out a track is officially: test before validation before train before none."""
    return SPLITS.index(track.split) if track.split else -1


def _too_short(scan: Scan, min_samples: int) -> str | None:
    if scan.samples >= min_samples:
        return None
    seconds, least = scan.samples / SAMPLE_RATE, min_samples / SAMPLE_RATE
    apart = " without the silence at its ends" if scan.trimmed else ""
    return f"too short: it lasts {seconds:.2f} s{apart}, and a record {least:g} s (--chunk-frames)"


def _without_copies(tracks: Sequence[Track], scans: Mapping[str, Scan]) -> tuple[list[Track], list[Rejected]]:
    """The first of tracks that are the same file, or sound the same to the last bit."""
    first: dict[str, str] = {}
    kept, copies = [], []
    for track in tracks:
        scan = scans[track.id]
        for what, digest in (("file", scan.file_sha256), ("sound", scan.audio_sha256)):
            if digest in first:
                copies.append(Rejected(track.id, track.location, f"copy: the same {what} as {first[digest]}"))
                break
        else:
            first |= {scan.file_sha256: track.id, scan.audio_sha256: track.id}
            kept.append(track)
    return kept, copies


def _without_leaks(tracks: Sequence[Track], same: Sequence[int]) -> tuple[list[Track], list[int], list[Rejected]]:
    """Where official splits part one recording, only what is in its most held-out split stays."""
    leading: dict[int, Track] = {}
    for track, root in zip(tracks, same, strict=True):
        leading.setdefault(root, track)  # the most held-out comes first
    kept, roots, leaks = [], [], []
    for track, root in zip(tracks, same, strict=True):
        leader = leading[root]
        if track.split and track.split != leader.split:
            detail = f"the same recording as {leader.id}, which is in the official {leader.split} split"
            leaks.append(Rejected(track.id, track.location, f"held-out copy: {detail}"))
        else:
            kept.append(replace(track, split=leader.split))
            roots.append(root)
    return kept, roots, leaks


def _splits(
    tracks: Sequence[Track], same: Sequence[int], scans: Mapping[str, Scan], fractions: Fractions
) -> tuple[list[str], bool]:
    """The split of every track, and whether the artists had to be parted.

    Tracks of one artist and recordings that are nearly the same hang together and share the split of the artist among
    them whose name comes first. Where that leaves a split empty, the collection is too small for chance to divide it.
    """
    official = any(track.split for track in tracks)
    assigned = [track.split or "train" for track in assign_splits(tracks, fractions)]
    if official:
        return assigned, False
    wanted = [split for split in SPLITS if split == "train" or getattr(fractions, split) > 0]
    families = _families(tracks, same)
    shares_artists = len(set(families)) < len(wanted)
    if shares_artists:
        families = list(same)
    seconds: Counter[int] = Counter()
    for track, family in zip(tracks, families, strict=True):
        seconds[family] += scans[track.id].samples
    keys: dict[int, str] = {}
    for track, family in zip(tracks, families, strict=True):
        key = f"track {track.id}" if shares_artists else artist_key(track)
        keys[family] = min(keys.get(family, key), key)
    of_family = {family: hash_split(key, fractions) for family, key in keys.items()}
    _fill_empty(of_family, wanted, seconds)
    return [of_family[family] for family in families], shares_artists


def _families(tracks: Sequence[Track], same: Sequence[int]) -> list[int]:
    by_artist: defaultdict[str, list[int]] = defaultdict(list)
    for index, track in enumerate(tracks):
        by_artist[artist_key(track)].append(index)
    links = [(indices[0], index) for indices in by_artist.values() for index in indices[1:]]
    return components(len(tracks), [*links, *((root, index) for index, root in enumerate(same))])


def _fill_empty(of_family: dict[int, str], wanted: Sequence[str], seconds: Mapping[int, int]) -> None:
    """Give a split that has nothing something: training the longest family, a held-out split the shortest to spare."""
    for split in wanted:
        counts = Counter(of_family.values())
        spare = [family for family, own in of_family.items() if counts[own] > 1 or split == "train"]
        if not counts[split] and spare:
            chosen = sorted(spare, key=lambda family: (seconds[family], family))[-1 if split == "train" else 0]
            of_family[chosen] = split
