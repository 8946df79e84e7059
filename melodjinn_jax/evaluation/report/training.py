"""How a run was trained: curves over its steps with the phases behind them, and the codes in use."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from melodjinn_jax.evaluation.report.files import RunFiles
from melodjinn_jax.evaluation.report.markup import NOTHING, Html, heading, join, percent, tag
from melodjinn_jax.evaluation.report.plots import NEUTRAL, PhaseSpan, curve, heat_strip


def training(files: RunFiles) -> Html:
    """Curves over the steps, and which codes were in use."""
    phases = phase_spans(files.metrics)
    if not phases:
        return NOTHING
    steps = [row for row in files.metrics if not {"look", "reason", "held_out"} & row.keys()]
    held_out = [{"step": row["step"], **row["held_out"]} for row in files.metrics if "held_out" in row]
    looks = [{"step": row["step"], **row["look"]} for row in files.metrics if "look" in row]
    bar = files.config.phases.min_agreement
    panels: list[tuple[str, str, list[tuple[int, float]], dict[str, Any]]] = [
        ("Reconstruction", "error of the next moment, log scale", _series(steps, "reconstruction", positive=True),
         {"log": True}),
        ("KL", "nats through the bottleneck of the warm-up", _series(steps, "kl"), {}),
        ("Commitment", "distance of latents to their codes", _series(steps, "commitment"), {}),
        ("Agreement", f"worst key, look by look; stable from {bar:g}", _series(looks[1:], "agreement"),
         {"top": 1.0, "threshold": bar}),
        ("Cross entropy", "dynamics model, nats per token, masked", _series(steps, "cross_entropy"), {}),
        ("Held out", "the same on held-out clips, unmasked", _series(held_out, "true_actions"), {}),
        ("Speed", "frames trained per second", _series(steps, "frames_per_second"), {}),
    ]  # fmt: skip
    charts = [_panel(title, note, points, phases, options) for title, note, points, options in panels if points]
    lead = "Three phases: discover actions, quantise them into codes, freeze them and learn to play."
    return join([heading("Training", lead), tag("div", *charts, class_="charts"), _code_usage(files, steps)])


def phase_spans(metrics: Sequence[dict[str, Any]]) -> list[PhaseSpan]:
    """The phases that a run went through, by the lines that say where it switched."""
    if not metrics:
        return []
    switches = [row for row in metrics if "reason" in row]
    names = [metrics[0].get("phase", ""), *(row["phase"] for row in switches)]
    edges = [0, *(row["step"] for row in switches), max(row["step"] for row in metrics)]
    return [
        PhaseSpan(name, start, stop)
        for name, start, stop in zip(names, edges[:-1], edges[1:], strict=True)
        if stop > start
    ]


def _series(rows: Iterable[dict[str, Any]], name: str, positive: bool = False) -> list[tuple[int, float]]:
    values = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), (int, float))]
    return [(step, value) for step, value in values if math.isfinite(value) and (value > 0 or not positive)]


def _panel(
    title: str, note: str, points: list[tuple[int, float]], phases: list[PhaseSpan], options: dict[str, Any]
) -> Html:
    last = points[-1][1]
    label = f"{title} over training steps, from {points[0][1]:.3g} to {last:.3g}"
    shown = f"{last:,.0f}" if abs(last) >= 1000 else f"{last:.3g}"
    caption = tag("figcaption", tag("h3", title), tag("b", shown), tag("p", note))
    return tag("figure", caption, curve(points, phases, label, **options))


def _code_usage(files: RunFiles, steps: Sequence[dict[str, Any]]) -> Html:
    rows = [row for row in steps if row.get("code_usage")]
    if not rows:
        return NOTHING
    shares = np.array([row["code_usage"] for row in rows]).T
    order = [code for code in np.argsort(-shares.mean(axis=1), kind="stable") if shares[code].max() > 0]
    key_of_code = files.checkpoint.get("action_space", {}).get("key_of_code", [])
    names, colors = [], []
    for code in order:
        key = key_of_code[code] if code < len(key_of_code) else None
        meaning = "" if key is None else files.key_title(key)
        colors.append(NEUTRAL if key is None else files.key_color(key))
        names.append(tag("div", tag("b", str(code)), f" {meaning}", class_=f"name {colors[-1]}", title=meaning))
    ends = [tag("div", percent(shares[code, -1]), class_="name") for code in order]
    first, last = rows[0]["step"], rows[-1]["step"]
    label = f"use of {len(order)} codes from step {first} to {last}"
    caption = tag(
        "figcaption",
        tag("h3", "Codes in use"),
        tag("p", f"steps {first} to {last}; each row against its own maximum, its last share on the right"),
    )
    strip = tag(
        "div",
        tag("div", *names, class_="codes"),
        tag("div", heat_strip(shares[order], colors, label)),
        tag("div", *ends, class_="shares"),
        class_="usage",
    )
    return tag("figure", caption, strip, class_="wide")
