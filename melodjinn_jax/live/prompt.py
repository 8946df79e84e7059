"""What generation starts from: the codes of a recording or of silence, and the actions in it."""

import numpy as np

from melodjinn_jax.data.audio import load_audio
from melodjinn_jax.errors import UserError
from melodjinn_jax.evaluation.actions import extract_actions
from melodjinn_jax.live.performance import Prompt
from melodjinn_jax.live.protocol import NO_ACTION
from melodjinn_jax.training.run import Run


def make_prompt(run: Run, path: str) -> Prompt:
    """The recording at `path`, cut to whole blocks; an empty path: silence, as short as the codec allows.

    Raises:
      UserError: the recording cannot be read, or is shorter than that.
    """
    codec, stride = run.codec, run.action_space.stride
    block = codec.hop_length * stride
    shortest = -(-codec.start_frames // stride)
    waveform = load_audio(path, codec.sample_rate) if path else np.zeros(shortest * block, np.float32)
    blocks = len(waveform) // block
    if blocks < shortest:
        raise UserError(f"--prompt {path}: shorter than {shortest * block} samples, the least that it must have")
    codes = np.asarray(codec.encode(waveform[None, : blocks * block]))[0]
    # Nothing was pressed in silence; what happens within a recording is not known unless a LAM hears it.
    heard = np.full(blocks - 1, NO_ACTION if path else 0)
    if path and run.has_lam:
        heard = extract_actions(run, waveform)[: len(heard)]
    return Prompt(codes, np.repeat(np.concatenate([[NO_ACTION], heard]), stride))
