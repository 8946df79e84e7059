"""The onset detector finds what was played and nothing else; matching is one to one, symmetric and class-aware."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from melodjinn_jax.config import DataConfig
from melodjinn_jax.data.one_shots import one_shots_for
from melodjinn_jax.data.toy_drums import make_clips
from melodjinn_jax.evaluation.onsets import Onset, OnsetDetector, log_mel, match_onsets

FRAMES, HOP = 48, 320
WORLDS = {
    "random": DataConfig(heldout_clips=20, clip_frames=FRAMES),
    "soft": DataConfig(heldout_clips=20, clip_frames=FRAMES, min_velocity=0.5, hits_per_second=8),
    "loop": DataConfig(heldout_clips=20, clip_frames=FRAMES, rhythm="loop"),
    "grid": DataConfig(heldout_clips=20, clip_frames=FRAMES, offsets=False),
}


def play(data):
    drums = one_shots_for(data)
    clips = make_clips(data, drums, "test")
    hits = [[Onset(hit.sample / HOP, hit.drum, hit.gain) for hit in clip.hits] for clip in clips]
    return OnsetDetector(drums.waveforms, 24000, HOP), np.stack([clip.waveform for clip in clips]), hits


@pytest.mark.parametrize("world", WORLDS)
def test_finds_the_hits(world):
    detector, waveforms, hits = play(WORLDS[world])
    matching = match_onsets(hits, detector(waveforms), start=1, stop=FRAMES - 1)
    assert matching.f1 > 0.99
    assert matching.num_reference > 20
    assert np.std(matching.timing_errors) < 0.1


def test_polarity_and_the_start_of_the_clip_do_not_matter():
    detector, waveforms, hits = play(WORLDS["soft"])
    matching = match_onsets(hits, detector(-waveforms), start=1, stop=FRAMES - 1)
    assert matching.f1 > 0.99
    # Cut through tails: what began before the cut is no onset.
    cut, shift = waveforms[:, 10 * HOP + 100 :][:, : 32 * HOP], 10 + 100 / HOP
    later = [[onset._replace(frame=onset.frame - shift) for onset in clip if onset.frame >= shift] for clip in hits]
    assert match_onsets(later, detector(cut), start=1, stop=31).f1 > 0.99


def test_the_end_of_a_clip_is_no_hit(rng):
    # A kick that is cut off while it rings: the step there is like an attack to whoever listens past it.
    times = np.arange(24 * HOP) / 24000
    kick = np.sin(2 * np.pi * 47 * times) * np.minimum(1, times / 0.003) * np.exp(-4 * times)
    noise = rng.normal(size=(2, len(times))) * np.exp(np.array([[-20], [-40]]) * times)
    drums = np.stack([sound / np.abs(sound).max() for sound in (kick, *noise)]).astype(np.float32)
    starts = np.arange(8 * HOP, (FRAMES - 2) * HOP, HOP + 37)
    clips = np.zeros((len(starts), FRAMES * HOP), np.float32)
    for clip, start in zip(clips, starts, strict=True):
        clip[start:][: len(times)] = drums[0, : len(clip) - start]
    found = OnsetDetector(drums, 24000, HOP)(clips)
    assert [[onset.drum for onset in onsets] for onsets in found] == [[0]] * len(starts)
    assert all(abs(onsets[0].frame - start / HOP) < 1 for onsets, start in zip(found, starts, strict=True))


def test_silence_and_empty_batches_have_no_onsets():
    detector, waveforms, _ = play(WORLDS["random"])
    assert detector(np.zeros_like(waveforms[:3])) == [[], [], []]
    assert detector(waveforms[:0]) == []


def test_gains_are_those_played():
    detector, waveforms, _ = play(WORLDS["random"])
    full = [onset for clip in detector(waveforms) for onset in clip if 1 <= onset.frame < FRAMES - 4]
    half = [onset for clip in detector(0.5 * waveforms) for onset in clip if 1 <= onset.frame < FRAMES - 4]
    assert np.median([onset.gain for onset in full]) == pytest.approx(1, abs=0.1)
    assert np.median([onset.gain for onset in half]) == pytest.approx(0.5, abs=0.05)


onsets = st.lists(st.builds(Onset, st.floats(0, 20, allow_nan=False), st.integers(0, 2), st.just(1.0)), max_size=12)


@given(onsets)
def test_a_list_matches_itself(clip):
    assert match_onsets([clip], [clip]).f1 == 1
    assert match_onsets([clip], [clip]).true_positives == len(clip)


@given(onsets, st.floats(0, 1))
def test_a_shift_of_a_frame_is_forgiven(clip, shift):
    moved = [onset._replace(frame=onset.frame + shift) for onset in clip]
    assert match_onsets([clip], [moved]).f1 == 1


@given(onsets)
def test_another_drum_or_a_later_time_is_wrong(clip):
    other_drum = [onset._replace(drum=onset.drum + 3) for onset in clip]
    later = [onset._replace(frame=onset.frame + 30) for onset in clip]
    for wrong in (other_drum, later):
        assert match_onsets([clip], [wrong]).true_positives == 0


@given(onsets, onsets, st.integers(0, 2), st.floats(0, 10), st.floats(10, 20))
def test_symmetric_and_bounded(first, second, tolerance, start, stop):
    there = match_onsets([first], [second], tolerance, start, stop)
    back = match_onsets([second], [first], tolerance, start, stop)
    assert there.f1 == pytest.approx(back.f1)
    assert 0 <= there.true_positives <= min(there.num_reference, there.num_estimate)
    assert 0 <= there.f1 <= 1
    assert there.precision == pytest.approx(back.recall)


@given(onsets, onsets)
def test_matching_is_the_largest_possible(first, second):
    """Against augmenting paths, which find the largest matching of any graph."""
    partner: dict[int, int] = {}

    def augment(i, seen):
        for j, other in enumerate(second):
            near = abs(int(first[i].frame + 1e-6) - int(other.frame + 1e-6)) <= 1 and first[i].drum == other.drum
            if near and j not in seen:
                seen.add(j)
                if j not in partner or augment(partner[j], seen):
                    partner[j] = i
                    return True
        return False

    largest = sum(augment(i, set()) for i in range(len(first)))
    assert match_onsets([first], [second]).true_positives == largest


def test_an_onset_moved_over_the_edge_of_the_range_is_no_error():
    assert match_onsets([[Onset(4.9, 0, 1)]], [[Onset(5.1, 0, 1)]], start=5).f1 == 1
    assert match_onsets([[Onset(3.9, 0, 1)]], [[]], start=5).f1 == 1
    assert match_onsets([[Onset(5.9, 0, 1)]], [[]], start=5).f1 == 0


def test_log_mel_shows_pitch_and_level(rng):
    seconds = np.arange(48 * HOP) / 24000
    low, high = (np.sin(2 * np.pi * pitch * seconds).astype(np.float32) for pitch in (200, 4000))
    quiet, loud = np.asarray(log_mel(0.1 * low)), np.asarray(log_mel(low))
    assert loud.shape == (48, 64)
    assert (loud - quiet).max() == pytest.approx(np.log(100), abs=0.05)
    assert loud[24].argmax() < np.asarray(log_mel(high))[24].argmax()
