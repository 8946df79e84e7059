"""Agreement between runs: keys are matched by what they do, whatever their numbers, and lateness is forgiven once."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

stability = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).resolve().parent.parent / "benchmarks" / "stability.py"))
)


@given(st.permutations(range(5)), st.integers(0, 1000))
@settings(max_examples=30)
def test_keys_are_found_again_under_other_numbers_and_gains(order, seed):
    rng = np.random.default_rng(seed)
    effects = np.eye(5, 12) + 0.1 * rng.standard_normal((5, 12))
    pairs, cosines = stability.match_by_effect(effects, effects[order] * rng.uniform(0.5, 2, (5, 1)))
    assert {(one - 1, order[other - 1]) for one, other in pairs} == {(key, key) for key in range(5)}
    assert min(cosines[one - 1, other - 1] for one, other in pairs) == pytest.approx(1)


def test_a_key_without_a_partner_is_left_over():
    pairs, cosines = stability.match_by_effect(np.eye(3, 8), np.eye(2, 8))
    assert pairs == [(1, 1), (2, 2)]
    assert cosines.shape == (3, 2)


def test_agreement_is_one_for_the_same_and_none_for_other_moments():
    keys = np.zeros((2, 40), int)
    keys[:, ::8] = 2
    assert stability.key_agreement(keys, np.where(keys == 2, 1, 0), (2, 1)) == 1
    assert stability.key_agreement(keys, np.roll(keys, 1, axis=1), (2, 2)) == 1
    assert stability.key_agreement(keys, np.roll(keys, 4, axis=1), (2, 2)) == 0
    half = keys.copy()
    half[1] = 0
    assert stability.key_agreement(keys, half, (2, 2)) == pytest.approx(2 / 3)
    assert np.isnan(stability.key_agreement(keys, keys, (1, 1)))


def test_events_of_crops_are_compared_with_those_of_the_whole():
    whole = np.array([[9, 9, 0, 1, 2], [9, 9, 0, 0, 1]])
    assert stability.crop_agreement(whole, whole[:, 2:]) == 1
    # Of three events and of four, two are the same: one is of another key, one is new.
    assert stability.crop_agreement(whole, np.array([[1, 1, 1], [0, 0, 1]])) == pytest.approx(2 * 2 / 7)
    assert np.isnan(stability.crop_agreement(np.zeros((2, 5), int), np.zeros((2, 3), int)))
