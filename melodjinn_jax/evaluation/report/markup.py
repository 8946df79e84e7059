"""Markup that cannot forget to escape, and the pieces that the report's sections share."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_VOID = frozenset({"img", "input"})


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


NOTHING = Html()


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


def heading(title: str, *lead: str) -> Html:
    return tag("div", tag("h2", title), tag("p", *lead), class_="heading")


def percent(value: Any) -> str:
    """Rounded down to a tenth, so that a value below a threshold never reads as if it had reached it."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "n/a"
    return f"{math.floor(value * 1000 + 1e-6) / 10:g}%"


def number(value: Any) -> str:
    """A number, or whatever stands in its place, as a table shows it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"
    return "none" if value is None else str(value)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], class_: str) -> Html:
    """The first cell of a row is its heading."""
    top = tag("tr", *(tag("th", name, scope="col") for name in head))
    body = []
    for first, *cells in rows:
        rest = [cell if isinstance(cell, Html) and cell.startswith("<td") else tag("td", cell) for cell in cells]
        body.append(tag("tr", tag("th", first, scope="row"), *rest))
    return tag("div", tag("table", tag("thead", top), tag("tbody", *body), class_=class_), class_="scroll")
