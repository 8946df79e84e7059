"""The report of a run: one HTML file that opens offline, made from the files of the work directory and nothing else."""

import importlib.resources
from string import Template

from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.errors import UserError
from melodjinn_jax.evaluation.report.files import RunFiles, read_files
from melodjinn_jax.evaluation.report.headline import header, tiles
from melodjinn_jax.evaluation.report.markup import Html, join, tag
from melodjinn_jax.evaluation.report.numbers import commands, confusion, numbers, settings
from melodjinn_jax.evaluation.report.sound import control, listen, one_clip
from melodjinn_jax.evaluation.report.training import training
from melodjinn_jax.training.workdir import WorkDir

_TEMPLATE = "page.html.tmpl"


def write_report(workdir: WorkDir) -> None:
    """Write `report.html` from `config.json`, `eval.json`, `metrics.jsonl`, `samples/` and the newest manifest.

    Of these only the first two must be there; what the others would show is left out.

    Raises:
      UserError: `config.json` or `eval.json` is missing, a file is damaged, or the report cannot be written.
    """
    content = render(read_files(workdir))
    try:
        write_atomically(workdir.report, content.encode())
    except OSError as error:
        raise UserError(f"{workdir.report} cannot be written: {error.strerror}") from error


def render(files: RunFiles) -> str:
    """The whole page."""
    parts = {
        "listen": ("Listen", listen(files)),
        "clip": ("One clip", one_clip(files)),
        "control": ("Press and hear", control(files)),
        "training": ("Training", training(files)),
        "confusion": ("Hits and keys", confusion(files)),
        "numbers": ("All numbers", numbers(files)),
        "settings": ("Settings", settings(files)),
        "commands": ("Play on", commands(files)),
    }
    shown = {name: part for name, part in parts.items() if part[1]}
    links = [tag("a", title, href=f"#{name}") for name, (title, _) in shown.items()]
    body = [tag("section", content, id=name) for name, (_, content) in shown.items()]
    template = importlib.resources.files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8")
    return Template(template).substitute(
        title=join([f"{files.config.name}: Melodjinn run report"]),
        header=header(files),
        tiles=tiles(files),
        links=Html("".join(links)),
        sections=Html("".join(body)),
    )
