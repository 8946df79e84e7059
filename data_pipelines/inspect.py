"""Look into a DATASET: python -m data_pipelines.inspect DATASET."""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from melodjinn_jax.data.dataset import open_dataset
from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.errors import UserError, reports_user_errors
from melodjinn_jax.experiment import command_line, parse_arguments
from melodjinn_jax.ingest.contents import describe, read_contents
from melodjinn_jax.ingest.page import render_contents


@dataclass(frozen=True)
class Arguments:
    """Print what a DATASET holds, and write a page with players and spectrograms that opens offline."""

    dataset: tyro.conf.Positional[Path]
    """Folder of the DATASET."""
    page: Path | None = None
    """File of the page; if not given, it lies beside the DATASET, under its name with .html."""
    chunks: int = 6
    """Records to hear on the page."""


@reports_user_errors
def main(args: list[str] | None = None) -> None:
    """Run the command with `args`, or those of the command line."""
    argv = command_line() if args is None else args
    arguments = parse_arguments(Arguments, argv, prog="python -m data_pipelines.inspect")
    if arguments.chunks < 0:
        raise UserError(f"--chunks {arguments.chunks}: it must not be negative")
    contents = read_contents(open_dataset(arguments.dataset), arguments.chunks)
    print(describe(contents))
    path = arguments.dataset.absolute()
    page = arguments.page or path.with_name(f"{path.name}.html")
    try:
        write_atomically(page, render_contents(contents).encode(errors="backslashreplace"))
    except OSError as error:
        raise UserError(f"{page} cannot be written ({error.strerror}): name another file with --page") from error
    print(f"page: {page}")


if __name__ == "__main__":
    sys.exit(main())
