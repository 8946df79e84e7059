"""The report of a run: one HTML file that opens offline, made from the files of the work directory and nothing else."""

from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.errors import UserError
from melodjinn_jax.evaluation.report.files import RunFiles, read_files
from melodjinn_jax.evaluation.report.headline import header, tiles
from melodjinn_jax.evaluation.report.meaning import meaning
from melodjinn_jax.evaluation.report.numbers import commands, confusion, numbers, settings
from melodjinn_jax.evaluation.report.page import render_page
from melodjinn_jax.evaluation.report.sound import control, listen, one_clip
from melodjinn_jax.evaluation.report.training import training
from melodjinn_jax.training.workdir import WorkDir


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
        "meaning": ("What the actions mean", meaning(files)),
        "confusion": ("Hits and keys", confusion(files)),
        "numbers": ("All numbers", numbers(files)),
        "settings": ("Settings", settings(files)),
        "commands": ("Play on", commands(files)),
    }
    footer = "Made by Melodjinn from the files of the work directory of the run. This page needs no network."
    return render_page(f"{files.config.name}: Melodjinn run report", header(files), tiles(files), parts, footer)
