"""Actions as text: `"0x60 2 0x30 3"`, and actions out of a recording."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from melodjinn_jax.data.audio import to_int16
from melodjinn_jax.errors import UserError
from melodjinn_jax.models.action_space import collapse_repeats
from melodjinn_jax.models.latent_action import receptive_field
from melodjinn_jax.training.run import CODEBOOK_PARTS, LAM_PARTS, Run
from melodjinn_jax.training.state import Phase
from melodjinn_jax.training.step import encode_codes

MAX_ACTIONS = 1_000_000
PIECE_BLOCKS = 512


def parse_actions(text: str, num_keys: int) -> np.ndarray:
    """Keys int [n] of a text such as `0x60 2 0x30`: AxN holds action A for N actions; 0 is NOOP.

    Raises:
      UserError: nothing in it, a word that is no action, a key that the model does not have, or too long.
    """
    keys: list[int] = []
    for word in text.replace(",", " ").split():
        match = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", word)
        if match is None:
            raise UserError(f"--actions: {word!r} is no action: write a key such as 2, or 2x30 to hold it")
        key, count = int(match[1]), int(match[2] or 1)
        if key > num_keys:
            raise UserError(f"--actions: there is no key {key}: this model has the keys 0 (NOOP) to {num_keys}")
        if len(keys) + count > MAX_ACTIONS:
            raise UserError(f"--actions: more than {MAX_ACTIONS} actions at {word!r}: generate it in parts")
        keys += [key] * count
    if not keys:
        raise UserError("--actions is empty: write keys such as '0x60 2 0x30'")
    return np.array(keys, np.int64)


def format_actions(keys: np.ndarray) -> str:
    """The shortest text that `parse_actions` turns into these keys."""
    words = []
    boundaries = np.flatnonzero(np.diff(keys)) + 1
    for run in np.split(np.asarray(keys), boundaries):
        if len(run):
            words.append(f"{run[0]}" if len(run) == 1 else f"{run[0]}x{len(run)}")
    return " ".join(words)


def require_frozen(run: Run) -> None:
    """Raise `UserError` unless the actions of a run are final."""
    if run.record.phase is not Phase.FROZEN:
        raise UserError(
            f"--workdir {run.workdir.path} is in phase {run.record.phase}, and its actions may still change: "
            "train it until they are frozen"
        )


def require_frozen_lam(run: Run) -> None:
    """Raise `UserError` unless a run has a LAM whose actions are final."""
    require_frozen(run)
    if not run.has_lam:
        raise UserError(f"--workdir {run.workdir.path} was trained on labels and has no LAM: give the run that has it")


def extract_actions(run: Run, waveform: np.ndarray) -> np.ndarray:
    """The LAM's keys int [N - 1] of a recording, its length cut to whole blocks.

    Args:
      run: with a frozen LAM.
      waveform: float32 [samples] at the codec's sample rate.
    """
    hop = run.codec.hop_length
    waveform = waveform[: len(waveform) // hop * hop]
    if run.config.latent_actions.hears == "codec":
        waveform = run.codec.decode(run.codec.encode(waveform[None]))[0]
    return encode_track(run, to_int16(waveform).reshape(-1, hop))


def encode_track(run: Run, patches: np.ndarray) -> np.ndarray:
    """The LAM's keys int [N - 1] of a whole track, int16 [F, H], its length cut to whole blocks."""
    stride = run.action_space.stride
    blocks = len(patches) // stride
    patches = patches[None, : blocks * stride]
    networks = {name: run.state[name] for name in (*LAM_PARTS, *CODEBOOK_PARTS)}
    encode = jax.jit(encode_codes, static_argnums=0)
    # In pieces, because attention over a whole track would need memory by the square of its length. Each piece begins
    # early enough that its codes are those of the whole track.
    settled = receptive_field(run.config.latent_actions) + 2
    codes = np.zeros((1, max(0, blocks - 1)), np.int64)
    for start in range(0, max(0, blocks - 1), PIECE_BLOCKS):
        first = max(0, start - settled)
        piece = patches[:, first * stride : (start + PIECE_BLOCKS + 1) * stride]
        length = (settled + PIECE_BLOCKS + 1) * stride
        padded = np.pad(piece, ((0, 0), (0, length - piece.shape[1]), (0, 0)))
        found = np.asarray(encode(run.models, networks, padded))[:, start - first :]
        codes[:, start : start + PIECE_BLOCKS] = found[:, : codes[:, start : start + PIECE_BLOCKS].shape[1]]
    keys = np.asarray(run.state["key_of_code"])[codes]
    return np.asarray(collapse_repeats(jnp.asarray(keys), run.config.latent_actions.collapse_frames))[0]
