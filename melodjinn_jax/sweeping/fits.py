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
REPLICATES = 400
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
    grid = [np.geomspace(*EXPONENTS, _GRID[x.shape[1]])] * x.shape[1]
    _, exponents = _search(x / references, losses[None], grid)
    # Once more, finer, between the neighbours of the best.
    finer = [
        np.clip(np.geomspace(best * axis[0] / axis[1], best * axis[1] / axis[0], 25), *EXPONENTS)
        for best, axis in zip(exponents[0], grid, strict=True)
    ]
    coefficients, exponents = _search(x / references, losses[None], finer)
    return _law(coefficients[0], exponents[0], references)


def bootstrap(x: np.ndarray, losses: np.ndarray, law: PowerLaw, replicates: int = REPLICATES) -> list[PowerLaw]:
    """Laws of resampled residuals, whose spread is the uncertainty of a fit.

    The runs of a ladder are chosen, not drawn, and few: runs drawn with repetition often would not hold a law at all.
    Residuals are enlarged for the freedom that the fit has already used.
    """
    n, k = x.shape
    predicted = law(x)
    residuals = (losses - predicted) * np.sqrt(n / max(n - (2 * k + 1), 1))
    drawn = np.random.default_rng(0).choice(residuals - residuals.mean(), (replicates, n))
    references = np.asarray(law.references)
    grid = [np.geomspace(*EXPONENTS, _GRID[k])] * k
    coefficients, exponents = _search(x / references, predicted + drawn, grid)
    return [_law(c, e, references) for c, e in zip(coefficients, exponents, strict=True)]


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
    r, (n, k) = len(losses), x.shape
    best = np.full(r, np.inf)
    coefficients, chosen = np.zeros((r, 1 + k)), np.zeros((r, k))
    columns = range(1 + k)
    # Least squares without negative coefficients is plain least squares on some of the columns: all are tried.
    subsets = [list(s) for size in columns for s in itertools.combinations(columns, size + 1)]
    for exponents in itertools.product(*grid):
        design = np.concatenate([np.ones((n, 1)), x ** -np.asarray(exponents)], axis=1)
        for subset in subsets:
            part = design[:, subset]
            solved = losses @ np.linalg.pinv(part).T
            errors = np.sum((solved @ part.T - losses) ** 2, axis=1)
            better = (solved >= 0).all(axis=1) & (errors < best)
            best[better] = errors[better]
            coefficients[better] = 0
            coefficients[np.ix_(better, subset)] = solved[better]
            chosen[better] = exponents
    return coefficients, chosen
