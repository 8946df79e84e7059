"""Actions as text: `"0x60 2 0x30 3"`, and actions out of a recording."""

import re

import jax
import numpy as np

from melodjinn_jax.errors import UserError
from melodjinn_jax.training.run import Run
from melodjinn_jax.training.step import encode_keys

MAX_ACTIONS = 1_000_000


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


def extract_actions(run: Run, waveform: np.ndarray) -> np.ndarray:
    """The LAM's keys int [N - 1] of a recording, its length cut to whole blocks.

    Args:
      run: with a frozen LAM.
      waveform: float32 [samples] at the codec's sample rate.
    """
    block = run.codec.hop_length * run.action_space.stride
    blocks = len(waveform) // block
    samples = np.clip(np.round(waveform[: blocks * block] * 32768), -32768, 32767).astype(np.int16)
    networks = {name: run.state[name] for name in ("lam", "codebook", "key_of_code", "feature_scale")}
    encode = jax.jit(encode_keys, static_argnums=0)
    return np.asarray(encode(run.models, networks, samples.reshape(1, -1, run.codec.hop_length)))[0]
