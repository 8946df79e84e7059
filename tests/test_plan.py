"""A plan: the last row of an id wins, every row is counted once, an artist is in one split, tags are suggested."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.plan import SUPERSEDED, Fractions, Selection, assign_splits, hash_split, summary
from melodjinn_jax.ingest.track import SPLITS, Plan, Track

FRACTIONS = Fractions()


def track(track_id: str, artist: str | None = None, **fields) -> Track:
    return Track(id=track_id, location=f"{track_id}.mp3", artist=artist, licence="by", **fields)


ROWS = st.lists(
    st.tuples(st.sampled_from("abcde"), st.sampled_from(["techno", "house", "", "refused", "nobody"])), max_size=30
)


@given(ROWS)
def test_every_row_is_a_track_or_counted_once_and_the_last_row_wins(rows):
    selection = Selection("here", ["techno"])
    selection.add(track("known"), ["techno"])
    for index, (track_id, kind) in enumerate(rows):
        if kind == "nobody":
            selection.skip("no id")
        elif kind == "refused":
            selection.refuse(track_id, "refused")
        else:
            selection.add(track(track_id, seconds=index + 1), [kind])
    plan = selection.plan()
    assert len(plan.tracks) + plan.skipped.total() == len(rows) + 1
    last = {track_id: (kind, index + 1) for index, (track_id, kind) in enumerate(rows) if kind != "nobody"}
    wanted = {track_id: index for track_id, (kind, index) in last.items() if kind == "techno"}
    assert {t.id: t.seconds for t in plan.tracks if t.id != "known"} == wanted
    assert plan.skipped["no id"] == sum(kind == "nobody" for _, kind in rows)
    assert plan.skipped[SUPERSEDED] == sum(kind != "nobody" for _, kind in rows) - len(last)


def test_a_tag_nobody_has_brings_the_nearest():
    selection = Selection("here", ["genre---tekno"])
    selection.add(track("a"), ["genre---techno", "instrument---piano"])
    with pytest.raises(UserError, match=r"--tags genre---tekno: no track has it \(perhaps you meant genre---techno\)"):
        selection.plan()
    selection = Selection("here", ["techno"])
    selection.add(track("a"), ["genre---techno", "genre---house"])
    with pytest.raises(UserError, match="perhaps you meant genre---techno"):
        selection.plan()
    selection = Selection("here", ["techno"])
    selection.add(track("a"), ["qqq"])
    with pytest.raises(UserError, match="choose a tag of the metadata"):
        selection.plan()
    # A tag that exists may have no track that can be used: then there is nothing, and the counts say why.
    selection = Selection("here", ["techno"])
    selection.add(track("a"), ["techno"])
    selection.refuse("a", "download not allowed")
    assert selection.plan() == Plan("here", (), Counter({SUPERSEDED: 1, "download not allowed": 1}))


TRACKS = st.lists(
    st.builds(
        track,
        st.integers(0, 10**6).map(str),
        st.sampled_from(["x", "y", "z", None]),
        split=st.sampled_from([None, None, *SPLITS]),
    ),
    unique_by=lambda t: t.id,
)


@given(TRACKS)
def test_official_splits_stand_and_artists_stay_together(tracks):
    assigned = assign_splits(tracks, FRACTIONS)
    assert [t.id for t in assigned] == [t.id for t in tracks]
    for before, after in zip(tracks, assigned, strict=True):
        assert after.split in SPLITS
        assert before.split in (None, after.split)
    official = {artist: {t.split for t in tracks if t.artist == artist and t.split} for artist in "xyz"}
    for artist, splits in official.items():
        of_rest = {a.split for b, a in zip(tracks, assigned, strict=True) if b.artist == artist and not b.split}
        assert len(of_rest) <= 1
        if len(splits) == 1:
            assert of_rest <= splits


def test_hash_splits_keep_to_the_fractions_and_to_themselves():
    keys = [f"artist {index}" for index in range(20000)]
    drawn = Counter(hash_split(key, Fractions(0.1, 0.2)) for key in keys)
    assert abs(drawn["validation"] - 2000) < 200
    assert abs(drawn["test"] - 4000) < 250
    # A split never changes with the library, the platform or the other artists.
    initials = "".join(hash_split(key, Fractions(0.3, 0.3))[1] for key in keys[:12])
    assert initials == "errreaeeerea"
    assert {hash_split(key, Fractions(0, 0)) for key in keys} == {"train"}
    alone = assign_splits([track(str(index)) for index in range(400)], Fractions(0.3, 0.3))
    assert len({t.split for t in alone}) == 3


@pytest.mark.parametrize("fractions", [Fractions(-0.1), Fractions(0.5, 0.5), Fractions(float("nan"))])
def test_fractions_that_are_none(fractions):
    with pytest.raises(UserError, match=r"--held-out\.validation"):
        assign_splits([], fractions)


def test_the_summary_adds_up():
    tracks = (
        track("a", "x", seconds=1800.0, split="train"),
        track("b", "x", seconds=3600.0),
        track("c", None, split="test"),
    )
    assert summary(Plan("here", tracks, Counter({"why": 2})), FRACTIONS) == {
        "tracks": 3,
        "hours": 1.5,
        "artists": 1,
        "splits": {
            "train": {"tracks": 2, "hours": 1.5},
            "validation": {"tracks": 0, "hours": 0.0},
            "test": {"tracks": 1, "hours": 0.0},
        },
        "licences": {"by": 3},
        "skipped": {"why": 2},
    }
