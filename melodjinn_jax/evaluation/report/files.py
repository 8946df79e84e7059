"""What the files of a work directory say of a run, gathered for its report."""

import base64
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from melodjinn_jax.config import Config
from melodjinn_jax.data.audio import load_audio
from melodjinn_jax.errors import UserError
from melodjinn_jax.evaluation.report.plots import NEUTRAL, NUM_COLORS
from melodjinn_jax.evaluation.samples import EXAMPLE
from melodjinn_jax.training.manifest import DamagedCheckpointError, read_manifest
from melodjinn_jax.training.metrics import read_metrics
from melodjinn_jax.training.workdir import WorkDir, load_config


@dataclass(frozen=True)
class Clip:
    """The sound of one sample."""

    waveform: np.ndarray
    """float32 [samples]."""
    sample_rate: int
    uri: str
    """The whole file, as a data URI."""

    @property
    def seconds(self) -> float:
        return len(self.waveform) / self.sample_rate


@dataclass(frozen=True)
class RunFiles:
    """A run as its report needs it. What is missing is empty."""

    path: str
    config: Config
    results: dict[str, Any]
    """`eval.json`."""
    metrics: list[dict[str, Any]]
    """The lines of `metrics.jsonl`."""
    example: dict[str, Any]
    """`samples/example.json`."""
    clips: dict[str, Clip]
    """The files of `samples/` by name."""
    checkpoint: dict[str, Any]
    """What the newest checkpoint says beside its arrays."""

    @property
    def drums(self) -> list[str]:
        return self.results.get("drums", [])

    @property
    def is_music(self) -> bool:
        """Whether the run was on music of which no truth is known, and not on the drum world."""
        return bool(self.config.data.datasets)

    @property
    def drum_of_key(self) -> list[int | None]:
        """For keys 1..: the drum each stands for; of music none."""
        unknown = [None] * self.results.get("num_keys", 0) if self.is_music else []
        return self.results.get("drum_of_key", unknown)

    @property
    def num_keys(self) -> int:
        return len(self.drum_of_key)

    def drum_name(self, drum: int) -> str:
        return self.drums[drum] if drum < len(self.drums) else f"drum {drum}"

    def drum_color(self, drum: int) -> str:
        return f"c{drum % NUM_COLORS}"

    def key_name(self, key: int) -> str:
        """The drum that a key plays; what it does to music, nobody has named."""
        drum = self._drum(key)
        if key == 0 or (drum is None and self.is_music):
            return "" if key else "NOOP"
        return "no drum" if drum is None else self.drum_name(drum)

    def key_title(self, key: int) -> str:
        """A key by its number and, where that is known, its name."""
        return ", ".join(filter(None, [f"key {key}" if key else "", self.key_name(key)]))

    def key_color(self, key: int) -> str:
        """That of its drum; a key without one has a colour that no drum has, as far as they reach."""
        drum = self._drum(key)
        if drum is None:
            drum = len(self.drums) + self.drum_of_key[: max(key - 1, 0)].count(None)
        return NEUTRAL if key == 0 else self.drum_color(drum)

    def _drum(self, key: int) -> int | None:
        return self.drum_of_key[key - 1] if 1 <= key <= self.num_keys else None


def read_files(workdir: WorkDir) -> RunFiles:
    """All that the report shows.

    Raises:
      UserError: `config.json` or `eval.json` is missing, or a file is damaged.
    """
    config = load_config(workdir.path)
    if not workdir.evaluation.is_file():
        command = f"python -m melodjinn_jax.evaluate --workdir {shlex.quote(str(workdir.path))}"
        raise UserError(f"{workdir.evaluation} is missing: make it with {command}")
    example = _read_json(workdir.samples / EXAMPLE) if (workdir.samples / EXAMPLE).is_file() else {}
    # Without their description the sounds say nothing.
    sounds = sorted(workdir.samples.glob("*.wav")) if example else []
    return RunFiles(
        path=str(workdir.path),
        config=config,
        results=_read_json(workdir.evaluation),
        metrics=read_metrics(workdir.metrics),
        example=example,
        clips={file.stem: _read_clip(file, example["sample_rate"]) for file in sounds},
        checkpoint=_newest_metadata(workdir.checkpoints),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): evaluate the run again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (no results in it): evaluate the run again")
    return content


def _read_clip(file: Path, sample_rate: int) -> Clip:
    waveform = load_audio(file, sample_rate)
    return Clip(waveform, sample_rate, "data:audio/wav;base64," + base64.b64encode(file.read_bytes()).decode())


def _newest_metadata(checkpoints: Path) -> dict[str, Any]:
    """Metadata of the newest checkpoint whose manifest is whole; the report must not fail for want of it."""
    steps = sorted((int(folder.name) for folder in checkpoints.glob("*") if folder.name.isdigit()), reverse=True)
    for step in steps:
        try:
            return read_manifest(checkpoints / str(step)).metadata
        except DamagedCheckpointError:
            continue
    return {}
