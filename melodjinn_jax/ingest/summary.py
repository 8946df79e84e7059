"""What came of a plan, in numbers: `summary.json` of a DATASET."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from melodjinn_jax.data.audio import SAMPLE_RATE
from melodjinn_jax.ingest.decide import Decision, Kept
from melodjinn_jax.ingest.shards import Counts
from melodjinn_jax.ingest.track import SPLITS, Plan


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
        "silent_records": sum(one.silent_records for one in counts),
        "repeated_frames": sum(one.repeated_frames for one in counts),
    }
