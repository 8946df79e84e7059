"""Makes the frames of all listeners' streams, one batch after the other, while any of them has room for more."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from melodjinn_jax.live.performance import Performance, Start, Ticket
from melodjinn_jax.live.protocol import Audio
from melodjinn_jax.live.stream import Streamer

_REMEMBERED_STEPS = 2000


@dataclass(frozen=True)
class Seat:
    """A slot that is taken: whose stream it plays, who gets the audio, and who is told when there can be no more."""

    slot: int
    performance: Performance
    deliver: Callable[[Audio], None]
    fail: Callable[[], None]


class Conductor:
    """Seats for as many streams as the streamer has slots.

    The model works in a thread of its own; all else happens in the event loop. A stream that has no room for more
    frames, because its listener has not heard what there is, is left out of the batch and costs the others nothing.
    """

    def __init__(self, streamer: Streamer):
        self.streamer = streamer
        self._seats: list[Seat | None] = [None] * streamer.slots
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "melodjinn-model")
        self._steps: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED_STEPS)

    @property
    def listeners(self) -> int:
        return sum(seat is not None for seat in self._seats)

    def sit(self, performance: Performance, deliver: Callable[[Audio], None], fail: Callable[[], None]) -> Seat | None:
        """A seat for a stream; None if all are taken."""
        for slot, seat in enumerate(self._seats):
            if seat is None:
                taken = self._seats[slot] = Seat(slot, performance, deliver, fail)
                self.wake()
                return taken
        return None

    def leave(self, seat: Seat) -> None:
        """Give a seat back."""
        self._seats[seat.slot] = None

    def wake(self) -> None:
        """Look again whether there is something to make."""
        self._wake.set()

    async def run(self) -> None:
        """Make frames for ever; what the model raises ends it."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._wake.clear()
                tickets = [seat.performance.next_frame() if seat else None for seat in self._seats]
                if not any(tickets):
                    await self._wake.wait()
                    continue
                seats = list(self._seats)
                starts = [self._pending(seat) for seat in seats]
                codes, pcm = await loop.run_in_executor(self._thread, self._make, starts, tickets)
                self._hand_out(seats, tickets, codes, pcm)
        except Exception:
            for seat in filter(None, self._seats):
                seat.fail()
            raise
        finally:
            self._thread.shutdown(wait=True)

    @staticmethod
    def _pending(seat: Seat | None) -> Start | None:
        if seat is None:
            return None
        start, seat.performance.pending = seat.performance.pending, None
        return start

    def _make(self, starts: list[Start | None], tickets: list[Ticket | None]) -> tuple[np.ndarray, np.ndarray]:
        """In the model's thread: begin what begins, then one frame of all."""
        for slot, start in enumerate(starts):
            if start is not None:
                self.streamer.start(slot, start.first_frame, start.codes)
        began = time.perf_counter()
        made = self.streamer.step([ticket.frame if ticket else None for ticket in tickets])
        now = time.perf_counter()
        self._steps.append((now, now - began))
        return made

    def _hand_out(
        self, seats: list[Seat | None], tickets: list[Ticket | None], codes: np.ndarray, pcm: np.ndarray
    ) -> None:
        for slot, (seat, ticket) in enumerate(zip(seats, tickets, strict=True)):
            if seat is None or ticket is None or self._seats[slot] is not seat:
                continue
            audio = seat.performance.made(ticket, codes[slot], pcm[slot])
            if audio is not None:
                seat.deliver(audio)

    def frame_milliseconds(self) -> tuple[float, float]:
        """Median and 99th percentile of what a frame took in the last second; zeros if there was none."""
        since = time.perf_counter() - 1
        recent = [took * 1000 for when, took in list(self._steps) if when > since]
        return (float(np.median(recent)), float(np.percentile(recent, 99))) if recent else (0.0, 0.0)
