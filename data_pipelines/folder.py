"""Prepare a DATASET from anyone's own music: python -m data_pipelines.folder --input FOLDER --output DATASET."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from melodjinn_jax.errors import reports_user_errors
from melodjinn_jax.experiment import command_line, parse_arguments
from melodjinn_jax.ingest.fetch import LocalFolder
from melodjinn_jax.ingest.run import IngestOptions, ingest
from melodjinn_jax.ingest.sources.folder import plan_folder


@dataclass(frozen=True)
class Arguments:
    """Decode every audio file below a folder, encode it, and write sound and codes as a DATASET."""

    input: Path
    """Folder of recordings; it is searched at any depth."""
    output: Path
    """Folder of the DATASET to write; if it was prepared from the same before, nothing is done."""
    options: Annotated[IngestOptions, tyro.conf.arg(name="")] = field(default_factory=IngestOptions)


@reports_user_errors
def main(args: list[str] | None = None) -> None:
    """Run the command with `args`, or those of the command line."""
    argv = command_line() if args is None else args
    arguments = parse_arguments(Arguments, argv, prog="python -m data_pipelines.folder")
    plan = plan_folder(arguments.input)
    dataset = ingest(plan, LocalFolder(arguments.input), arguments.output, arguments.options)
    counts = ", ".join(f"{count} {split}" for split, count in dataset.info.records.items())
    print(f"{dataset.path}: {counts} records; look into it with python -m data_pipelines.inspect {dataset.path}")


if __name__ == "__main__":
    sys.exit(main())
