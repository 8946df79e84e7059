"""Play a trained run: `python -m melodjinn_jax.generate --workdir DIR --actions "0x60 2 0x30" --out clip.wav`."""

import sys
from dataclasses import dataclass

import numpy as np

from melodjinn_jax.data.audio import load_audio, write_wav
from melodjinn_jax.errors import UserError, reports_user_errors
from melodjinn_jax.evaluation.actions import extract_actions, format_actions, parse_actions
from melodjinn_jax.experiment import command_line, parse_arguments
from melodjinn_jax.live.generator import generate
from melodjinn_jax.training.run import Run, load_run, tune_process


@dataclass(frozen=True)
class GenerateArguments:
    """Generate audio under given actions, or under those of a recording."""

    workdir: str
    """Work directory of a trained run."""
    out: str
    """WAV file to write."""
    actions: str = ""
    """Keys to press, one per action: "0x60 2 0x30 3" is 60 times NOOP, key 2, 30 times NOOP, key 3."""
    actions_from: str = ""
    """Recording whose actions are extracted and played instead."""
    prompt: str = ""
    """Recording to start from; empty: silence."""
    seed: int = 0
    """Random seed of the sampling."""
    temperature: float = 0.0
    """0 takes the likeliest token; higher is freer."""
    top_k: int = 0
    """Sample from the likeliest tokens only; 0: from all."""


def prompt_codes(run: Run, path: str) -> np.ndarray:
    """Codes int32 [F, Q] of the recording to start from, cut to whole blocks; of one silent block without one."""
    block = run.codec.hop_length * run.action_space.stride
    waveform = load_audio(path, run.codec.sample_rate) if path else np.zeros(block, np.float32)
    blocks = len(waveform) // block
    if blocks == 0:
        raise UserError(f"--prompt {path}: shorter than one block of {block} samples")
    return np.asarray(run.codec.encode(waveform[None, : blocks * block]))[0]


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
    prompt = prompt_codes(run, arguments.prompt)
    stride = run.action_space.stride
    # Nothing was pressed in silence; what happens within a prompt is not known unless a LAM hears it.
    unheard = run.models.num_codes if arguments.prompt else 0
    heard = np.full(len(prompt) // stride - 1, unheard)
    if arguments.prompt and run.has_lam:
        heard = extract_actions(run, load_audio(arguments.prompt, run.codec.sample_rate))[: len(heard)]
    frames = len(prompt) + len(keys) * stride
    given = np.zeros((1, frames, prompt.shape[1]), np.int32)
    given[0, : len(prompt)] = prompt
    codes = generate(
        run.models,
        run.state["dynamics"],
        given,
        len(prompt),
        np.concatenate([heard, keys])[None],
        seed=arguments.seed,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
    )
    return np.asarray(run.codec.decode(codes))[0]


def check_arguments(arguments: GenerateArguments) -> None:
    if bool(arguments.actions) == bool(arguments.actions_from):
        raise UserError("give either --actions or --actions-from")
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
    waveform = render(run, arguments)
    write_wav(arguments.out, waveform, run.codec.sample_rate)
    print(f"{arguments.out}: {len(waveform) / run.codec.sample_rate:.2f} s", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
