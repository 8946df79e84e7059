"""What the runs of a sweep came to, the laws fitted to them, and how well these predict the runs kept out."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from melodjinn_jax.codecs import load_codec
from melodjinn_jax.errors import UserError
from melodjinn_jax.sweeping.fits import PowerLaw, bootstrap, fit_power_law, interval, runs_needed
from melodjinn_jax.sweeping.plan import Sweep, SweepRun, workdir_of
from melodjinn_jax.training.run import make_models
from melodjinn_jax.training.size import dynamics_size, lam_size

LOSS = {"dynamics": "cross_entropy_true_actions", "lam": "reconstruction"}


@dataclass(frozen=True)
class Outcome:
    """One finished run."""

    name: str
    model: Literal["dynamics", "lam"]
    is_held_out: bool
    parameters: int
    positions: int
    """Tokens that the dynamics model trained on, or blocks of the LAM."""
    flops: float
    """Training FLOPs of that model, all steps together."""
    loss: float
    """On held-out clips: nats per token, or mean squared error of the LAM's features."""
    keys: int


@dataclass(frozen=True)
class Prediction:
    """A run kept out of a fit, and what the law said of it."""

    name: str
    measured: float
    predicted: float
    low: float
    high: float
    last: float
    """Loss of the largest fitted run: the prediction that nothing changes any more."""
    error: float | None
    """Of the reducible loss, as a share of it: |predicted - measured| / (measured - irreducible); None of a run that
    is below the irreducible loss, which proves the law wrong."""
    last_error: float | None
    """The same of `last`."""


@dataclass(frozen=True)
class Finding:
    """A law with its uncertainty and its predictions."""

    model: Literal["dynamics", "lam"]
    variables: tuple[str, ...]
    """Of parameters, positions and flops."""
    fitted: tuple[str, ...]
    """Names of the runs."""
    law: PowerLaw
    replicates: tuple[PowerLaw, ...]
    predictions: tuple[Prediction, ...]

    def to_json(self) -> dict[str, Any]:
        """The law, 90 % intervals of its numbers, and the predictions."""
        intervals = {
            "irreducible": interval(np.array([law.irreducible for law in self.replicates])),
            "exponents": [
                interval(np.array([law.exponents[i] for law in self.replicates])) for i in range(len(self.variables))
            ],
        }
        return {
            "model": self.model,
            "variables": self.variables,
            "fitted": self.fitted,
            "law": vars(self.law),
            "intervals": intervals,
            "predictions": [vars(prediction) for prediction in self.predictions],
        }


def read_outcome(run: SweepRun, sweep_dir: Path) -> Outcome:
    """What a finished run says of itself.

    Raises:
      UserError: its eval.json is missing or damaged, or of an earlier step than its last.
    """
    workdir = workdir_of(sweep_dir, run.name)
    try:
        results = json.loads(workdir.evaluation.read_bytes())
        step, loss, keys = results["step"], float(results[LOSS[run.model]]), int(results["num_keys"])
        freeze_step = results["freeze_step"] or step
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{workdir.evaluation} does not hold the {LOSS[run.model]} of a finished run: remove it and start the "
            "sweep again"
        ) from error
    if step != run.config.training.steps:
        raise UserError(f"{workdir.evaluation} is of step {step}, not {run.config.training.steps}: remove it")
    models = make_models(run.config, load_codec(workdir.codec))
    size, steps = (dynamics_size(models), step) if run.model == "dynamics" else (lam_size(models), freeze_step)
    positions = steps * size.positions_per_step
    flops = positions * size.flops_per_position
    return Outcome(run.name, run.model, run.is_held_out, size.parameters, positions, flops, loss, keys)


def read_outcomes(sweep: Sweep, sweep_dir: Path) -> list[Outcome]:
    """Of all runs that are finished, smallest first."""
    done = [run for run in sweep.runs if workdir_of(sweep_dir, run.name).evaluation.is_file()]
    return sorted((read_outcome(run, sweep_dir) for run in done), key=lambda outcome: outcome.flops)


def frontier(outcomes: list[Outcome]) -> list[Outcome]:
    """The runs that no run of as little compute or less beats."""
    kept: list[Outcome] = []
    for outcome in sorted(outcomes, key=lambda outcome: (outcome.flops, outcome.loss)):
        if not kept or outcome.loss < kept[-1].loss:
            kept.append(outcome)
    return kept


def find_laws(outcomes: list[Outcome]) -> list[Finding]:
    """All laws that there are enough runs for: of compute along the frontier, and of parameters and data together."""
    findings = []
    for model in ("dynamics", "lam"):
        own = [outcome for outcome in outcomes if outcome.model == model]
        fitted = [outcome for outcome in own if not outcome.is_held_out]
        held_out = [outcome for outcome in own if outcome.is_held_out]
        both = tuple(name for name in ("parameters", "positions") if len({getattr(o, name) for o in fitted}) > 1)
        # The law of compute is about the runs that make the most of theirs, and says nothing of others.
        best = [outcome for outcome in frontier(own) if outcome.is_held_out]
        for variables, points, tried in ((("flops",), frontier(fitted), best), (both, fitted, held_out)):
            if variables and len(points) >= runs_needed(len(variables)):
                findings.append(find_law(points, tried, variables))
    return findings


def find_law(fitted: list[Outcome], held_out: list[Outcome], variables: tuple[str, ...]) -> Finding:
    """One law, fitted to some runs and tried on others."""
    x, losses = _variables(fitted, variables), np.array([outcome.loss for outcome in fitted])
    law = fit_power_law(x, losses)
    replicates = tuple(bootstrap(x, losses, law))
    last = max(fitted, key=lambda outcome: outcome.flops).loss
    predictions = tuple(_predict(law, replicates, outcome, variables, last) for outcome in held_out)
    names = tuple(outcome.name for outcome in fitted)
    return Finding(fitted[0].model, variables, names, law, replicates, predictions)


def _variables(outcomes: list[Outcome], variables: tuple[str, ...]) -> np.ndarray:
    return np.array([[float(getattr(outcome, name)) for name in variables] for outcome in outcomes])


def _predict(
    law: PowerLaw, replicates: tuple[PowerLaw, ...], outcome: Outcome, variables: tuple[str, ...], last: float
) -> Prediction:
    at = _variables([outcome], variables)[0]
    predicted, measured = float(law(at)), outcome.loss
    low, high = interval(np.array([float(replicate(at)) for replicate in replicates]))
    reducible = measured - law.irreducible
    error, last_error = (abs(guess - measured) / reducible if reducible > 0 else None for guess in (predicted, last))
    return Prediction(outcome.name, measured, predicted, low, high, last, error, last_error)
