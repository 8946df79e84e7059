"""Play a trained run: `python -m melodjinn_jax.generate --workdir DIR --actions "0x60 2 0x30" --out clip.wav`."""

import sys
from dataclasses import dataclass

import numpy as np

from melodjinn_jax.data.audio import load_audio, write_wav
from melodjinn_jax.errors import UserError, reports_user_errors
from melodjinn_jax.evaluation.actions import extract_actions, format_actions, parse_actions
from melodjinn_jax.experiment import command_line, parse_arguments
from melodjinn_jax.live.generator import generate
from melodjinn_jax.live.prompt import make_prompt
from melodjinn_jax.live.replay import batch_of, read_session, sample_anew
from melodjinn_jax.live.session import require_instrument
from melodjinn_jax.live.stream import StreamingGenerator, instrument_of, render_codes
from melodjinn_jax.training.run import Run, load_run, tune_process


@dataclass(frozen=True)
class GenerateArguments:
    """Generate audio under given actions, under those of a recording, or as a session was played."""

    workdir: str
    """Work directory of a trained run."""
    out: str
    """WAV file to write."""
    actions: str = ""
    """Keys to press, one per action: "0x60 2 0x30 3" is 60 times NOOP, key 2, 30 times NOOP, key 3."""
    actions_from: str = ""
    """Recording whose actions are extracted and played instead."""
    session: str = ""
    """Session file that was saved while playing, to be heard again; it brings its own prompt, seed and sampling."""
    resample: bool = False
    """Sample the session's actions anew instead of decoding the codes that were played."""
    prompt: str = ""
    """Recording to start from; empty: silence."""
    seed: int = 0
    """Random seed of the sampling."""
    temperature: float = 0.0
    """0 takes the likeliest token; higher is freer. Actions have the strength at which the run is evaluated."""
    top_k: int = 0
    """Sample from the likeliest tokens only; 0: from all."""


def render(run: Run, arguments: GenerateArguments) -> np.ndarray:
    """The generated waveform float32 [samples], the prompt before it."""
    if arguments.actions_from:
        if not run.has_lam:
            raise UserError(
                f"--actions-from needs a LAM, and {arguments.workdir} was trained on labels without one: "
                "extract the actions with the run that made the labels, and give them as --actions"
            )
        recording = load_audio(arguments.actions_from, run.codec.sample_rate)
        keys = extract_actions(run, recording)
        if not len(keys):
            raise UserError(f"--actions-from {arguments.actions_from}: too short to hold an action")
        print(format_actions(keys))
    else:
        keys = parse_actions(arguments.actions, run.action_space.num_keys)
    prompt = make_prompt(run, arguments.prompt)
    stride = run.action_space.stride
    heard = np.minimum(prompt.actions[stride::stride], run.models.num_codes)
    frames = len(prompt.codes) + len(keys) * stride
    given = np.zeros((1, frames, run.codec.num_codebooks), np.int32)
    given[0, : len(prompt.codes)] = prompt.codes
    codes = generate(
        run.models,
        run.played_dynamics,
        given,
        len(prompt.codes),
        np.concatenate([heard, keys])[None],
        seed=arguments.seed,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
    )
    return np.asarray(run.codec.decode(codes))[0]


def render_session(run: Run, path: str, resample: bool) -> np.ndarray:
    """The waveform float32 [samples] of a session file, from its first frame on."""
    session, made_with = read_session(path)
    require_instrument(session, instrument_of(run), to_continue=resample)
    codes = session.codes
    if resample:
        slots, slot = batch_of(made_with)
        codes = sample_anew(StreamingGenerator(run, slots), session, slot)
        same = (codes == session.codes).mean()
        print(f"{same:.2%} of the codes are those that were played", file=sys.stderr)
    return render_codes(run.codec, codes)


def check_arguments(arguments: GenerateArguments) -> None:
    if sum(map(bool, (arguments.actions, arguments.actions_from, arguments.session))) != 1:
        raise UserError("give one of --actions, --actions-from and --session")
    if arguments.session and arguments.prompt:
        raise UserError("--prompt is for --actions: a session brings its own")
    if arguments.resample and not arguments.session:
        raise UserError("--resample needs the --session whose actions it takes")
    if not arguments.temperature >= 0:
        raise UserError(f"--temperature is {arguments.temperature}: it must not be negative")
    if arguments.top_k < 0:
        raise UserError(f"--top-k is {arguments.top_k}: it must not be negative")
    if not 0 <= arguments.seed < 2**63:
        raise UserError(f"--seed is {arguments.seed}: it must lie between 0 and 2^63 - 1")


@reports_user_errors
def main() -> None:
    arguments = parse_arguments(GenerateArguments, command_line(), prog="python -m melodjinn_jax.generate")
    check_arguments(arguments)
    run = load_run(arguments.workdir)
    tune_process(run.config.runtime.compile_cache)
    if arguments.session:
        waveform = render_session(run, arguments.session, arguments.resample)
    else:
        waveform = render(run, arguments)
    write_wav(arguments.out, waveform, run.codec.sample_rate)
    print(f"{arguments.out}: {len(waveform) / run.codec.sample_rate:.2f} s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
