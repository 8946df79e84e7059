"""Laws of loss: an irreducible part, and a power law in each of parameters, data or compute.

    loss(x) = E + sum_i A_i (x_i / r_i) ** -b_i,  E, A_i >= 0

In two variables this is the parametric law of Hoffmann et al. 2022. For given exponents b it is linear in E and A, so
the exponents are searched on a grid and the rest is solved exactly, least squares without negative coefficients: no
starting point, and no local minimum to be caught in.

Dimensions: n runs, k variables, r replicates of the bootstrap.
"""

import itertools
from dataclasses import dataclass

import numpy as np

EXPONENTS = (0.02, 2.0)
_GRID = {1: 120, 2: 36}
_REFINEMENTS = 3
REPLICATES = 200
CONFIDENCE = 0.9


@dataclass(frozen=True)
class PowerLaw:
    """A fitted law of k variables."""

    irreducible: float
    """Loss that no growth of the variables takes away (E)."""
    scales: tuple[float, ...]
    """Reducible loss that each variable causes at its reference (A)."""
    exponents: tuple[float, ...]
    references: tuple[float, ...]
    """Geometric means of the fitted runs' variables."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Losses [...] at variables [..., k]."""
        powers = (np.asarray(x, float) / self.references) ** -np.asarray(self.exponents)
        return self.irreducible + powers @ np.asarray(self.scales)


def runs_needed(variables: int) -> int:
    """Fewest runs that leave the law something to be wrong about: one more than it has numbers."""
    return 2 * variables + 2


def fit_power_law(x: np.ndarray, losses: np.ndarray) -> PowerLaw:
    """The law of least squares.

    Args:
      x: positive variables [n, k], k 1 or 2; every variable must vary.
      losses: [n].
    """
    references = np.exp(np.log(x).mean(axis=0))
    coefficients, exponents = _search(x / references, losses[None], _grid(x.shape[1]))
    return _refine(x / references, losses, _law(coefficients[0], exponents[0], references))


def bootstrap(x: np.ndarray, losses: np.ndarray, law: PowerLaw, replicates: int = REPLICATES) -> list[PowerLaw]:
    """Laws of the same runs with other noise, whose spread is the uncertainty of a fit.

    The noise is normal, of a variance drawn from what the residuals say of it. The runs of a ladder are chosen, not
    drawn, and few: runs drawn with repetition would often not hold a law at all, and residuals are too few to draw.
    """
    n, k = x.shape
    predicted = law(x)
    rng, freedom = np.random.default_rng(0), max(n - (2 * k + 1), 1)
    scale = np.sqrt(np.sum((losses - predicted) ** 2) / rng.chisquare(freedom, (replicates, 1)))
    drawn = predicted + scale * rng.normal(size=(replicates, n))
    references = np.asarray(law.references)
    coarse = zip(*_search(x / references, drawn, _grid(k)), strict=True)
    return [_refine(x / references, one, _law(*found, references)) for one, found in zip(drawn, coarse, strict=True)]


def _refine(x: np.ndarray, losses: np.ndarray, law: PowerLaw) -> PowerLaw:
    """The law of exponents between those of the grid; `x` [n, k] in units of the law's references."""
    step = (EXPONENTS[1] / EXPONENTS[0]) ** (1 / (_GRID[x.shape[1]] - 1))
    for _ in range(_REFINEMENTS):
        axes = [np.clip(best * np.geomspace(1 / step, step, 9), *EXPONENTS) for best in law.exponents]
        coefficients, exponents = _search(x, losses[None], axes)
        law = _law(coefficients[0], exponents[0], np.asarray(law.references))
        step **= 0.25
    return law


def _grid(k: int) -> list[np.ndarray]:
    return [np.geomspace(*EXPONENTS, _GRID[k])] * k


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle `CONFIDENCE` of values [r]."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _law(coefficients: np.ndarray, exponents: np.ndarray, references: np.ndarray) -> PowerLaw:
    irreducible, *scales = (float(value) for value in coefficients)
    return PowerLaw(irreducible, tuple(scales), tuple(map(float, exponents)), tuple(map(float, references)))


def _search(x: np.ndarray, losses: np.ndarray, grid: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """For losses [r, n] at variables x [n, k], the coefficients [r, 1 + k] and exponents [r, k] of least squares."""
    r, k = len(losses), x.shape[1]
    exponents = np.array(list(itertools.product(*grid)))
    powers = x ** -exponents[:, None]
    designs = np.concatenate([np.ones((*powers.shape[:2], 1)), powers], axis=2)
    best, coefficients, chosen = np.full(r, np.inf), np.zeros((r, 1 + k)), np.zeros((r, k))
    # Least squares without negative coefficients is plain least squares on some of the columns: all are tried.
    for size in range(1, k + 2):
        for subset in itertools.combinations(range(1 + k), size):
            parts = designs[:, :, subset]
            solved = losses @ np.linalg.pinv(parts).swapaxes(1, 2)
            errors = np.sum((solved @ parts.swapaxes(1, 2) - losses) ** 2, axis=2)
            errors[(solved < 0).any(axis=2)] = np.inf
            winner = np.argmin(errors, axis=0)
            better = np.flatnonzero(errors[winner, range(r)] < best)
            winner = winner[better]
            best[better] = errors[winner, better]
            coefficients[better] = 0
            coefficients[better[:, None], np.array(subset)] = solved[winner, better]
            chosen[better] = exponents[winner]
    return coefficients, chosen
