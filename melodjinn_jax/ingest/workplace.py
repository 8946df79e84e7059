"""Where an unfinished DATASET lies: beside its place, for one process at a time, until it is whole."""

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.errors import UserError


def partial_folder(output: Path) -> Path:
    """Where an unfinished DATASET lies."""
    output = output.absolute()
    return output.parent / f".{output.name}.partial"


@contextlib.contextmanager
def claimed(folder: Path, fingerprint: Mapping[str, Any]) -> Iterator[None]:
    """The folder for this process alone, if what lies in it was made for the same DATASET. Raises `UserError`."""
    folder.mkdir(parents=True, exist_ok=True)
    settings, wanted = folder / "settings.json", json.dumps(fingerprint, indent=2, sort_keys=True)
    with open(folder / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is at work in {folder}: wait for it") from error
        if not settings.exists():
            write_atomically(settings, wanted.encode())
        elif settings.read_text(encoding="utf-8") != wanted:
            raise UserError(
                f"{folder} is of an interrupted run with other settings: remove it, or ask for the same settings"
            )
        yield


@contextlib.contextmanager
def os_errors_as_user_errors(output: Path) -> Iterator[None]:
    """A full disk or a place that cannot be written is the user's to mend, and nothing is lost by it."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{output} cannot be written ({error.strerror or error}): make room or choose another --output; "
            "the same command goes on where this one stopped"
        ) from error
