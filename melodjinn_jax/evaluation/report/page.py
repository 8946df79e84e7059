"""The page that reports are: its style, its players' script, and places for a head, tiles and sections."""

import importlib.resources
from collections.abc import Mapping
from string import Template

from melodjinn_jax.evaluation.report.markup import Html, join, tag

_TEMPLATE = "page.html.tmpl"


def render_page(title: str, header: Html, tiles: Html, sections: Mapping[str, tuple[str, Html]], footer: str) -> str:
    """One HTML file that opens offline. `sections` are titles and contents by name; empty ones are left out."""
    shown = {name: part for name, part in sections.items() if part[1]}
    links = [tag("a", heading, href=f"#{name}") for name, (heading, _) in shown.items()]
    body = [tag("section", content, id=name) for name, (_, content) in shown.items()]
    template = importlib.resources.files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return Template(template).substitute(
        title=join([title]),
        header=header,
        tiles=tiles,
        links=Html("".join(links)),
        sections=Html("".join(body)),
        footer=join([footer]),
    )
