"""Plots of losses over a logarithmic axis, with the laws through them, as inline SVG in the style of the reports."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from melodjinn_jax.evaluation.report.markup import NOTHING, Html, tag
from melodjinn_jax.evaluation.report.plots import HEIGHT, NEUTRAL, WIDTH, log_ticks, polyline, ticks_within

_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 12, 12, 22


@dataclass(frozen=True)
class Dot:
    """One run."""

    x: float
    loss: float
    name: str
    is_held_out: bool = False


@dataclass(frozen=True)
class Series:
    """Runs of one colour, the law through them, and the band in which it lies."""

    dots: tuple[Dot, ...]
    color: str = NEUTRAL
    x: np.ndarray | None = None
    """[m], where the law is drawn; None: no law."""
    law: np.ndarray | None = None
    """[m] losses."""
    band: tuple[np.ndarray, np.ndarray] | None = None
    """Lower and upper ends [m]."""


def law_chart(series: Sequence[Series], label: str, irreducible: float | None = None) -> Html:
    """Losses over a logarithmic axis; runs kept out of the fit are rings.

    Args:
      series: at least one, with at least one dot among all.
      label: what it shows, for those who cannot see it.
      irreducible: loss at which to draw a line.
    """
    xs = [dot.x for one in series for dot in one.dots]
    losses = [dot.loss for one in series for dot in one.dots]
    low, high = math.log10(min(xs) / 1.25), math.log10(max(xs) * 1.25)
    ticks = ticks_within(min(losses) - 0.05 * np.ptp(losses), max(losses))
    bottom, top = ticks[0], ticks[-1]

    def place(x: float, loss: float) -> tuple[float, float]:
        right = (math.log10(x) - low) / (high - low)
        up = (min(max(loss, bottom), top) - bottom) / (top - bottom)
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * right, HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * up

    shapes = [_level(place(10**low, tick)[1], f"{tick:.3g}", "grid") for tick in ticks]
    if irreducible is not None and bottom <= irreducible <= top:
        shapes.append(_level(place(10**low, irreducible)[1], "", "threshold"))
    for tick in log_ticks(10**low, 10**high):
        shapes.append(tag("text", si(tick), class_="mid", x=f"{place(tick, bottom)[0]:.1f}", y=HEIGHT - 6))
    for one in series:
        shapes += _law(one, place)
    for one in series:
        shapes += [_dot(dot, one.color, *place(dot.x, dot.loss)) for dot in one.dots]
    return tag("svg", *shapes, viewBox=f"0 0 {WIDTH} {HEIGHT}", class_="chart", role="img", aria_label=label)


def _level(y: float, name: str, class_: str) -> Html:
    line = tag("path", class_=class_, d=f"M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}")
    return tag("g", line, tag("text", name, class_="end", x=_LEFT - 5, y=f"{y + 4:.1f}") if name else NOTHING)


def _law(series: Series, place) -> list[Html]:
    shapes = []
    if series.x is not None and series.band is not None:
        low, high = series.band
        outline = [*zip(series.x, high, strict=True), *zip(series.x[::-1], low[::-1], strict=True)]
        path = polyline(place(x, loss) for x, loss in outline) + "z"
        shapes.append(tag("path", class_=series.color, style="fill:var(--c);opacity:.18", d=path))
    if series.x is not None and series.law is not None:
        path = polyline(place(x, loss) for x, loss in zip(series.x, series.law, strict=True))
        shapes.append(tag("path", class_=series.color, style="fill:none;stroke:var(--c);stroke-width:1.5", d=path))
    return shapes


def _dot(dot: Dot, color: str, x: float, y: float) -> Html:
    paint = "fill:var(--card);stroke:var(--c);stroke-width:2" if dot.is_held_out else "fill:var(--c)"
    title = tag("title", f"{dot.name}: {dot.loss:.4f}" + (", kept out of the fit" if dot.is_held_out else ""))
    return tag("circle", title, class_=color, style=paint, cx=f"{x:.1f}", cy=f"{y:.1f}", r=3.5)


def si(value: float) -> str:
    """A large number in short: 200k, 1.5M, 3e+18."""
    for size, letter in ((1e15, ""), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}" if letter else f"{value:.2g}"
    return f"{value:.3g}"
