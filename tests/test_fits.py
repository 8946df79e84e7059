"""Laws of loss: what made the points is found again, uncertainty holds it, and a held-out point is predicted by it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from melodjinn_jax.sweeping.fits import PowerLaw, bootstrap, fit_power_law, interval, runs_needed
from melodjinn_jax.sweeping.results import Outcome, find_law, find_laws, frontier

SIZES = np.array([5e4, 1e5, 2e5, 4e5, 8e5])


def grid_of(*axes) -> np.ndarray:
    return np.stack([axis.ravel() for axis in np.meshgrid(*axes)], axis=1)


def outcome(name: str, parameters: float, positions: float, loss: float, held_out: bool = False) -> Outcome:
    flops = 6 * parameters * positions
    return Outcome(name, "dynamics", held_out, int(parameters), int(positions), flops, float(loss), 3)


@settings(max_examples=20, deadline=None)
@given(irreducible=st.floats(0, 2), scale=st.floats(0.05, 3), exponent=st.floats(0.1, 1.2), size=st.floats(1e3, 1e20))
def test_a_law_of_one_variable_is_found_again(irreducible, scale, exponent, size):
    x = size * np.geomspace(1, 300, 7)[:, None]
    truth = PowerLaw(irreducible, (scale,), (exponent,), (float(np.exp(np.log(x).mean())),))
    law = fit_power_law(x, truth(x))
    beyond = 4 * x[-1:]
    # What matters is where it leads, beyond the points; beside the losses that it was fitted to, nothing is missing.
    assert law(beyond) == pytest.approx(truth(beyond), abs=2e-4 * float(truth(x).max()))
    assert law.exponents[0] == pytest.approx(exponent, rel=0.05)


def test_a_law_of_two_variables_is_found_again():
    x = grid_of(SIZES, np.array([1e6, 3e6, 1e7]))
    truth = PowerLaw(0.8, (0.3, 0.5), (0.35, 0.5), (2e5, 3e6))
    law = fit_power_law(x, truth(x))
    assert law.irreducible == pytest.approx(0.8, abs=0.02)
    assert law.exponents == pytest.approx((0.35, 0.5), rel=0.05)
    assert law(np.array([[1e7, 1e9]])) == pytest.approx(truth(np.array([[1e7, 1e9]])), abs=0.02)


@settings(max_examples=20, deadline=None)
@given(losses=st.lists(st.floats(0.01, 10), min_size=5, max_size=5))
def test_no_points_make_a_law_with_negative_parts(losses):
    law = fit_power_law(SIZES[:, None], np.array(losses))
    assert law.irreducible >= 0
    assert min(law.scales) >= 0
    assert np.all(np.diff(law(SIZES[:, None])) <= 0)


def test_the_interval_is_wide_as_the_noise_and_holds_the_truth():
    rng, x = np.random.default_rng(1), np.geomspace(1e5, 1e7, 8)[:, None]
    truth = PowerLaw(1.0, (0.5,), (0.4,), (1e6,))
    widths, held = [], 0
    for noise in (0.0005, 0.005):
        for _ in range(10):
            losses = truth(x) + rng.normal(0, noise, len(x))
            law = fit_power_law(x, losses)
            low, high = interval(np.array([float(one(4 * x[-1])) for one in bootstrap(x, losses, law, 60)]))
            held += low <= float(truth(4 * x[-1])) <= high
        widths.append(high - low)
    assert widths[1] > 3 * widths[0]
    assert held >= 12  # of 20; 16 to 18 are to be expected


def test_the_frontier_holds_what_no_cheaper_run_beats():
    runs = [outcome("a", 1e5, 1e6, 2.0), outcome("b", 2e5, 1e6, 2.1), outcome("c", 4e5, 1e6, 1.5)]
    assert [one.name for one in frontier(runs[::-1])] == ["a", "c"]


def test_a_run_kept_out_is_predicted_and_takes_no_part():
    truth = PowerLaw(0.8, (0.3, 0.5), (0.35, 0.5), (2e5, 3e6))
    # Three amounts of data: of two, any exponent fits with an irreducible part of its own, and rounding would choose.
    points = grid_of(SIZES[:-1], np.array([1e6, 2e6, 4e6]))
    fitted = [outcome(f"r{i}", n, d, truth(np.array([n, d]))) for i, (n, d) in enumerate(points)]
    beyond = outcome("beyond", 8e5, 1e7, truth(np.array([8e5, 1e7])), held_out=True)
    finding = find_law(fitted, [beyond], ("parameters", "positions"))
    (prediction,) = finding.predictions
    assert prediction.low <= prediction.predicted <= prediction.high
    assert prediction.error < 0.1
    assert prediction.error < prediction.last_error
    assert "beyond" not in finding.fitted
    other = find_law(fitted, [outcome("beyond", 8e5, 1e7, 5.0, held_out=True)], ("parameters", "positions"))
    assert other.law == finding.law


def test_a_run_below_the_irreducible_loss_has_no_share_of_error():
    fitted = [outcome(f"r{i}", n, 1e6, 2 + 1e4 / n) for i, n in enumerate(SIZES)]
    finding = find_law(fitted, [outcome("odd", 1e6, 1e6, 0.1, held_out=True)], ("parameters",))
    assert finding.predictions[0].error is None
    assert finding.to_json()["predictions"][0]["error"] is None


def test_laws_are_fitted_only_where_there_are_runs_enough_and_variables_vary():
    same_data = [outcome(f"r{i}", n, 1e6, 1 + 1e4 / n) for i, n in enumerate(SIZES)]
    assert [finding.variables for finding in find_laws(same_data)] == [("flops",), ("parameters",)]
    assert find_laws(same_data[: runs_needed(1) - 1]) == []
    assert find_laws([]) == []
