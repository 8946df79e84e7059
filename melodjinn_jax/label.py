"""Label a DATASET: `python -m melodjinn_jax.label --workdir LAM_RUN --dataset DATASET` writes its actions beside it."""

import sys
from dataclasses import dataclass

from melodjinn_jax.data.dataset import open_dataset
from melodjinn_jax.errors import reports_user_errors
from melodjinn_jax.evaluation.labelling import label_dataset
from melodjinn_jax.experiment import command_line, parse_arguments
from melodjinn_jax.training.run import load_run, tune_process


@dataclass(frozen=True)
class LabelArguments:
    """Write a frozen LAM's actions of every record of a DATASET beside it; the same command again goes on."""

    workdir: str
    """Work directory of the run whose LAM is frozen."""
    dataset: str
    """Folder of the DATASET."""


@reports_user_errors
def main() -> None:
    arguments = parse_arguments(LabelArguments, command_line(), prog="python -m melodjinn_jax.label")
    dataset = open_dataset(arguments.dataset)
    run = load_run(arguments.workdir)
    tune_process(run.config.runtime.compile_cache)
    labels = label_dataset(run, dataset, lambda line: print(line, file=sys.stderr))
    digest, num_keys = labels.space.digest[:12], labels.space.num_keys
    print(f"{labels.folder}: {num_keys} keys beside NOOP; train on them with --data.actions {digest}")


if __name__ == "__main__":
    sys.exit(main())
