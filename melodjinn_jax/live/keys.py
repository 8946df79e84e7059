"""What the keys of a run are called, and whether they are held.

WORKDIR/key_names.json      ["kick", "hat", "snare"]: a list that begins with the name of key 1
"""

import json
from pathlib import Path

from melodjinn_jax.config import Config
from melodjinn_jax.errors import UserError

FILE = "key_names.json"
_MAX_LETTERS = 40


def read_key_names(folder: Path) -> list[str]:
    """The names in a work directory's file, key 1's first; none if there is no such file.

    Raises:
      UserError: the file cannot be read or is no list of names.
    """
    file = folder / FILE
    try:
        names = json.loads(file.read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file} is no JSON: mend it, or remove it to have names proposed again") from error
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise UserError(f"{file} must be a list of names, the first that of key 1: mend it, or remove it")
    return names


def label_keys(folder: Path, num_keys: int) -> tuple[str, ...]:
    """What a player sees on NOOP and every key: the names of the work directory's file, and numbers for the others.

    Raises:
      UserError: as `read_key_names`.
    """
    numbers = [f"key {key}" for key in range(1, num_keys + 1)]
    names = [name[:_MAX_LETTERS] for name in read_key_names(folder)[:num_keys]]
    return ("nothing", *names, *numbers[len(names) :])


def holds_keys(config: Config) -> bool:
    """Whether a key that is held goes on acting.

    Where a repeated key was credited to the first, the model knows keys as events, and not as states that last.
    """
    return config.latent_actions.collapse_frames == 0
