"""A stand-in for a trained run, for work on the page alone: every key plays a bell of its own, at once."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from melodjinn_jax.data.audio import HOP_LENGTH, SAMPLE_RATE, to_int16
from melodjinn_jax.live.performance import Prompt
from melodjinn_jax.live.protocol import NO_ACTION
from melodjinn_jax.live.session import Instrument
from melodjinn_jax.live.stream import NextFrame, Streamer

_PITCHES = np.array([0.0, 261.63, 329.63, 392.0])
"""Hertz of each key; NOOP is silent."""
MOCK_KEY_NAMES = ("nothing", "low bell", "middle bell", "high bell")
_DECAY_SECONDS = 0.08
_RINGING_FRAMES = 60


class MockStreamer(Streamer):
    """Bells. A frame's codes are the key that rings and the frames since it was struck."""

    instrument = Instrument(
        name="mock",
        model="mock",
        codec="mock",
        action_space="mock",
        sample_rate=SAMPLE_RATE,
        hop_length=HOP_LENGTH,
        num_codebooks=2,
        codebook_size=64,
        action_stride=1,
        num_keys=len(_PITCHES) - 1,
    )
    priming_frames = 1
    start_frames = 1

    def __init__(self, slots: int):
        self.slots = slots
        self._codes = np.zeros((slots, 2), np.int32)

    def start(self, slot: int, first_frame: int, codes: np.ndarray) -> None:
        self._codes[slot] = 0

    def step(self, frames: Sequence[NextFrame | None]) -> tuple[np.ndarray, np.ndarray]:
        pcm = np.zeros((self.slots, HOP_LENGTH), np.int16)
        for slot, frame in enumerate(frames):
            if frame is None:
                continue
            if frame.given is not None:
                self._codes[slot] = frame.given
            elif 0 < frame.action < len(_PITCHES):
                self._codes[slot] = frame.action, 0
            else:
                key, age = self._codes[slot]
                self._codes[slot] = (key, age + 1) if key and age < _RINGING_FRAMES else (0, 0)
            pcm[slot] = to_int16(self.render(self._codes[slot][None]))
        return self._codes.copy(), pcm

    def render(self, codes: np.ndarray) -> np.ndarray:
        key, age = np.minimum(codes[:, 0], len(_PITCHES) - 1), codes[:, 1].astype(int)
        seconds = (age[:, None] * HOP_LENGTH + np.arange(HOP_LENGTH)) / SAMPLE_RATE
        sound = 0.5 * np.exp(-seconds / _DECAY_SECONDS) * np.sin(2 * np.pi * _PITCHES[key][:, None] * seconds)
        return sound.reshape(-1).astype(np.float32)

    def made_with(self, slot: int) -> dict[str, Any]:
        return {"engine": "mock"}


def mock_prompt() -> Prompt:
    """A frame of silence."""
    return Prompt(np.zeros((1, 2), np.int32), np.array([NO_ACTION]))
