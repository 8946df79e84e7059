"""Playing: keys that go down and up become one action per block; the tempo that presses can wait for."""

import heapq
from collections import deque
from collections.abc import Sequence

import numpy as np

MAX_WAITING = 8
"""Presses that wait for the blocks after the next."""
MAX_SCHEDULED = 64
_MAX_TAPS = 8
_TAP_GAP_SECONDS = 2.5
"""A longer silence between two taps begins a new count."""
_BPM_FOLLOWED = (60.0, 180.0)
_MIN_REGULARITY = 0.6


class Keyboard:
    """The keys that are down, and those that will be. The action is NOOP, 0, unless a key says otherwise."""

    def __init__(self, holds: bool):
        """`holds`: whether a key that stays down keeps acting, unless a press says otherwise."""
        self.holds = holds
        self._held: list[int] = []
        self._waiting: deque[int] = deque()
        self._scheduled: list[tuple[int, int, bool]] = []

    def press(self, key: int, hold: bool | None = None) -> None:
        """A key goes down: it acts in the next block, and if it is held, in all until its release."""
        hold = self.holds if hold is None else hold
        if len(self._waiting) < MAX_WAITING:
            self._waiting.append(key)
        if hold:
            self._held = [*(held for held in self._held if held != key), key]

    def schedule(self, key: int, frame: int, hold: bool | None = None) -> bool:
        """A key will go down in the first block that begins at this frame or later; False if too much is scheduled."""
        if len(self._scheduled) >= MAX_SCHEDULED:
            return False
        heapq.heappush(self._scheduled, (frame, key, self.holds if hold is None else hold))
        return True

    def release(self, key: int) -> None:
        """A key goes up."""
        self._held = [held for held in self._held if held != key]

    def release_all(self) -> None:
        """Every key goes up, and nothing waits or is scheduled."""
        self._held = []
        self.forget_presses()

    def forget_presses(self) -> None:
        """Nothing waits or is scheduled; keys that are down stay down."""
        self._waiting.clear()
        self._scheduled = []

    def next_action(self, frame: int) -> int:
        """The action of the block that begins at this frame; asked once for every block."""
        while self._scheduled and self._scheduled[0][0] <= frame:
            _, key, hold = heapq.heappop(self._scheduled)
            self.press(key, hold)
        if self._waiting:
            return self._waiting.popleft()
        return self._held[-1] if self._held else 0


class Tempo:
    """Beats, in frames: given, tapped, or estimated from what was played."""

    def __init__(self, frame_rate: float, bpm_range: tuple[float, float]):
        self._frames_per_minute = 60 * frame_rate
        self._bpm_range = bpm_range
        self._taps: deque[int] = deque(maxlen=_MAX_TAPS)
        self.period = 0.0
        """Frames between two beats; 0: there is no tempo."""
        self.beat = 0.0
        """The frame of a beat."""

    @property
    def bpm(self) -> float:
        return self._frames_per_minute / self.period

    def set(self, bpm: float, beat: float) -> None:
        """Beats per minute, and the frame of one of them."""
        self.period, self.beat = self._frames_per_minute / bpm, beat

    def forget(self) -> None:
        """No tempo any more, for the frames that it counted in are gone."""
        self.period = 0.0
        self._taps.clear()

    def tap(self, frame: int) -> bool:
        """A beat was tapped at this frame; returns whether there is a tempo now."""
        if self._taps and not 0 < frame - self._taps[-1] <= _TAP_GAP_SECONDS * self._frames_per_minute / 60:
            self._taps.clear()
        self._taps.append(frame)
        if len(self._taps) < 2:
            return self.period > 0
        # The line through the taps: one that was late moves it little.
        period, beat = np.polyfit(np.arange(len(self._taps)) - (len(self._taps) - 1), self._taps, 1)
        low, high = self._bpm_range
        self.set(float(np.clip(self._frames_per_minute / period, low, high)), float(beat))
        return True

    def follow(self, onsets: Sequence[int]) -> bool:
        """Find the tempo in the frames at which keys were played; False if they are not regular.

        The tempo sought is that of a beat, of two or of four equal parts of it, on which the onsets fall.
        """
        times = np.asarray(onsets, float)
        if len(times) < 4:
            return False
        bpms = np.arange(_BPM_FOLLOWED[0], _BPM_FOLLOWED[1], 0.25)
        periods = self._frames_per_minute / bpms
        # Of each period, where the onsets lie in it as points on a circle: they agree if their mean is far out.
        angles = np.exp(2j * np.pi * times[:, None] / periods)
        fits = [np.abs((angles**parts).mean(axis=0)) for parts in (1, 2, 4)]
        # The coarsest division that explains the onsets nearly as well as the finest one does.
        score = np.max([fit - 0.05 * i for i, fit in enumerate(fits)], axis=0)
        best = int(np.argmax(score))
        if score[best] < _MIN_REGULARITY:
            return False
        phase = np.angle(angles[:, best].mean()) / (2 * np.pi)
        beats = np.floor(times[-1] / periods[best] - phase)
        self.set(float(bpms[best]), float((beats + phase) * periods[best]))
        return True

    def next_beat(self, frame: int) -> int:
        """The first beat at this frame or after it, rounded to a frame. There must be a tempo."""
        beats = np.ceil((frame - self.beat) / self.period - 1e-9)
        return max(frame, round(self.beat + beats * self.period))
