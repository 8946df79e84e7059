"""What the keys of a run are called, and whether they are held."""

import json
from pathlib import Path

from melodjinn_jax.config import Config
from melodjinn_jax.errors import UserError

KEY_NAMES = "key_names.json"


def read_key_names(workdir: Path, num_keys: int) -> tuple[str, ...]:
    """Names of NOOP and every key: those of WORKDIR/key_names.json (`{"1": "kick"}`), where there is one.

    Raises:
      UserError: the file is no such object.
    """
    names = {0: "nothing", **{key: f"key {key}" for key in range(1, num_keys + 1)}}
    path = workdir / KEY_NAMES
    if path.exists():
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
            names |= {int(key): str(name)[:40] for key, name in given.items()}
        except (OSError, ValueError, AttributeError) as error:
            raise UserError(f'{path} cannot be read: it must be an object such as {{"1": "kick"}}') from error
    return tuple(names[key] for key in range(num_keys + 1))


def holds_keys(config: Config) -> bool:
    """Whether a key that is held goes on acting.

    Where a repeated key was credited to the first, the model knows keys as events, and not as states that last.
    """
    return config.latent_actions.collapse_frames == 0
