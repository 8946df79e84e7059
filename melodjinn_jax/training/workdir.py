"""The work directory: everything that a run leaves behind, and the rule that two runs never mix in one."""

import dataclasses
import fcntl
import json
import os
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

from melodjinn_jax.config import Config, identity
from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.errors import UserError
from melodjinn_jax.training.hosts import is_primary


class WorkDir:
    """The files of one run, by name. `WorkDir(path)` only names them; a trainer uses `create_or_open`.

    `changes` lists the operational settings that differ from the run's last start, one line each.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path).expanduser()
        self.changes: tuple[str, ...] = ()
        self._lock: IO[str] | None = None

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def codec(self) -> Path:
        return self.path / "codec"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.path / "eval.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def profile(self) -> Path:
        return self.path / "profile"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @classmethod
    def create_or_open(cls, path: str | os.PathLike, config: Config) -> Self:
        """Open the work directory for the one process that may write to it, creating it for a new run.

        Of a run's several processes the first is that one; to the others it is only named.

        Raises:
            UserError: it cannot be written, another process is training in it, or it belongs to a run with other
                settings of identity.
        """
        workdir = cls(path)
        if not is_primary():
            return workdir
        try:
            workdir.path.mkdir(parents=True, exist_ok=True)
            workdir._acquire_lock()
            workdir.changes = workdir._reconcile(config)
        except OSError as error:
            workdir.close()
            raise UserError(f"--workdir {workdir.path} cannot be written: {error.strerror}") from error
        except UserError:
            workdir.close()
            raise
        return workdir

    def _acquire_lock(self) -> None:
        # The kernel drops the lock with its process, however that ends, so a stale file never blocks a restart.
        self._lock = (self.path / ".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"another process is training in --workdir {self.path}: wait for it, or use another --workdir"
            raise UserError(message) from error

    def _reconcile(self, config: Config) -> tuple[str, ...]:
        """Compare with the run that is there; returns the operational changes."""
        if not self.config.exists():
            if self.checkpoints.is_dir() and any(self.checkpoints.iterdir()):
                raise UserError(
                    f"{self.path} holds checkpoints but no config.json: restore it or use another --workdir"
                )
            _write_config(self.config, config)
            return ()
        saved = load_config(self.path)
        if not self.checkpoints.exists() and not (self.path / "dataset").exists():
            # Nothing has come of the run yet: it may have been refused for the very setting that is now mended.
            _write_config(self.config, config)
            return ()
        if differing := list(differences(identity(saved), identity(config))):
            raise UserError(
                f"--workdir {self.path} belongs to a run with other settings ({'; '.join(differing)}): "
                "use another --workdir, or go back to the settings of that run"
            )
        changes = tuple(differences(dataclasses.asdict(saved), dataclasses.asdict(config)))
        if changes:
            _write_config(self.config, config)
        return changes

    def close(self) -> None:
        """Let another process train here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _write_config(path: Path, config: Config) -> None:
    write_atomically(path, (json.dumps(dataclasses.asdict(config), indent=2) + "\n").encode())


def differences(old: dict, new: dict, prefix: str = "") -> Iterator[str]:
    """Settings, as nested dicts, that are not the same in `new`: a phrase with both values for each."""
    for name in new:
        if isinstance(new[name], dict):
            yield from differences(old[name], new[name], f"{prefix}{name}.")
        elif old[name] != new[name]:
            yield f"{prefix}{name} was {old[name]!r} and is now {new[name]!r}"


def load_config(path: str | os.PathLike) -> Config:
    """The config of the run in work directory `path`.

    Raises:
        UserError: `path` is no work directory, or its config.json is damaged or of another version.
    """
    file = WorkDir(path).config
    try:
        return _build(Config, json.loads(file.read_bytes()), "")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{file.parent} is no work directory of a run: it has no config.json") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:  # also what json and the decoding of bytes raise
        raise UserError(f"{file} is damaged or of another version: {error}") from error


def _build(kind: Any, value: Any, name: str) -> Any:
    """A value of type `kind` (a dataclass, tuple, Literal or scalar) from parsed JSON.

    Raises:
        ValueError: the value does not fit; the text names the field.
    """
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(typing.cast(type, kind), value, name)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(value, list):
        return tuple(_build(arguments[0], item, f"{name}[{i}]") for i, item in enumerate(value))
    if origin is typing.Literal:
        fits = value in arguments
    elif origin is types.UnionType:
        fits = type(value) in arguments
    else:
        # By `type`, for True is an int to isinstance; and a float field may hold 1.
        fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        raise ValueError(f"{name} cannot be {value!r}")
    return value


def _build_dataclass(kind: type, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{name or 'the file'} holds no settings")
    hints = typing.get_type_hints(kind)
    prefix = f"{name}." if name else ""
    if unknown := sorted(value.keys() - hints.keys()):
        raise ValueError(f"unknown field {prefix}{unknown[0]}")
    if missing := sorted(hints.keys() - value.keys()):
        raise ValueError(f"missing field {prefix}{missing[0]}")
    return kind(**{field: _build(hint, value[field], prefix + field) for field, hint in hints.items()})
