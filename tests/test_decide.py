"""What becomes of scanned tracks: all are accounted for, and no recording or artist is on both sides."""

import base64
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from melodjinn_jax.ingest.decide import decide
from melodjinn_jax.ingest.plan import Fractions
from melodjinn_jax.ingest.scan import Scan
from melodjinn_jax.ingest.track import SPLITS, Track


def fake_scan(track: Track, words: np.ndarray, samples: int, sound: str) -> Scan:
    text = base64.b64encode(words.astype("<u4").tobytes()).decode()
    return Scan(track.id, samples=samples, file_sha256=track.id, audio_sha256=sound, words=text)


@given(st.data())
def test_nothing_is_lost_and_no_recording_or_artist_spans_splits(data):
    count = data.draw(st.integers(1, 12))
    official = data.draw(st.booleans())
    recordings = [np.random.default_rng(seed).integers(1, 1 << 20, 60).astype(np.uint32) for seed in range(5)]
    tracks, scans, recording_of = [], {}, {}
    for index in range(count):
        split = data.draw(st.sampled_from(SPLITS)) if official else None
        artist = data.draw(st.sampled_from(["a", "b", "c", None]))
        track = Track(f"t{index:02d}", f"t{index}", artist, "CC0", split=split)
        recording = data.draw(st.integers(0, 4))
        words = recordings[recording] ^ (np.arange(60) % 7 == 0) * np.uint32(1 << index)
        scans[track.id] = fake_scan(track, words, data.draw(st.integers(50, 300)), f"s{data.draw(st.integers(0, 30))}")
        tracks.append(track)
        recording_of[track.id] = recording
    decision = decide(tracks, scans, 100, Fractions(0.3, 0.3))
    kept = {one.track.id: one.track.split for one in decision.kept}
    out = {one.id: one.reason for one in decision.rejected}
    assert sorted([*kept, *out]) == [track.id for track in tracks]
    assert all(("too short" in reason) == (scans[name].samples < 100) for name, reason in out.items())
    for recording in range(5):
        assert len({split for name, split in kept.items() if recording_of[name] == recording}) <= 1
    artists: dict[str, set] = {}
    for one in decision.kept:
        if one.track.artist and not official and not decision.shares_artists:
            artists.setdefault(one.track.artist, set()).add(one.track.split)
    assert all(len(splits) == 1 for splits in artists.values())
    if official:
        assert all(track.split == kept[track.id] for track in tracks if track.id in kept)
    elif kept:
        assert "train" in kept.values()
    assert decision == decide(tracks[::-1], scans, 100, Fractions(0.3, 0.3))


def test_a_track_that_its_silent_ends_made_too_short_is_told_so():
    tracks = [Track(name, name, None, "CC0") for name in ("cut", "whole")]
    scans = {track.id: fake_scan(track, np.arange(60), 2400, track.id) for track in tracks}
    scans["cut"] = replace(scans["cut"], trimmed=24000)
    decision = decide(tracks, scans, 24000, Fractions(0.3, 0.3))
    assert {one.id: one.reason for one in decision.rejected} == {
        "cut": "too short: it lasts 0.10 s without the silence at its ends, and a record 1 s (--chunk-frames)",
        "whole": "too short: it lasts 0.10 s, and a record 1 s (--chunk-frames)",
    }
