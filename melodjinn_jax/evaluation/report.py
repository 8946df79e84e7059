"""The report of a run: one HTML file that opens offline, made from the files of the work directory and nothing else."""

import base64
import dataclasses
import importlib.resources
import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from melodjinn_jax.config import Config
from melodjinn_jax.data.audio import load_audio
from melodjinn_jax.errors import UserError
from melodjinn_jax.evaluation.report_plots import NUM_COLORS
from melodjinn_jax.evaluation.samples import EXAMPLE
from melodjinn_jax.training.manifest import MANIFEST_NAME, DamagedCheckpointError, read_manifest
from melodjinn_jax.training.metrics import read_metrics
from melodjinn_jax.training.workdir import WorkDir, load_config, write_atomically


@dataclass(frozen=True)
class Clip:
    """The sound of one sample."""

    waveform: np.ndarray
    """float32 [samples]."""
    seconds: float
    uri: str
    """The whole file, as a data URI."""


@dataclass(frozen=True)
class RunFiles:
    """What the work directory says of a run. What is missing is empty."""

    path: str
    config: Config
    results: dict[str, Any]
    """`eval.json`."""
    metrics: list[dict[str, Any]]
    example: dict[str, Any]
    """`samples/example.json`."""
    clips: dict[str, Clip]
    """The files of `samples/` by name."""
    checkpoint: dict[str, Any]
    """What the newest checkpoint says of itself."""

    @property
    def drums(self) -> list[str]:
        return self.results.get("drums", [])

    @property
    def drum_of_key(self) -> list[int | None]:
        """For keys 1..: the drum each stands for."""
        return self.results.get("drum_of_key", [])

    def drum_color(self, drum: int) -> str:
        return f"c{drum % NUM_COLORS}"

    def key_color(self, key: int) -> str:
        """A key has its drum's colour; one without a drum has a colour that no drum has, as long as there are some."""
        if key == 0:
            return "cn"
        drum = self.drum_of_key[key - 1] if key <= len(self.drum_of_key) else None
        if drum is None:
            drum = len(self.drums) + self.drum_of_key[: key - 1].count(None)
        return self.drum_color(drum)

    def drum_name(self, drum: int) -> str:
        return self.drums[drum] if drum < len(self.drums) else f"drum {drum}"

    def key_name(self, key: int) -> str:
        """What a key does: its drum, or that it has none."""
        if key == 0:
            return "NOOP"
        drum = self.drum_of_key[key - 1] if key <= len(self.drum_of_key) else None
        return "no drum" if drum is None else self.drum_name(drum)


def write_report(workdir: WorkDir) -> None:
    """Write `report.html` from `config.json`, `eval.json`, `metrics.jsonl`, `samples/` and the newest manifest.

    Raises:
      UserError: `config.json` or `eval.json` is missing, a file is damaged, or the report cannot be written.
    """
    from melodjinn_jax.evaluation.report_sections import page

    resources = importlib.resources.files("melodjinn_jax.evaluation")
    template = Template((resources / "report.html.tmpl").read_text(encoding="utf-8"))
    files = read_files(workdir)
    try:
        write_atomically(workdir.report, template.substitute(page(files)).encode())
    except OSError as error:
        raise UserError(f"{workdir.report} cannot be written: {error.strerror}") from error


def read_files(workdir: WorkDir) -> RunFiles:
    """All that the report shows.

    Raises:
      UserError: a file that must be there is missing, or one is damaged.
    """
    config = load_config(workdir.path)
    if not workdir.evaluation.is_file():
        command = f"python -m melodjinn_jax.evaluate --workdir {shlex.quote(str(workdir.path))}"
        raise UserError(f"{workdir.evaluation} is missing: make it with {command}")
    example = workdir.samples / EXAMPLE
    return RunFiles(
        path=str(workdir.path),
        config=config,
        results=_read_json(workdir.evaluation),
        metrics=read_metrics(workdir.metrics),
        example=_read_json(example) if example.is_file() else {},
        clips={file.stem: _read_clip(file) for file in sorted(workdir.samples.glob("*.wav"))},
        checkpoint=_newest_metadata(workdir.checkpoints),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): evaluate the run again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no results: evaluate the run again")
    return content


def _read_clip(file: Path) -> Clip:
    import soundfile

