"""Markup that cannot forget to escape, and the report's plots as inline SVG: waveforms, presses, curves, usage.

Colours are classes (`c0`, `c1`, ..., one for each drum or key) that the page's style sheet fills in, so that every
plot follows the reader's light or dark scheme.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

import numpy as np

NUM_COLORS = 16
"""Colour classes of the style sheet; `cn` is the neutral one."""
NEUTRAL = "cn"
MAX_POINTS = 300
_VOID = frozenset({"br", "input"})


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: object) -> Html:
    """An element. Children that are not `Html` are escaped, and so are attributes; `class_` stands for `class`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for key, value in attributes.items()
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Sequence[str]) -> Html:
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children))


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


def waveform(samples: np.ndarray, scale: float, marks: Sequence[Mark], frames: float, label: str) -> Html:
    """A waveform, coloured from each mark on, with a thin line at the marks.

    Args:
      samples: float [samples].
      scale: amplitude that fills the height.
      marks: in order of time.
      frames: length of the clip.
      label: what it shows, for those who cannot see it.
    """
    bins = min(len(samples), 1000)
    edges = np.linspace(0, len(samples), bins, endpoint=False).astype(int)
    top = 50 - 49 * np.clip(np.maximum.reduceat(samples, edges) / scale, -1, 1)
    bottom = 50 - 49 * np.clip(np.minimum.reduceat(samples, edges) / scale, -1, 1)
    # Silence stays visible as a line.
    top, bottom = np.minimum(top, 49.6), np.maximum(bottom, 50.4)
    cuts = [0, *(round(min(max(mark.frame / frames, 0), 1) * bins) for mark in marks), bins]
    colors = [NEUTRAL, *(mark.color for mark in marks)]
    shapes = []
    for (start, stop), color in zip(pairwise(cuts), colors, strict=True):
        if stop > start:
            # One bin more, so that neighbours touch.
            at = np.arange(start, min(stop + 1, bins)) * (1000 / bins)
            outline = [*zip(at, top[start : stop + 1]), *zip(at[::-1], bottom[start : stop + 1][::-1])]
            shapes.append(tag("path", class_=f"wave {color}", d=_polyline(outline) + "z"))
    shapes += [_tick(mark, frames) for mark in marks]
    return _stretched(100, *shapes, class_="waveform", role="img", aria_label=label)


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


def _polyline(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


@dataclass(frozen=True)
class PhaseSpan:
    """The steps of one training phase."""

    name: str
    start: int
    stop: int


WIDTH, HEIGHT = 360, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 6, 18, 22


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
    points = _thinned(points)
    values = [value for _, value in points]
    last = max(phases[-1].stop, 1)
    ticks = _log_ticks(min(values), max(values)) if log else _ticks(0.0, top or max(values))
    scale: Callable[[float], float] = math.log10 if log else float
    low, high = scale(ticks[0]), scale(ticks[-1])

    def x(step: float) -> float:
        return _LEFT + (WIDTH - _LEFT - _RIGHT) * step / last

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * (scale(value) - low) / (high - low)

    shapes = [_phase_band(span, x) for span in phases]
    for tick in ticks:
        shapes.append(tag("path", class_="grid", d=f"M{_LEFT} {y(tick):.1f}H{WIDTH - _RIGHT}"))
        shapes.append(tag("text", f"{tick:g}", class_="end", x=_LEFT - 5, y=f"{y(tick) + 3.5:.1f}"))
    for step in _ticks(0, last)[1:]:
        if step <= last:
            shapes.append(tag("text", f"{step:g}", class_="mid", x=f"{x(step):.1f}", y=HEIGHT - 6))
    if threshold is not None:
        shapes.append(tag("path", class_="threshold", d=f"M{_LEFT} {y(threshold):.1f}H{WIDTH - _RIGHT}"))
    shapes.append(tag("path", class_="curve", d=_polyline([(x(step), y(value)) for step, value in points])))
    if len(points) == 1 or threshold is not None:
        shapes += [tag("circle", class_="point", cx=f"{x(s):.1f}", cy=f"{y(v):.1f}", r=2.5) for s, v in points]
    return tag("svg", *shapes, viewBox=f"0 0 {WIDTH} {HEIGHT}", class_="chart", role="img", aria_label=label)


def _phase_band(span: PhaseSpan, x: Callable[[float], float]) -> Html:
    left, width = x(span.start), x(span.stop) - x(span.start)
    band = tag(
        "rect", class_=f"phase {span.name}", x=f"{left:.1f}", y=_TOP, width=f"{width:.1f}", height=HEIGHT - _TOP - _BOTTOM
    )
    fits = width > 6 * len(span.name)
    name = tag("text", span.name, class_="phase-name", x=f"{left + 2:.1f}", y=_TOP - 6) if fits else Html()
    return tag("g", tag("title", f"{span.name}: steps {span.start} to {span.stop}"), band, name)


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most MAX_POINTS points: the means of neighbours."""
    groups = np.array_split(np.asarray(points, float), min(len(points), MAX_POINTS))
    return [(float(group[:, 0].mean()), float(group[:, 1].mean())) for group in groups]


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that cover a range."""
    span = high - low if high > low else 1.0
    rough = span / 4
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil((low + span) / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, or of ten and three times them, that cover a range."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    ticks = [10.0**power for power in range(first, max(last, first + 1) + 1)]
    if len(ticks) > 3:
        return ticks
    finer = sorted([*ticks, *(3 * tick for tick in ticks[:-1])])
    start = max(index for index, tick in enumerate(finer) if index == 0 or tick <= low)
    stop = min(index for index, tick in enumerate(finer) if tick >= high or index == len(finer) - 1)
    return finer[start : max(stop, start + 1) + 1]


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
                        width=f"{width + 0.3:.2f}",
                        height=18,
                        fill_opacity=f"{opacity:.2f}",
                    )
                )
    height = 20 * len(shares)
    return _stretched(height, *cells, class_="heat", style=f"height:{height}px", role="img", aria_label=label)
