"""One listener's stream: what is played becomes frames to make, frames made become audio to send.

Nothing here waits or sends: a server asks `next_frame`, has it made, and hands it back to `made`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from melodjinn_jax.live import protocol
from melodjinn_jax.live.playing import Keyboard, Tempo
from melodjinn_jax.live.protocol import NO_ACTION, Audio, Limits, ProtocolError
from melodjinn_jax.live.session import Instrument, Sampling, Session, require_instrument, with_seed
from melodjinn_jax.live.stream import NextFrame, Streamer

DEFAULT_AHEAD = 12


@dataclass(frozen=True)
class Prompt:
    """What a stream starts from: codes [F, Q] of whole blocks, and the actions [F] that govern them."""

    codes: np.ndarray
    actions: np.ndarray


@dataclass(frozen=True)
class Start:
    """A stream to be begun in its slot before its next frame is made."""

    first_frame: int
    codes: np.ndarray


@dataclass(frozen=True)
class Ticket:
    """A frame under way: what to make, and the take that it is for."""

    take: int
    frame: NextFrame


class Performance:
    """A stream as its player steers it."""

    def __init__(self, streamer: Streamer, prompt: Prompt, sampling: Sampling, limits: Limits, holds: bool):
        self.instrument: Instrument = streamer.instrument
        self.sampling, self.limits = sampling, limits
        self.keyboard = Keyboard(holds)
        self.tempo = Tempo(self.instrument.frame_rate, limits.bpm)
        self.ahead, self.playing, self.take = DEFAULT_AHEAD, False, -1
        self._streamer, self._prompt = streamer, prompt
        self.pending: Start | None = None
        self._action = 0
        self._new_take(self._from_prompt())

    def _from_prompt(self) -> Session:
        return Session(self.instrument, self.sampling, self._prompt.codes, self._prompt.actions)

    def _new_take(self, session: Session) -> None:
        """Go on from the end of a session."""
        self.session, self.take = session, self.take + 1
        self.played = session.end
        self._audible = session.end
        session.change(self.sampling)
        first = max(session.first_frame, session.end - self._streamer.priming_frames)
        first -= first % self.instrument.action_stride
        self._first = self._cursor = first
        self._decided = session.end
        self.pending = Start(first, session.opening(first, self._streamer.start_frames))
        self._action = int(session.actions[-1])
        self.keyboard.forget_presses()

    @property
    def end(self) -> int:
        """Number of the next frame that is sampled."""
        return self.session.end

    def next_frame(self) -> Ticket | None:
        """The frame to make now, if there is one to make."""
        session, cursor = self.session, self._cursor
        if cursor < session.end:
            index = cursor - session.first_frame
            sounds = cursor - self._first >= self._streamer.start_frames
            given = NextFrame(cursor, int(session.actions[index]), self.sampling, session.codes[index], sounds)
            return Ticket(self.take, given)
        if not self.playing or cursor >= self.played + self.ahead:
            return None
        if cursor % self.instrument.action_stride == 0:
            self._action = self.keyboard.next_action(cursor)
        self._decided = cursor + 1
        return Ticket(self.take, NextFrame(cursor, self._action, session.sampling(cursor)))

    def made(self, ticket: Ticket, codes: np.ndarray, pcm: np.ndarray) -> Audio | None:
        """A frame that was made, codes [Q] and sound int16 [H]; returns what there is to hear of it."""
        if ticket.take != self.take:
            return None
        self._cursor += 1
        if ticket.frame.frame < self.session.end:
            return None
        self.session.append(codes, ticket.frame.action)
        if len(self.session.codes) >= self.limits.session_frames:
            self._forget_the_older_half()
        return Audio(self.take, ticket.frame.frame, np.array([ticket.frame.action], np.uint16), pcm[None])

    def _forget_the_older_half(self) -> None:
        keep = self.limits.session_frames // 2
        before = self.session.end - keep
        before -= before % self.instrument.action_stride
        self.session.forget(before, min(self._streamer.priming_frames, self.session.end - before))

    def press(self, message: protocol.Press) -> int | None:
        """A key goes down; returns the frame at which it will sound, if that was asked for."""
        if message.at is None and not message.on_beat:
            self.keyboard.press(message.key, message.hold)
            return None
        if message.on_beat and not self.tempo.period:
            raise ProtocolError("tempo", "there is no tempo yet: tap it, or give one")
        stride = self.instrument.action_stride
        now = self._decided + -self._decided % stride
        frame = max(now, self.tempo.next_beat(now) if message.on_beat else message.at or 0)
        frame += -frame % stride
        if not self.keyboard.schedule(message.key, frame, message.hold):
            raise ProtocolError("message", "too many presses are scheduled: release_all drops them")
        return frame

    def set_tempo(self, message: protocol.Tempo | protocol.Tap | protocol.Follow) -> bool:
        """Returns whether there is a tempo now. Raises `ProtocolError` if none can be found."""
        if isinstance(message, protocol.Tempo):
            self.tempo.set(message.bpm, self.played if message.beat is None else message.beat)
        elif isinstance(message, protocol.Tap):
            return self.tempo.tap(message.frame)
        elif not self.tempo.follow(self._onsets()):
            raise ProtocolError("tempo", "what was played has no steady tempo: tap it, or give one")
        return True

    def _onsets(self) -> list[int]:
        """Frames of the last minute's new keys."""
        recent = int(60 * self.instrument.frame_rate)
        actions = self.session.actions[-recent:].astype(int)
        new = (np.diff(actions, prepend=0) != 0) & (actions > 0) & (actions != NO_ACTION)
        return [self.session.end - len(actions) + int(i) for i in np.flatnonzero(new)]

    def change_settings(self, message: protocol.Settings) -> None:
        """Sample otherwise from the next frame on."""
        given = {name: value for name, value in vars(message).items() if value is not None}
        self.sampling = replace(self.sampling, **given)
        self.session.change(self.sampling)

    def heard(self, message: protocol.Played) -> None:
        """Frames of the present take have been heard."""
        if message.take == self.take:
            self.played = min(max(self.played, message.frame), self.session.end)

    def rewind(self, frame: int, seed: int | None) -> None:
        """Go on from a past frame. Raises `ProtocolError` if it is not there."""
        if not self.session.begin <= frame <= self.session.end:
            raise ProtocolError(
                "rewind", f"frames {self.session.begin} to {self.session.end} can be rewound to, not {frame}"
            )
        self.session.rewind(frame)
        self.sampling = with_seed(self.sampling, seed)
        self._new_take(self.session)

    def restart(self, seed: int | None) -> None:
        """Begin again from the prompt."""
        self.sampling = with_seed(self.sampling, seed)
        self.tempo.forget()
        self._new_take(self._from_prompt())

    def load(self, session: Session) -> None:
        """Go on from the end of a session. Raises `UserError` if it is of another instrument."""
        require_instrument(session, self.instrument, to_continue=True)
        self.sampling = session.settings[-1][1]
        self.tempo.forget()
        self._new_take(session)

    def describe_take(self) -> dict[str, Any]:
        """Fields of the message `take`, and of the welcome."""
        return {"take": self.take, "frame": self._audible, "seed": self.sampling.seed, "begin": self.session.begin}

    def describe_settings(self) -> dict[str, Any]:
        """Fields of the message `settings`, and of the welcome."""
        sampling = self.sampling
        return {
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "strength": sampling.strength,
            "ahead": self.ahead,
            "playing": self.playing,
        }

    def sound(self, from_frame: int) -> Callable[[], np.ndarray]:
        """What renders the sound float32 [F * H] from a frame on, in any thread; at most `limits.wav_frames` of it."""
        session = self.session
        index = max(from_frame - session.first_frame, len(session.codes) - self.limits.wav_frames, 0)
        # A decoder reaches back: begin a little earlier, and leave that out.
        lead = min(index, self._streamer.priming_frames)
        codes, samples = session.codes[index - lead :].copy(), lead * self.instrument.hop_length
        return lambda: self._streamer.render(codes)[samples:]
