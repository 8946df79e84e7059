"""Experiment files, and the command line over them."""

import contextlib
import importlib.util
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from melodjinn_jax.config import Config
from melodjinn_jax.errors import UserError
from melodjinn_jax.validation import check_config

Result = TypeVar("Result")


def load_experiment(path: str) -> Config:
    """The `Config` of an experiment file, or of the `config.json` in a run's work directory.

    Raises:
      UserError: no such file, it cannot be run, or its `get_config()` is missing or returns something else.
    """
    file = Path(path)
    if file.name == "config.json" and file.is_file():
        # It brings JAX along, which commands that only read and fetch should not wait for.
        from melodjinn_jax.training.workdir import load_config

        return load_config(file.parent)
    return call_in_file("--config", path, "get_config", Config)


def call_in_file(flag: str, path: str, function: str, kind: type[Result], *arguments: object) -> Result:
    """What a function of a Python file returns, which must be a `kind`; `flag` names the file in messages.

    Raises:
      UserError: no such file, it cannot be run, or the function is missing or returns something else.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{flag} {path}: no such file")
    spec = importlib.util.spec_from_file_location("melodjinn_experiment", file)
    if spec is None or spec.loader is None:
        raise UserError(f"{flag} {path}: not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        is_there = callable(getattr(module, function, None))
        result = getattr(module, function)(*arguments) if is_there else None
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(
            f"{flag} {path}: cannot be run ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    if not is_there:
        raise UserError(f"{flag} {path}: it defines no {function}()")
    if not isinstance(result, kind):
        raise UserError(f"{flag} {path}: {function}() must return a {kind.__module__}.{kind.__name__}")
    return result


@dataclass(frozen=True)
class TrainArguments:
    """Train, evaluate and report an experiment; the same command again resumes."""

    config: str
    """Experiment file, for example experiments/toy_drums.py, or the config.json of a run."""
    workdir: str
    """Folder that holds everything of the run."""
    settings: Annotated[Config, tyro.conf.arg(name="")]
    init_from: str = ""
    """Start from another run's parameters: WORKDIR, WORKDIR:lam or WORKDIR:dynamics."""


def parse_train_arguments(argv: list[str]) -> TrainArguments:
    """Arguments of the train command: the experiment's settings under the overrides given.

    Raises:
      UserError: the experiment cannot be loaded, a flag or its value is not understood, or a value cannot work.
      SystemExit: help was asked for.
    """
    path = value_of(argv, "--config")
    default = load_experiment(path) if path else Config()
    arguments = parse_arguments(
        TrainArguments,
        argv,
        prog="python -m melodjinn_jax.train",
        default=TrainArguments(config=path or tyro.MISSING, workdir=tyro.MISSING, settings=default),
    )
    check_config(arguments.settings)
    return arguments


Arguments = TypeVar("Arguments")


def parse_arguments(
    kind: type[Arguments], argv: list[str], *, prog: str, default: Any = None, has_flags: bool = False
) -> Arguments:
    """`argv` as a dataclass of arguments; what is not understood becomes a `UserError` of one sentence.

    A bool is given as `--name true`, or with `has_flags` as `--name` alone (`--no-name` where the default is true).
    """
    booleans = tyro.conf.FlagCreatePairsOff if has_flags else tyro.conf.FlagConversionOff
    # Python's spelling of truth is not everybody's.
    argv = [re.sub(r"^(|--[^=]*=)(true|false)$", lambda m: m[1] + m[2].capitalize(), a) for a in argv]
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            arguments: Arguments = tyro.cli(kind, args=argv, prog=prog, default=default, config=(booleans,))
    except SystemExit as error:
        if error.code:
            raise UserError(_first_sentence(complaint.getvalue())) from error
        raise
    return arguments


def _first_sentence(complaint: str) -> str:
    """What tyro's panel says above its first rule, and the flag that it suggests.

    A terminal that cannot draw the panel gets its title on a line of its own with a rule below.
    """
    lines = [line.strip(" │") for line in complaint.splitlines() if not line.startswith(("╭", "╰"))]
    lines = [line for line in lines if line]
    rules = [index for index, line in enumerate(lines) if set(line) <= {"─", "-"}]
    if rules[:1] == [1] and "╭" not in complaint:
        lines, rules = lines[2:], [index - 2 for index in rules[1:]]
    said = " ".join(lines[: rules[0]] if rules else lines)
    suggested = [line.split()[0] for line in lines if re.match("--[a-z]", line)]
    return f"{said} (perhaps you meant {suggested[0]})" if "Unrecognized" in said and suggested else said


def value_of(argv: list[str], flag: str) -> str | None:
    """The value of a flag given as `--flag VALUE` or `--flag=VALUE`; the experiment must be known before the parser."""
    for index, argument in enumerate(argv):
        if argument == flag and index + 1 < len(argv):
            return argv[index + 1]
        if argument.startswith(f"{flag}="):
            return argument.split("=", 1)[1]
    return None


def command_line() -> list[str]:
    return sys.argv[1:]
