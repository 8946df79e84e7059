"""The command line that all sources share: a plan on standard output, or a DATASET."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Generic, Protocol, TypeVar

import tyro

from melodjinn_jax.errors import UserError
from melodjinn_jax.experiment import command_line, parse_arguments
from melodjinn_jax.ingest.fetch import Fetcher, LocalFolder
from melodjinn_jax.ingest.plan import summary
from melodjinn_jax.ingest.track import Plan


class Source(Protocol):
    """The arguments of one source, and what they say."""

    def plan(self) -> Plan:
        """What the source would bring. Raises `UserError` for metadata or tags that are none."""
        ...

    def fetcher(self, folder: Path) -> Fetcher:
        """What downloads its audio, by way of `folder`."""
        ...


@dataclass(frozen=True)
class Target:
    """What is to be made of the tracks."""

    plan: tyro.conf.UseCounterAction[int] = 0
    """Only say what the DATASET would hold: one JSON object on standard output; no audio is touched."""
    output: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Folder of the DATASET to write; the same command again goes on where the last one stopped."""
    input: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Folder that holds the audio already, below it as the source names it; without it the audio is downloaded."""
    downloads: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Folder for audio on its way, by default OUTPUT.downloads; what is done with is removed."""


Kind = TypeVar("Kind", bound=Source)
Options = TypeVar("Options")


@dataclass(frozen=True)
class Arguments(Generic[Kind, Options]):
    """Plan what a source would bring (--plan), or make a DATASET of it (--output)."""

    source: Annotated[Kind, tyro.conf.arg(name="")]
    target: Annotated[Target, tyro.conf.arg(name="")]
    options: Annotated[Options, tyro.conf.arg(name="")]


def run_source(kind: type[Source], argv: list[str] | None, *, prog: str) -> None:
    """Run the command of a source with `argv`, or the arguments of the command line.

    Raises `UserError` for arguments, metadata, downloads or a disk that do not allow it.
    """
    # The pipeline brings JAX and codecs along, which nothing but a command should wait for.
    from melodjinn_jax.ingest.run import IngestOptions, ingest

    arguments: Arguments[Source, IngestOptions] = parse_arguments(
        Arguments[kind, IngestOptions],  # type: ignore[valid-type]
        command_line() if argv is None else argv,
        prog=prog,
    )
    target, options = arguments.target, arguments.options
    if not target.plan and target.output is None:
        raise UserError("give --output DATASET, or --plan to see what it would hold")
    plan = arguments.source.plan()
    planned = summary(plan, options.held_out)
    if target.plan or target.output is None:
        print(json.dumps(planned, indent=2))
        return
    print(f"{planned['tracks']} tracks, {planned['hours']:.1f} hours by the metadata", file=sys.stderr)
    downloads = target.downloads or _downloads_beside(target.output)
    fetcher = LocalFolder(target.input) if target.input else arguments.source.fetcher(downloads)
    dataset = ingest(plan, fetcher, target.output, options)
    counts = ", ".join(f"{count} {split}" for split, count in dataset.info.records.items())
    print(f"{dataset.path}: {counts} records")


def _downloads_beside(output: Path) -> Path:
    output = output.absolute()
    return output.with_name(f"{output.name}.downloads")
