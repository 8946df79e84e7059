"""The measures: an oracle scores one, a model that ignores its actions scores zero, and matching is fair."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melodjinn_jax.errors import UserError
from melodjinn_jax.evaluation.actions import format_actions, parse_actions
from melodjinn_jax.evaluation.control import plan_presses, score_presses, worst_key
from melodjinn_jax.evaluation.labels import normalized_mutual_information, score_labels
from melodjinn_jax.evaluation.onsets import Onset

FRAMES = 64


def random_events(rng, clips=6, num_drums=3):
    return [
        [(int(frame), int(rng.integers(num_drums))) for frame in range(int(rng.integers(2, 8)), FRAMES - 1, 7)]
        for _ in range(clips)
    ]


def keys_for(events, key_of_drum, late=0):
    keys = np.zeros((len(events), FRAMES - 1), int)
    for clip, clip_events in enumerate(events):
        for frame, drum in clip_events:
            if frame - 1 + late < FRAMES - 1:
                keys[clip, frame - 1 + late] = key_of_drum[drum]
    return keys


def test_an_oracle_under_other_names_scores_one(rng):
    events = random_events(rng)
    scores = score_labels(keys_for(events, {0: 3, 1: 1, 2: 2}), events, 3, 3, tolerance=0)
    assert scores.drum_of_key == (1, 2, 0)
    assert scores.onset_accuracy == scores.noop_recall == scores.noop_precision == 1
    assert scores.action_nmi == pytest.approx(1)


def test_labels_one_frame_late_count_only_within_the_tolerance(rng):
    events = random_events(rng)
    late = keys_for(events, {0: 1, 1: 2, 2: 3}, late=1)
    assert score_labels(late, events, 3, 3, tolerance=1).onset_accuracy > 0.98
    strict = score_labels(late, events, 3, 3, tolerance=0)
    assert strict.onset_accuracy == 0
    assert strict.noop_recall < 0.95


def test_all_noop_has_no_accuracy_and_no_information(rng):
    events = random_events(rng)
    scores = score_labels(np.zeros((6, FRAMES - 1), int), events, 3, 3, tolerance=1)
    assert scores.onset_accuracy == 0
    assert scores.noop_recall == 1
    assert scores.noop_precision < 1
    assert scores.action_nmi == 0


def test_one_key_for_two_drums_loses_one_of_them(rng):
    events = random_events(rng)
    scores = score_labels(keys_for(events, {0: 1, 1: 1, 2: 2}), events, 3, 2, tolerance=0)
    assert scores.onset_accuracy < 0.9


def test_spurious_actions_lower_noop_recall(rng):
    events = random_events(rng)
    keys = keys_for(events, {0: 1, 1: 2, 2: 3})
    keys[:, 0] = 1
    scores = score_labels(keys, events, 3, 3, tolerance=0)
    assert scores.noop_recall < 1
    assert scores.onset_accuracy == 1


@given(st.lists(st.lists(st.integers(0, 20), min_size=3, max_size=3), min_size=2, max_size=4))
@settings(max_examples=50, deadline=None)
def test_mutual_information_is_symmetric_and_bounded(rows):
    table = np.array(rows)
    value = normalized_mutual_information(table)
    assert -1e-9 <= value <= 1 + 1e-9
    assert value == pytest.approx(normalized_mutual_information(table.T))


def answers(presses, clips, play):
    onsets = [[] for _ in range(clips)]
    for press in presses:
        onsets[press.clip] += play(press)
    return [sorted(clip) for clip in onsets]


def test_presses_cover_all_keys_evenly_and_leave_time_to_sound(rng):
    actions, presses = plan_presses([1, 2, 3], 20, FRAMES, 8, rng)
    counts = np.bincount([press.key for press in presses])[1:]
    assert counts.max() - counts.min() <= 1
    assert np.count_nonzero(actions) == len(presses)
    for press in presses:
        assert actions[press.clip, press.frame - 1] == press.key
        assert 8 <= press.frame < FRAMES - 6


@pytest.mark.parametrize(
    ("play", "accuracy", "worst"),
    [
        (lambda press: [Onset(press.frame + 0.4, press.key - 1, 1.0)], 1.0, 1.0),
        (lambda press: [], 0.0, 0.0),
        (lambda press: [Onset(press.frame + 3.0, press.key - 1, 1.0)], 0.0, 0.0),
        (lambda press: [Onset(press.frame, press.key % 3, 1.0)], 0.0, 1.0),
        (lambda press: [Onset(press.frame, 0, 1.0)], 1 / 3, 0.0),
        (lambda press: [Onset(press.frame, press.key - 1, 1.0), Onset(press.frame + 4, 0, 1.0)], 0.0, 0.0),
    ],
    ids=["oracle", "silent", "late", "other drums", "ignores the key", "something else too"],
)
def test_control_is_right_drum_on_time_and_nothing_else(rng, play, accuracy, worst):
    _, presses = plan_presses([1, 2, 3], 24, FRAMES, 8, rng)
    scores = score_presses(presses, answers(presses, 24, play), FRAMES, (0, 1, 2))
    assert scores.accuracy == pytest.approx(accuracy, abs=0.02)
    assert worst_key(scores) == pytest.approx(worst, abs=0.02)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_actions_survive_the_round_trip_through_text(keys):
    assert parse_actions(format_actions(np.array(keys)), 5).tolist() == keys


@given(st.text(max_size=30))
@settings(max_examples=300, deadline=None)
def test_any_text_is_actions_or_one_clear_sentence(text):
    try:
        keys = parse_actions(text, 3)
    except UserError as error:
        complaint = str(error)
    else:
        complaint = "--actions"
        assert len(keys) > 0
        assert keys.max() <= 3
    assert complaint.startswith("--actions")
    assert "\n" not in complaint


def test_a_key_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="no key 4: this model has the keys 0 "):
        parse_actions("0x3 4", 3)
