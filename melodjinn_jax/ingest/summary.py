"""What a DATASET says of its making, beside its records.

tracks.jsonl     one line for each track in it: what its records carry as provenance, and its split
rejected.jsonl   one line for each track that is not: id, path, reason
summary.json     all of it in numbers
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from melodjinn_jax.data.audio import SAMPLE_RATE
from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.decide import Decision, Kept
from melodjinn_jax.ingest.shards import Counts
from melodjinn_jax.ingest.track import SPLITS, Plan

TRACK_LIST, REJECTED, SUMMARY = "tracks.jsonl", "rejected.jsonl", "summary.json"


def provenance(source: str, kept: Kept) -> dict[str, Any]:
    """What every record of a track carries, as JSON."""
    track, scan = kept.track, kept.scan
    return {
        **track.provenance,
        "source": source,
        "track": track.id,
        "path": track.location,
        "artist": track.artist,
        "licence": track.licence,
        "seconds": round(scan.samples / SAMPLE_RATE, 3),
        "stated_seconds": track.seconds,
        "original": scan.original,
        "sha256": scan.file_sha256,
        "gain": scan.gain,
        "same_as": kept.same_as,
    }


def track_entries(source: str, kept: Iterable[Kept]) -> list[dict[str, Any]]:
    """The lines of `tracks.jsonl`."""
    return [{"split": one.track.split, **provenance(source, one)} for one in kept]


def to_json_lines(entries: Iterable[Mapping[str, Any]]) -> bytes:
    """A line of JSON for each; what no other text can hold, such as undecodable file names, is escaped."""
    return "".join(json.dumps(entry) + "\n" for entry in entries).encode()


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """The entries of a file; none if there is no such file. Raises `UserError` if it is damaged."""
    try:
        return [json.loads(line) for line in file.read_bytes().splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: prepare its DATASET again") from error


def summarize(plan: Plan, decision: Decision, counts: Sequence[Counts]) -> dict[str, Any]:
    """What `summary.json` says: what was planned, what came of it, and what was left out."""

    def of(kept: Sequence[Kept]) -> dict[str, Any]:
        seconds = sum(one.scan.samples for one in kept) / SAMPLE_RATE
        artists = {one.track.artist for one in kept if one.track.artist}
        return {"tracks": len(kept), "hours": round(seconds / 3600, 4), "artists": len(artists)}

    groups: dict[str, list[str]] = {}
    for one in decision.kept:
        if one.same_as:
            groups.setdefault(one.same_as, []).append(one.track.id)
    return {
        "source": plan.source,
        "planned": len(plan.tracks),
        "skipped": dict(plan.skipped),
        **of(decision.kept),
        "splits": {split: of([one for one in decision.kept if one.track.split == split]) for split in SPLITS},
        "licences": dict(Counter(one.track.licence for one in decision.kept).most_common()),
        "rejected": dict(Counter(one.kind for one in decision.rejected).most_common()),
        "same_recordings": sorted(groups.values()),
        "artists_in_several_splits": decision.shares_artists,
        "trimmed_seconds": round(sum(one.scan.trimmed for one in decision.kept) / SAMPLE_RATE, 1),
        "silent_records": sum(one.silent_records for one in counts),
        "repeated_frames": sum(one.repeated_frames for one in counts),
    }
