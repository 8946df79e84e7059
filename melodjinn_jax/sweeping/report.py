"""The report of a sweep: one HTML file that opens offline, and the same tables as text."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.errors import UserError
from melodjinn_jax.evaluation.report.markup import NOTHING, Html, heading, join, number, table, tag
from melodjinn_jax.evaluation.report.page import render_page
from melodjinn_jax.evaluation.report.plots import NUM_COLORS
from melodjinn_jax.sweeping.charts import Dot, Series, law_chart
from melodjinn_jax.sweeping.fits import interval
from melodjinn_jax.sweeping.results import Finding, Outcome
from melodjinn_jax.sweeping.schedule import JobState

MODELS = {"dynamics": "dynamics model", "lam": "latent action model"}
UNITS = {"dynamics": "nats per token", "lam": "squared error"}
POSITIONS = {"dynamics": "tokens", "lam": "blocks"}
_RUN_COLUMNS = ["run", "model", "parameters", "tokens or blocks", "FLOPs", "held-out loss", "keys", "CPU s"]
_PREDICTION_COLUMNS = ["model", "law of", "run", "predicted", "measured", "off by", "repeating the last is off by"]
_LAW_COLUMNS = ["model", "law of", "runs", "irreducible loss", "exponents"]


def write_sweep_report(
    path: Path, name: str, outcomes: Sequence[Outcome], findings: Sequence[Finding], states: dict[str, JobState]
) -> None:
    """Write the page.

    Raises:
      UserError: it cannot be written.
    """
    done = sum(state.status == "done" for state in states.values())
    seconds = sum(state.cpu_seconds for state in states.values())
    facts = [f"{done} of {len(states)} jobs done", f"{len(outcomes)} runs measured", f"{seconds:,.0f} s of CPU time"]
    facts += [f"{what}: {state.message}" for what, state in states.items() if state.status in ("failed", "blocked")]
    head = join(
        [
            tag("p", "Melodjinn sweep report", class_="eyebrow"),
            tag("h1", name),
            tag("ul", *(tag("li", fact) for fact in facts), class_="facts"),
        ]
    )
    sections = {
        "laws": ("Laws", _laws(outcomes, findings)),
        "predictions": ("Predictions", _predictions(findings)),
        "runs": ("Runs", _runs(outcomes, states)),
    }
    footer = "Made by Melodjinn from the work directories of the runs. This page needs no network."
    page = render_page(f"{name}: Melodjinn sweep report", head, NOTHING, sections, footer)
    try:
        write_atomically(path, page.encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


# Tables, as rows of text


def run_rows(outcomes: Sequence[Outcome], states: dict[str, JobState]) -> list[list[str]]:
    return [
        [
            outcome.name + (" (kept out)" if outcome.is_held_out else ""),
            outcome.model,
            number(outcome.parameters),
            number(outcome.positions),
            f"{outcome.flops:.2e}",
            f"{outcome.loss:.4f}",
            str(outcome.keys),
            f"{states[outcome.name].cpu_seconds:.0f}" if outcome.name in states else "",
        ]
        for outcome in outcomes
    ]


def law_rows(findings: Sequence[Finding]) -> list[list[str]]:
    rows = []
    for finding in findings:
        numbers = [finding.law.irreducible, *finding.law.exponents]
        spread = [[law.irreducible, *law.exponents] for law in finding.replicates]
        ends = [interval(np.array(column)) for column in zip(*spread, strict=True)]
        shown = [f"{value:.3f} [{low:.3f}, {high:.3f}]" for value, (low, high) in zip(numbers, ends, strict=True)]
        rows.append([finding.model, law_of(finding), str(len(finding.fitted)), shown[0], "; ".join(shown[1:])])
    return rows


def prediction_rows(findings: Sequence[Finding]) -> list[list[str]]:
    return [
        [
            finding.model,
            law_of(finding),
            one.name,
            f"{one.predicted:.4f} [{one.low:.4f}, {one.high:.4f}]",
            f"{one.measured:.4f}",
            _share(one.error),
            _share(one.last_error),
        ]
        for finding in findings
        for one in finding.predictions
    ]


def law_of(finding: Finding) -> str:
    return " and ".join(_variable(finding, name) for name in finding.variables)


def _variable(finding: Finding, name: str) -> str:
    return {"flops": "training FLOPs", "positions": POSITIONS[finding.model]}.get(name, name)


def _share(error: float | None) -> str:
    return "it is below the irreducible loss" if error is None else f"{error:.1%}"


def summary(outcomes: Sequence[Outcome], findings: Sequence[Finding], states: dict[str, JobState]) -> str:
    """All tables in Markdown, and what failed."""
    blocks = [_markdown(_RUN_COLUMNS, run_rows(outcomes, states))]
    if findings:
        blocks.append(_markdown(_LAW_COLUMNS, law_rows(findings)))
        blocks.append(_markdown(_PREDICTION_COLUMNS, prediction_rows(findings)))
    blocks += [
        f"{name} {state.status} after {state.attempts} attempt(s): {state.message}"
        for name, state in states.items()
        if state.status in ("failed", "blocked")
    ]
    return "\n\n".join(blocks)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# Sections of the page


def _runs(outcomes: Sequence[Outcome], states: dict[str, JobState]) -> Html:
    lead = "Smallest first. A run kept out took no part in any fit."
    return join([heading("Runs", lead), table(_RUN_COLUMNS, run_rows(outcomes, states), "numbers")])


def _predictions(findings: Sequence[Finding]) -> Html:
    rows = prediction_rows(findings)
    if not rows:
        return NOTHING
    lead = (
        "Runs kept out, and what the laws say of them. Errors are shares of the reducible loss, measured less "
        "irreducible. Repeating the last value predicts the loss of the largest fitted run."
    )
    return join([heading("Predictions", lead), table(_PREDICTION_COLUMNS, rows, "numbers")])


def _laws(outcomes: Sequence[Outcome], findings: Sequence[Finding]) -> Html:
    figures = []
    for finding in findings:
        for index in range(len(finding.variables)):
            figures.append(_figure(finding, index, outcomes))
    if not figures:
        return NOTHING
    lead = (
        "Loss on held-out clips is an irreducible part and a power law. Rings were kept out of the fit; brackets and "
        "bands are 90 % intervals of a bootstrap; the dashed line is the irreducible loss."
    )
    laws = table(_LAW_COLUMNS, law_rows(findings), "numbers")
    return join([heading("Laws", lead), tag("div", *figures, class_="charts"), tag("p", class_="hint"), laws])


def _figure(finding: Finding, index: int, outcomes: Sequence[Outcome]) -> Html:
    """One law over one of its variables; the runs of each value of the other have a colour and a curve."""
    name = finding.variables[index]
    wanted = {*finding.fitted, *(one.name for one in finding.predictions)}
    shown = [outcome for outcome in outcomes if outcome.name in wanted]
    others = [variable for variable in finding.variables if variable != name]
    groups: dict[tuple[float, ...], list[Outcome]] = {}
    for outcome in shown:
        groups.setdefault(tuple(float(getattr(outcome, other)) for other in others), []).append(outcome)
    xs = [float(getattr(outcome, name)) for outcome in shown]
    x = np.geomspace(min(xs), max(xs), 60)
    series = [
        _series(finding, group, index, x, f"c{color % NUM_COLORS}", at)
        for color, (at, group) in enumerate(sorted(groups.items()))
    ]
    title = f"{MODELS[finding.model].capitalize()}: loss over {_variable(finding, name)}"
    note = UNITS[finding.model] + (f"; a curve for every number of {_variable(finding, others[0])}" if others else "")
    chart = law_chart(series, title, finding.law.irreducible)
    return tag("figure", tag("figcaption", tag("h3", title), tag("p", note)), chart)


def _series(
    finding: Finding, group: list[Outcome], index: int, x: np.ndarray, color: str, at: tuple[float, ...]
) -> Series:
    name = finding.variables[index]
    points = np.insert(np.broadcast_to(np.array(at), (len(x), len(at))), index, x, axis=1)
    drawn = np.array([law(points) for law in finding.replicates])
    low, high = np.array([interval(column) for column in drawn.T]).T
    dots = tuple(Dot(float(getattr(o, name)), o.loss, o.name, o.is_held_out) for o in group)
    return Series(dots, color, x, finding.law(points), None if at else (low, high))
