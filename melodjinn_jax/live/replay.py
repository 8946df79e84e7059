"""Sessions heard again: read from their files, and sampled anew."""

from pathlib import Path
from typing import Any

import numpy as np

from melodjinn_jax.errors import UserError
from melodjinn_jax.live.session import Session
from melodjinn_jax.live.stream import NextFrame, Streamer

_MAX_SLOTS = 64


def read_session(path: str) -> tuple[Session, dict[str, Any]]:
    """The session of a file, and what it was made with. Raises `UserError` if it is missing, damaged or none."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"--session {path} cannot be read: {error.strerror}") from error
    try:
        return Session.from_bytes(content)
    except UserError as error:
        raise UserError(f"--session {path}: {error}") from error


def batch_of(made_with: dict[str, Any]) -> tuple[int, int]:
    """Slots of the batch that a session was played in, and its slot; one and the first if it does not say so."""
    slots, slot = made_with.get("batch"), made_with.get("slot")
    if type(slots) is int and type(slot) is int and 0 <= slot < slots <= _MAX_SLOTS:
        return slots, slot
    return 1, 0


def sample_anew(streamer: Streamer, session: Session, slot: int) -> np.ndarray:
    """Codes int32 [F, Q] of the session's actions under its own settings, from its prompt on."""
    first = session.first_frame
    streamer.start(slot, first, session.opening(first, streamer.start_frames))
    frames: list[NextFrame | None] = [None] * streamer.slots
    played = np.zeros(session.codes.shape, np.int32)
    for index, action in enumerate(session.actions):
        given = session.codes[index] if index < session.prompt_frames else None
        frames[slot] = NextFrame(
            first + index, int(action), session.sampling(first + index), given, index >= streamer.start_frames
        )
        played[index] = streamer.step(frames)[0][slot]
    return played
