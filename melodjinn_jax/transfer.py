"""Play one recording on the sound of another: `python -m melodjinn_jax.transfer --workdir DIR ... --out C.wav`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from melodjinn_jax.data.audio import load_audio, write_wav
from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.errors import UserError, reports_user_errors
from melodjinn_jax.evaluation.actions import format_actions, require_frozen_lam
from melodjinn_jax.evaluation.transfer import check_recording, likeness_of_sound, prepare, score, transfer
from melodjinn_jax.experiment import command_line, parse_arguments
from melodjinn_jax.training.run import Run, load_run, tune_process


@dataclass(frozen=True)
class TransferArguments:
    """Play the actions of one recording on the sound of another, and score it against shuffled actions."""

    workdir: str
    """Work directory of a run whose latent action model is frozen."""
    actions_from: str
    """Recording whose actions are played."""
    out: str
    """WAV file to write, as long as that recording; its scores go beside it, as a .json file of the same name."""
    prompt: str = ""
    """Recording whose sound they are played on; empty: from silence."""
    seed: int = 0
    """Random seed of the sampling and of the shuffles."""
    temperature: float | None = None
    """0 takes the likeliest token; higher is freer. By default that at which the run is evaluated."""


def check_arguments(arguments: TransferArguments) -> None:
    if arguments.temperature is not None and not arguments.temperature >= 0:
        raise UserError(f"--temperature is {arguments.temperature}: it must not be negative")
    if not 0 <= arguments.seed < 2**31:
        raise UserError(f"--seed is {arguments.seed}: it must lie between 0 and 2^31 - 1")
    if not Path(arguments.out).name or Path(arguments.out).suffix == ".json":
        raise UserError(
            f"--out {arguments.out}: give the name of a WAV file; the scores go into a .json file beside it"
        )


def run_transfer(run: Run, arguments: TransferArguments) -> dict[str, Any]:
    """Write the transfer and its scores; returns the scores.

    Raises:
      UserError: the run's LAM is not frozen, a recording cannot be used, or the files cannot be written.
    """
    require_frozen_lam(run)
    source = load_audio(arguments.actions_from, run.codec.sample_rate)
    check_recording(run, "--actions-from", arguments.actions_from, source)
    prompt = None
    if arguments.prompt:
        prompt = load_audio(arguments.prompt, run.codec.sample_rate)
        check_recording(run, "--prompt", arguments.prompt, prompt)
    recordings = prepare(run, source, prompt)
    usual, seed = run.config.evaluation.temperature, arguments.seed
    temperature = usual if arguments.temperature is None else arguments.temperature
    played = transfer(run, recordings, recordings.keys[None], temperature, seed)[0]
    write_wav(arguments.out, played, run.codec.sample_rate)
    scores = score(run, recordings, played, temperature, seed)
    scores["spectrum_to_source_db"] = likeness_of_sound(run, played, recordings.source)
    if prompt is not None:
        scores["spectrum_to_prompt_db"] = likeness_of_sound(run, played, prompt)
    scores["actions"] = format_actions(recordings.keys)
    file = Path(arguments.out).with_suffix(".json")
    try:
        write_atomically(file, (json.dumps(scores, indent=2, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error
    return scores


@reports_user_errors
def main() -> None:
    arguments = parse_arguments(TransferArguments, command_line(), prog="python -m melodjinn_jax.transfer")
    check_arguments(arguments)
    run = load_run(arguments.workdir)
    tune_process(run.config.runtime.compile_cache)
    scores = run_transfer(run, arguments)
    print(json.dumps(scores))
    print(f"wrote {arguments.out}, {scores['seconds']} s, and its scores beside it", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
