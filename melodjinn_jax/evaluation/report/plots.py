"""The report's plots as inline SVG: waveforms, presses, curves, usage.

Colours are classes (`c0`, `c1`, ..., one for each drum or key) that the page's style sheet fills in, so that every
plot follows the reader's light or dark scheme.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from melodjinn_jax.evaluation.report.markup import NOTHING, Html, tag

NUM_COLORS = 16
"""Colour classes of the style sheet; `cn` is the neutral one."""
NEUTRAL = "cn"
MAX_POINTS = 300
ATTACK = 1.5
"""Frames by which a codec may smear an attack ahead of its time."""
_SILENT = 0.01


@dataclass(frozen=True)
class Mark:
    """A hit or a press to show over time."""

    frame: float
    color: str
    name: str
    lane: int = 0


def _stretched(height: int, *shapes: Html, **attributes: object) -> Html:
    """An SVG that fills its box: 1000 units wide, `height` units high."""
    return tag("svg", *shapes, viewBox=f"0 0 1000 {height}", preserveAspectRatio="none", **attributes)


def waveform(
    samples: np.ndarray, scale: float, marks: Sequence[Mark], frames: float, label: str, attack: float = ATTACK
) -> Html:
    """A waveform, coloured from each mark on until it has died away, with a thin line at the marks.

    Args:
      samples: float [samples].
      scale: amplitude that fills the height.
      marks: in order of time.
      frames: length of the clip.
      label: what it shows, for those who cannot see it.
      attack: frames before a mark in which its sound may begin.
    """
    bins = min(len(samples), 1000)
    edges = np.linspace(0, len(samples), bins, endpoint=False).astype(int)
    high, low = np.maximum.reduceat(samples, edges), np.minimum.reduceat(samples, edges)
    level = (high - low) / scale
    top, bottom = (50 - 49 * np.clip(extreme / scale, -1, 1) for extreme in (high, low))
    places = [mark.frame / frames * bins for mark in marks]
    cuts = [0, *(_quietest_before(level, place, attack * bins / frames) for place in places), bins]
    shapes = [tag("path", class_="lane", d="M0 50H1000")]
    for (start, stop), color in zip(pairwise(cuts), [NEUTRAL, *(mark.color for mark in marks)], strict=True):
        loud = np.flatnonzero(level[start:stop] > _SILENT)
        if len(loud):
            # One bin more, so that neighbours touch.
            shown = slice(start, start + int(loud[-1]) + 2)
            at = np.arange(bins)[shown] * (1000 / bins)
            outline = zip([*at, *at[::-1]], [*top[shown], *bottom[shown][::-1]], strict=True)
            shapes.append(tag("path", class_=f"wave {color}", d=polyline(outline) + "z"))
    shapes += [_tick(mark, frames) for mark in marks]
    return _stretched(100, *shapes, class_="waveform", role="img", aria_label=label)


def _quietest_before(level: np.ndarray, at: float, bins: float) -> int:
    """The last of the quietest bins among those before `at`, where a sound begins."""
    last = min(max(round(at), 0), len(level) - 1)
    window = level[max(0, math.floor(at - bins)) : last + 1]
    return last - int(np.argmin(window[::-1]))


def _tick(mark: Mark, frames: float) -> Html:
    x = 1000 * mark.frame / frames
    return tag("path", tag("title", mark.name), class_=f"tick {mark.color}", d=f"M{x:.1f} 0V100")


def roll(lanes: int, marks: Sequence[Mark], frames: float, label: str) -> Html:
    """Marks over time as dots, a lane for each key, like a piano roll."""
    lines = [tag("path", class_="lane", d=f"M0 {20 * lane + 10}H1000") for lane in range(lanes)]
    # A stroke of almost no length with round ends is a dot that stays round however the plot is stretched.
    dots = [
        tag(
            "path",
            tag("title", mark.name),
            class_=f"dot {mark.color}",
            d=f"M{1000 * mark.frame / frames:.1f} {20 * mark.lane + 10}h.01",
        )
        for mark in marks
    ]
    return _stretched(
        20 * lanes, *lines, *dots, class_="roll", style=f"height:{20 * lanes}px", role="img", aria_label=label
    )


def polyline(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


@dataclass(frozen=True)
class PhaseSpan:
    """The steps of one training phase."""

    name: str
    start: int
    stop: int


WIDTH, HEIGHT = 360, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 8, 20, 22


def curve(
    points: Sequence[tuple[int, float]],
    phases: Sequence[PhaseSpan],
    label: str,
    *,
    log: bool = False,
    top: float | None = None,
    threshold: float | None = None,
) -> Html:
    """A curve over training steps, the phases behind it.

    Args:
      points: (step, value), finite, at least one.
      phases: of the whole run; they give the steps that the axis covers.
      label: what it shows, for those who cannot see it.
      log: whether the values' axis is logarithmic; then values are above 0.
      top: end of the values' axis; None: the largest value.
      threshold: value at which to draw a line.
    """
    shown = _thinned(points)
    last = max(phases[-1].stop, 1)
    ticks, height = _value_axis([value for _, value in shown], log, top)

    def x(step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * step / last

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * height(value)

    shapes = [_phase_band(span, x) for span in phases]
    shapes += [_grid_line(y(tick), _short(tick)) for tick in ticks]
    shapes += [
        tag("text", _short(step), class_="mid", x=f"{x(step):.1f}", y=HEIGHT - 6)
        for step in ticks_within(0, last)[1:]
        if step <= last
    ]
    if threshold is not None:
        shapes.append(_grid_line(y(threshold), "", "threshold"))
    at = [(x(step), y(value)) for step, value in shown]
    shapes.append(tag("path", class_="curve", d=polyline(at)))
    if len(at) == 1 or threshold is not None:
        shapes += [tag("circle", class_="point", cx=f"{left:.1f}", cy=f"{height:.1f}", r=2.5) for left, height in at]
    return tag("svg", *shapes, viewBox=f"0 0 {WIDTH} {HEIGHT}", class_="chart", role="img", aria_label=label)


def _value_axis(values: Sequence[float], log: bool, top: float | None) -> tuple[list[float], Callable[[float], float]]:
    """Where to write numbers, and how high from 0 to 1 a value stands."""
    scale: Callable[[float], float] = math.log10 if log else float
    if log:
        ends = min(values) / 1.3, max(values) * 1.3
        ticks = log_ticks(*ends)
    else:
        ticks = ticks_within(min(0.0, *values), top or max(values))
        ends = ticks[0], ticks[-1]
    low, high = map(scale, ends)
    return ticks, lambda value: (scale(value) - low) / (high - low)


def _grid_line(y: float, name: str, class_: str = "grid") -> Html:
    line = tag("path", class_=class_, d=f"M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}")
    return tag("g", line, tag("text", name, class_="end", x=_LEFT - 5, y=f"{y + 4:.1f}"))


def _phase_band(span: PhaseSpan, x: Callable[[float], float]) -> Html:
    left, width = x(span.start), x(span.stop) - x(span.start)
    box = {"x": f"{left:.1f}", "y": _TOP, "width": f"{width:.1f}", "height": HEIGHT - _TOP - _BOTTOM}
    band = tag("rect", class_=f"phase {span.name}", **box)
    fits = width > 6.5 * len(span.name)
    name = tag("text", span.name, class_="phase-name", x=f"{left + 2:.1f}", y=_TOP - 6) if fits else NOTHING
    return tag("g", tag("title", f"{span.name}: steps {span.start} to {span.stop}"), band, name)


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS points: the means of neighbours."""
    groups = np.array_split(np.asarray(points, float), min(len(points), MAX_POINTS))
    return [(float(group[:, 0].mean()), float(group[:, 1].mean())) for group in groups]


def ticks_within(low: float, high: float) -> list[float]:
    """Three to six round numbers that cover a range."""
    span = high - low or abs(high) or 1.0
    rough = span / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil((low + span) / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within a range; where these are too few, numbers between them; or just its ends."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5)):
        ticks = [digit * 10.0**power for power in powers for digit in digits if low <= digit * 10.0**power <= high]
        if len(ticks) >= 3:
            return ticks
    return [low, high]


def _short(value: float) -> str:
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"


def heat_strip(shares: np.ndarray, colors: Sequence[str], label: str) -> Html:
    """Use over time: a row for each code, each shaded from nothing to its own maximum.

    Args:
      shares: [rows, columns], with a maximum above 0 in each row.
      colors: colour class of each row.
      label: what it shows, for those who cannot see it.
    """
    groups = np.array_split(shares, min(shares.shape[1], 120), axis=1)
    columns = np.stack([group.mean(axis=1) for group in groups], axis=1)
    width = 1000 / columns.shape[1]
    cells = []
    for row, (values, color) in enumerate(zip(columns, colors, strict=True)):
        cells.append(tag("rect", class_="void", x=0, y=20 * row + 1, width=1000, height=18))
        for column, opacity in enumerate(values / values.max()):
            if opacity > 0.01:
                cells.append(
                    tag(
                        "rect",
                        class_=f"cell {color}",
                        x=f"{column * width:.2f}",
                        y=20 * row + 1,
                        width=f"{width:.2f}",
                        height=18,
                        fill_opacity=f"{opacity:.2f}",
                    )
                )
    height = 20 * len(shares)
    return _stretched(height, *cells, class_="heat", style=f"height:{height}px", role="img", aria_label=label)
