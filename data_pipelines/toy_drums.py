"""Prepare the DATASET of the toy drum world: python -m data_pipelines.toy_drums --output DATASET."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from melodjinn_jax.config import CodecConfig, DataConfig
from melodjinn_jax.data.prepare import prepare_toy_drums
from melodjinn_jax.errors import UserError, reports_user_errors
from melodjinn_jax.experiment import command_line, parse_arguments


@dataclass(frozen=True)
class Arguments:
    """Make the clips, fit the codec on them and write both as a DATASET."""

    output: Path
    """Folder of the DATASET to write; if it was prepared from the same settings before, nothing is done."""
    data: DataConfig = field(default_factory=DataConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)


@reports_user_errors
def main(args: list[str] | None = None) -> None:
    """Run the command with `args`, or those of the command line."""
    argv = command_line() if args is None else args
    arguments = parse_arguments(Arguments, argv, prog="python -m data_pipelines.toy_drums")
    if arguments.data.path:
        raise UserError("--data.path is not used here: name the folder to write with --output")
    dataset = prepare_toy_drums(arguments.data, arguments.codec, arguments.output)
    counts = ", ".join(f"{count} {split}" for split, count in dataset.info.records.items())
    print(f"{dataset.path}: {counts} records")


if __name__ == "__main__":
    sys.exit(main())
