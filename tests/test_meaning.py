"""The measures of meaning: one that ignores its actions scores zero, one that obeys scores one, compressors show."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from meaning_world import HOP, Compressor, Deaf, Obedient

from melodjinn_jax.evaluation.bootstrap import Estimate, estimate, mean_of, ratio_of, resample
from melodjinn_jax.evaluation.delta_control import control, onset_f1
from melodjinn_jax.evaluation.descriptors import (
    PITCH_CLASSES,
    SILENCE_DB,
    brightness,
    chroma,
    correlations,
    levels,
    onset_strength,
    spectrum,
)
from melodjinn_jax.evaluation.effects import consistency, f_ratio, natural_holds, told_apart
from melodjinn_jax.evaluation.meaning import density, long_play, measure_meaning, starts_of
from melodjinn_jax.evaluation.report.headline import judge_music
from melodjinn_jax.evaluation.report.meaning import GROUPS, meaning, with_interval

PROMPT = 8
ZERO = (
    "cross_entropy_gain_over_none",
    "cross_entropy_gain_over_shuffled",
    "control_onsets",
    "control_envelope",
    "control_spectrum",
    "recovery_over_chance",
    "effect_consistency",
)


def measured(instrument):
    measures, _ = measure_meaning(instrument, instrument.clips(), PROMPT, 0.5)
    json.dumps(measures, allow_nan=False)
    return measures


@pytest.fixture(scope="module")
def obedient():
    return measured(Obedient())


@pytest.fixture(scope="module")
def deaf():
    return measured(Deaf())


@pytest.fixture(scope="module")
def compressor():
    return measured(Compressor())


@pytest.mark.parametrize("name", ZERO)
def test_a_model_that_ignores_its_actions_scores_zero(deaf, name):
    assert deaf[name]["low"] <= 0 <= deaf[name]["high"]
    assert abs(deaf[name]["value"]) < 0.15


def test_keys_of_a_deaf_model_cannot_be_told_apart(deaf):
    found = deaf["effect_identification"]
    assert found["low"] <= deaf["effect_identification_chance"] <= found["high"]
    assert deaf["effect_f_ratio"]["low"] <= 1 <= deaf["effect_f_ratio"]["high"]


@pytest.mark.parametrize("name", ["control_onsets", "control_envelope", "control_spectrum", "effect_consistency"])
def test_a_model_that_obeys_scores_one(obedient, name):
    assert obedient[name]["value"] == pytest.approx(1, abs=0.15)
    assert obedient[name]["low"] > 0.5


@pytest.mark.parametrize("name", ["control_brightness", "control_onset_f1", "control_chroma", "control_log_mel"])
def test_what_shuffled_actions_bring_back_by_chance_is_taken_off(obedient, deaf, name):
    assert obedient[name]["low"] > 0
    near = 1.0 if name == "control_log_mel" else 0.1
    assert obedient[f"{name}_true"]["value"] == pytest.approx(obedient[f"{name}_codec"]["value"], abs=near)
    assert deaf[name]["low"] <= 0 <= deaf[name]["high"]
    gained = obedient[f"{name}_true"]["value"] - obedient[f"{name}_shuffled"]["value"]
    assert obedient[name]["value"] == pytest.approx(gained, abs=1e-5)


@pytest.mark.parametrize("instrument", [Obedient(), Deaf()])
def test_more_takes_leave_less_to_the_dice(instrument):
    once, often = (control(instrument, instrument.clips(), PROMPT, 0.5, takes) for takes in (1, 8))
    for name in ("control_onsets", "control_envelope", "control_spectrum"):
        assert often[name].high - often[name].low < 0.8 * (once[name].high - once[name].low)


def test_what_an_obedient_model_is_told_comes_out(obedient):
    assert obedient["recovery"]["low"] > 0.95
    assert obedient["recovery_chance"]["value"] == pytest.approx(1 / 3, abs=0.02)
    assert obedient["effect_identification"]["low"] > 0.9
    assert obedient["effect_f_ratio"]["low"] > 10
    assert obedient["cross_entropy_gain_over_none"]["value"] == pytest.approx(Obedient.told)
    assert obedient["cross_entropy_gain_over_shuffled"]["low"] > 0
    assert obedient["free_running_distance_ratio"]["value"] == pytest.approx(1, abs=0.1)
    assert all(share["low"] <= share["value"] <= share["high"] for share in obedient["key_share"])
    assert sum(share["value"] for share in obedient["key_share"]) == pytest.approx(1, abs=1e-4)


def test_a_compressor_is_caught_and_honest_actions_are_not(obedient, compressor):
    assert compressor["is_compressor"]
    assert compressor["leakage"]["low"] > 0.95
    assert not obedient["is_compressor"]
    assert obedient["leakage"]["high"] < 0.3
    # It scores well on everything else, which is why leakage and density are measured.
    assert compressor["control_spectrum"]["low"] > 0.5
    assert compressor["recovery"]["value"] > 0.95
    assert compressor["bits_per_second"]["value"] == pytest.approx(75 * np.log2(40), rel=0.02)
    assert compressor["decisions_per_second"]["value"] > 60
    assert obedient["decisions_per_second"]["value"] < 10


def test_clips_of_one_track_are_fewer_witnesses():
    values = np.repeat(np.random.default_rng(0).standard_normal(6), 8)
    alone, grouped = (estimate(mean_of(values), tracks) for tracks in (np.arange(48), np.repeat(np.arange(6), 8)))
    assert alone.value == grouped.value
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)


def test_without_keys_there_is_nothing_to_press():
    class Keyless(Obedient):
        pitches = ()

        def draw(self, rng, clips, frames):
            return np.zeros((clips, frames), int)

        def listen(self, waveform):
            return np.zeros((len(waveform), waveform.shape[1] // HOP - 1), int)

    measures, effects = measure_meaning(Keyless(), Keyless().clips(), PROMPT, 0.5)
    assert effects is None
    assert "recovery" not in measures
    assert measures["bits_per_second"]["value"] == measures["decisions_per_second"]["value"] == 0


@pytest.mark.parametrize(("gain", "level", "silence"), [(1.0, 0, 0), (0.4, -8, 0), (1e-6, -40, 1)])
def test_long_play_hears_fading_and_silence(gain, level, silence):
    class Faint(Obedient):
        def play(self, *arguments):
            return np.float32(gain) * super().play(*arguments)

    instrument = Faint()
    measures = long_play(instrument, instrument.clips(), PROMPT, 0.5, 4.0)
    assert measures["long_level_difference_db"].value == pytest.approx(level, abs=1.5) or level == -40
    assert measures["long_level_difference_db"].value <= level + 1.5
    assert measures["long_silence_difference"].value == pytest.approx(silence, abs=0.05)
    assert measures["long_drift_db"].value == pytest.approx(0, abs=2)


def test_the_report_shows_every_measure_and_what_is_not_defined(obedient):
    undefined = {"value": None, "low": None, "high": None}
    page = meaning(SimpleNamespace(results={"meaning": {**obedient, "leakage": undefined}}))
    for rows in GROUPS.values():
        for row in rows:
            assert row.name in obedient
            assert page.count(f"<b>{row.title}</b>") == 1
    assert page.count("not defined") == 1
    recovery = obedient["recovery"]
    assert with_interval(recovery) == f"{recovery['value']:.2f} [{recovery['low']:.2f}, {recovery['high']:.2f}]"
    assert meaning(SimpleNamespace(results={})) == ""


def test_the_verdict_on_music_needs_intervals_clear_of_zero(obedient, deaf):
    assert judge_music({"num_keys": 3, "meaning": obedient})[0]
    assert not judge_music({"num_keys": 3, "meaning": deaf})[0]
    assert not judge_music({"num_keys": 0, "meaning": obedient})[0]
    undefined = {"value": None, "low": None, "high": None}
    assert not judge_music({"num_keys": 3, "meaning": obedient | {"cross_entropy_gain_over_none": undefined}})[0]


# The parts ------------------------------------------------------------------------------------------------------------


def test_levels_and_silence():
    loud = np.ones((1, HOP), np.float32)
    assert levels(np.concatenate([loud, 0 * loud], axis=1), HOP)[0].tolist() == pytest.approx([0, SILENCE_DB])


def test_pitch_class_and_brightness_of_a_tone():
    time = np.arange(24000) / 24000
    for frequency, name in ((440.0, "A"), (261.63, "C"), (739.99, "F#")):
        tone = 0.3 * np.sin(2 * np.pi * frequency * time)[None].astype(np.float32)
        assert PITCH_CLASSES[int(np.asarray(chroma(tone, 24000, HOP))[0, 30].argmax())] == name
    low, high = (
        brightness(spectrum(0.3 * np.sin(2 * np.pi * f * time)[None].astype(np.float32), 24000, HOP), 24000)[0, 30]
        for f in (440.0, 1760.0)
    )
    assert high - low == pytest.approx(2, abs=0.2)


def test_onsets_are_where_sound_begins():
    waveform = np.zeros((1, 20 * HOP), np.float32)
    waveform[:, 10 * HOP :] = 0.1 * np.random.default_rng(0).standard_normal(10 * HOP)
    strength = np.asarray(onset_strength(waveform, 24000, HOP))[0]
    assert strength.shape == (40,)
    assert abs(int(strength.argmax()) - 20) <= 2
    assert strength[:17].max() < 1


@given(st.lists(st.integers(2, 20), min_size=1, max_size=8), st.integers(-9, 9))
@settings(max_examples=50, deadline=None)
def test_onsets_are_found_again_within_their_tolerance(gaps, shift):
    """At 150 points a second 50 ms are 7 points; onsets here are 30 points apart or more."""
    at = 20 + np.cumsum(15 + np.array(gaps)) * 2
    true, other = np.zeros((2, 1, at[-1] + 40))
    true[0, at], other[0, at + shift] = 10.0, 10.0
    assert onset_f1(true, other, 150.0)[0] == (1.0 if abs(shift) <= 7 else 0.0)
    assert onset_f1(true, np.zeros_like(true), 150.0)[0] == 0.0
    assert onset_f1(np.zeros_like(true), np.full_like(true, 1.0), 150.0)[0] == 1.0


def test_bits_after_the_last_count_only_what_it_leaves_open():
    keys = np.tile([0, 0, 1, 1], (6, 50))
    found = density(Obedient(), keys, np.arange(6))
    assert found["bits_per_second"].value == pytest.approx(75)
    assert found["bits_per_second_after_last"].value == pytest.approx(75, rel=0.01)
    found = density(Obedient(), np.tile([0, 1], (6, 100)), np.arange(6))
    assert found["bits_per_second"].value == pytest.approx(75)
    assert found["bits_per_second_after_last"].value == pytest.approx(0, abs=0.1)


def test_correlations():
    rng = np.random.default_rng(0)
    curves = rng.standard_normal((3, 50))
    np.testing.assert_allclose(correlations(curves, 2 * curves + 1), 1)
    np.testing.assert_allclose(correlations(curves, -curves), -1)
    assert correlations(curves, np.zeros((3, 50))).tolist() == [0, 0, 0]
    assert np.isnan(correlations(np.ones((3, 50)), curves)).all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(0, 100))
@settings(max_examples=50)
def test_every_resample_counts_as_many_tracks(tracks, seed):
    tracks = np.array(tracks)
    counts = resample(tracks, repeats=20, seed=seed)
    assert counts.shape == (20, len(tracks))
    assert (counts >= 0).all()
    by_track = np.stack([counts[:, tracks == name].sum(axis=1) / np.sum(tracks == name) for name in set(tracks)])
    # Whole tracks were drawn, as many as there are.
    np.testing.assert_allclose(by_track, np.round(by_track))
    assert (by_track.sum(axis=0) == len(set(tracks.tolist()))).all()


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        effects = rng.standard_normal(20)
        clips = (effects[:, None] + 0.1 * rng.standard_normal((20, 3))).ravel()
        found = estimate(mean_of(clips), np.repeat(np.arange(20), 3))
        hits += found.low <= 0 <= found.high
    assert hits >= 85


def test_estimates_of_nothing_are_null():
    nothing = estimate(mean_of(np.full(4, np.nan)), np.arange(4))
    assert nothing.to_json() == {"value": None, "low": None, "high": None}
    assert estimate(ratio_of(np.ones(4), np.zeros(4)), np.arange(4)).to_json()["value"] is None
    assert estimate(mean_of(np.array([1.0, np.nan])), np.arange(2)).value == 1
    assert Estimate(1.0, 0.5, 2.0).to_json() == {"value": 1.0, "low": 0.5, "high": 2.0}


def test_consistency_is_unbiased():
    rng = np.random.default_rng(0)
    ones = np.ones((1, 6))
    noise = [consistency(rng.standard_normal((4, 6, 10)))(ones)[0] for _ in range(200)]
    assert abs(np.mean(noise)) < 0.02
    same = np.repeat(rng.standard_normal((4, 1, 10)), 6, axis=1)
    assert consistency(same)(ones)[0] == pytest.approx(1)
    # What all keys do alike is no difference between them.
    assert np.isnan(consistency(np.repeat(same[:1], 4, axis=0))(ones)[0])
    half = [consistency(same + rng.standard_normal((4, 6, 10)))(ones)[0] for _ in range(50)]
    assert np.mean(half) == pytest.approx(0.5, abs=0.1)
    assert f_ratio(0.0, 6) == 1


def test_keys_are_told_apart_by_other_tracks_only():
    vectors = np.zeros((2, 4, 3))
    vectors[1] = 1.0
    assert told_apart(vectors, np.arange(4)).all()
    assert told_apart(vectors, np.zeros(4, int)).all()
    # A key that does one thing in one track and the other's in the other misleads across tracks.
    vectors[0, 2:], vectors[1, 2:] = 1.0, 0.0
    assert not told_apart(vectors, np.array([0, 0, 1, 1])).any()


def test_decisions_are_beginnings():
    keys = np.array([[0, 1, 1, 0, 1, 2, 2, 0, 0, 2]])
    assert starts_of(keys).sum() == 4
    assert natural_holds(np.array([[1, 1, 1, 0, 2, 0, 1, 1, 1]]), 3) == [3, 1, 1]
