"""Play a trained run live: `python -m melodjinn_jax.play --workdir DIR` opens a page; keys 1, 2, 3 are its actions."""

import asyncio
import secrets
import sys
import webbrowser
from dataclasses import dataclass
from functools import partial

from melodjinn_jax.config import EvaluationConfig
from melodjinn_jax.errors import UserError, reports_user_errors
from melodjinn_jax.experiment import command_line, parse_arguments
from melodjinn_jax.live.keys import holds_keys, label_keys
from melodjinn_jax.live.mock import MOCK_KEY_NAMES, MockStreamer, mock_prompt
from melodjinn_jax.live.prompt import make_prompt
from melodjinn_jax.live.session import Sampling
from melodjinn_jax.live.stage import Stage
from melodjinn_jax.live.stream import StreamingGenerator, dispatch_in_place
from melodjinn_jax.training.run import load_run, tune_process


@dataclass(frozen=True)
class PlayArguments:
    """Play a trained run live, in a browser."""

    workdir: str = ""
    """Work directory of a trained run."""
    prompt: str = ""
    """Recording to start from; empty: silence."""
    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's own wants a token."""
    port: int = 8765
    """Port to listen at; 0: any that is free."""
    token: str = ""
    """What the address must carry as ?token=...; empty: none on this machine, else one is made up."""
    listeners: int = 4
    """Streams at once."""
    seed: int = 0
    """Random seed of the sampling."""
    temperature: float | None = None
    """0 takes the likeliest token; higher is freer. By default that at which the run is evaluated."""
    top_k: int = 0
    """Sample from the likeliest tokens only; 0: from all."""
    strength: float | None = None
    """How much actions count: 1 as trained, 0 not at all. By default that at which the run is evaluated."""
    mock: bool = False
    """Bells instead of a trained run, to work on the page."""
    browser: bool = True
    """Open the page."""


def check_arguments(arguments: PlayArguments) -> None:
    """Raise `UserError` for what cannot work."""
    if bool(arguments.workdir) == arguments.mock:
        raise UserError("give either --workdir DIR or --mock")
    if arguments.mock and arguments.prompt:
        raise UserError("--prompt needs a --workdir: the mock has no model to continue it")
    if not 0 <= arguments.port < 65536:
        raise UserError(f"--port is {arguments.port}: it must lie between 0 and 65535")
    if not 1 <= arguments.listeners <= 64:
        raise UserError(f"--listeners is {arguments.listeners}: it must lie between 1 and 64")
    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed is {arguments.seed}: it must lie between 0 and 2^32 - 1")
    if arguments.top_k < 0:
        raise UserError(f"--top-k is {arguments.top_k}: it must not be negative")


def make_sampling(arguments: PlayArguments, usual: EvaluationConfig) -> Sampling:
    """How every stream samples at first: as the arguments say, else as the run is evaluated.

    Raises `UserError` for what the page cannot be set to.
    """
    temperature = usual.temperature if arguments.temperature is None else arguments.temperature
    strength = usual.strength if arguments.strength is None else arguments.strength
    for name, value, most in (("temperature", temperature, 2), ("strength", strength, 3)):
        if not 0 <= value <= most:
            raise UserError(f"--{name} is {value}: it must lie between 0 and {most}")
    return Sampling(arguments.seed, temperature, arguments.top_k, strength)


def make_stage(arguments: PlayArguments) -> Stage:
    """What is played, loaded and compiled. Raises `UserError` if there is nothing to play."""
    if arguments.mock:
        sampling = make_sampling(arguments, EvaluationConfig())
        return Stage(MockStreamer(arguments.listeners), mock_prompt(), sampling, MOCK_KEY_NAMES, holds=False)
    dispatch_in_place()
    run = load_run(arguments.workdir)
    sampling = make_sampling(arguments, run.config.evaluation)
    tune_process(run.config.runtime.compile_cache)
    prompt = make_prompt(run, arguments.prompt)
    print(f"{run.config.name}, step {run.step}: compiling", file=sys.stderr)
    names = label_keys(run.workdir.path, run.action_space.num_keys)
    return Stage(StreamingGenerator(run, arguments.listeners), prompt, sampling, names, holds_keys(run.config))


def announce(arguments: PlayArguments, token: str, port: int) -> None:
    """Print the address, and open it."""
    address = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
    url = f"http://{address}:{port}/{f'?token={token}' if token else ''}"
    print(f"play at {url} (Ctrl-C ends it)", flush=True)
    if arguments.browser:
        webbrowser.open(url)


@reports_user_errors
def main() -> None:
    arguments = parse_arguments(PlayArguments, command_line(), prog="python -m melodjinn_jax.play", has_flags=True)
    check_arguments(arguments)
    try:
        from melodjinn_jax.live.server import LOCAL_HOSTS, Server, serve
    except ImportError as error:
        raise UserError(f"playing needs the extra `play` ({error}): pip install -e '.[play]'") from error
    is_local = arguments.host in LOCAL_HOSTS
    token = arguments.token or ("" if is_local else secrets.token_urlsafe(16))
    stage = make_stage(arguments)

    async def run() -> None:
        await serve(Server(stage, token), arguments.host, arguments.port, partial(announce, arguments, token))

    asyncio.run(run())


if __name__ == "__main__":
    sys.exit(main())
