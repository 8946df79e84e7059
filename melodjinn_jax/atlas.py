"""The atlas of a run's keys: `python -m melodjinn_jax.atlas --workdir DIR` writes atlas.html and key_names.json."""

import sys
from dataclasses import dataclass

from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.errors import UserError, reports_user_errors
from melodjinn_jax.evaluation.atlas import make_atlas
from melodjinn_jax.evaluation.key_names import keep_names
from melodjinn_jax.evaluation.report.atlas import render_atlas
from melodjinn_jax.experiment import command_line, parse_arguments
from melodjinn_jax.live.keys import read_key_names
from melodjinn_jax.training.run import Run, load_run, tune_process

PAGE = "atlas.html"


@dataclass(frozen=True)
class AtlasArguments:
    """Measure what every key of a run does, propose names, and show it all on one page to look at and listen to."""

    workdir: str
    """Work directory of a run whose actions are frozen. Names that stand in its key_names.json are kept."""


def write_atlas(run: Run) -> list[str]:
    """Write `atlas.html` and the names that `key_names.json` lacks; returns the names of keys 1...

    Raises:
      UserError: the run has no final keys, its data lacks what is needed, or a file is damaged or cannot be written.
    """
    folder = run.workdir.path
    read_key_names(folder)  # so that a damaged file is known before the work and not after
    atlas = make_atlas(run, run.open_data(), run.config.evaluation)
    names = keep_names(folder, [card.proposal for card in atlas.cards])
    page = render_atlas(run.config.name, atlas, names)
    try:
        write_atomically(folder / PAGE, page.encode())
    except OSError as error:
        raise UserError(f"{folder / PAGE} cannot be written: {error.strerror}") from error
    for card, name in zip(atlas.cards, names, strict=True):
        print(f"{card.key} {name} (sounds like {card.proposal.name}, {card.proposal.sure:.0%} sure)")
    return names


@reports_user_errors
def main() -> None:
    arguments = parse_arguments(AtlasArguments, command_line(), prog="python -m melodjinn_jax.atlas")
    run = load_run(arguments.workdir)
    tune_process(run.config.runtime.compile_cache)
    write_atlas(run)
    print(f"wrote {run.workdir.path / PAGE}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
