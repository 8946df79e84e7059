"""One connection to the server: messages in become calls on a performance, audio and answers go out."""

import asyncio
import io
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aiohttp import WSMsgType, web

from melodjinn_jax.data.audio import write_wav
from melodjinn_jax.errors import UserError
from melodjinn_jax.live import protocol
from melodjinn_jax.live.conductor import Conductor
from melodjinn_jax.live.performance import Performance
from melodjinn_jax.live.protocol import Audio, Limits, ProtocolError, pack_audio, pack_text
from melodjinn_jax.live.session import Session

MAX_BAD_MESSAGES = 20
MAX_OUTBOX = 512
"""Messages that may wait for a client to read them: more than the audio that may be made ahead."""
STALL_SECONDS = 10
"""A client that reads nothing for so long is left."""


class RateLimit:
    """At most `per_second` messages a second, a second's worth of them at once."""

    def __init__(self, per_second: int, now: float):
        self._per_second, self._left, self._then = per_second, float(per_second), now

    def allows(self, now: float) -> bool:
        self._left = min(self._per_second, self._left + (now - self._then) * self._per_second)
        self._then = now
        self._left -= 1
        return self._left >= 0


class Listener:
    """A client with a stream of its own."""

    def __init__(
        self, socket: web.WebSocketResponse, transport: asyncio.Transport, conductor: Conductor, work: asyncio.Semaphore
    ):
        """`work` bounds how many sessions and WAV files are worked on at once, of all listeners together."""
        self._socket, self._transport, self._conductor, self._work = socket, transport, conductor, work
        self._outbox: asyncio.Queue[str | bytes | int] = asyncio.Queue(MAX_OUTBOX)
        self._task: asyncio.Task[None] | None = None
        self._bad = 0
        self._sending, self._stalled, self._unsent = False, 0, 0

    async def refuse(self, code: str, sentence: str) -> None:
        """Say why, and close."""
        await self._socket.send_str(pack_text("error", code=code, message=sentence))
        await self._socket.close(code=protocol.CLOSING[code], message=code.encode())

    async def run(self, performance: Performance, welcome: dict[str, Any]) -> None:
        """Serve the client until it goes or must go."""
        self._performance, self._limits = performance, performance.limits
        seat = self._conductor.sit(performance, self._deliver, self._fail)
        if seat is None:
            await self.refuse("full", f"all {self._limits.listeners} places are taken: try again later")
            return
        self._seat = seat
        self._say("welcome", **welcome, **performance.describe_take(), settings=performance.describe_settings())
        sender = asyncio.create_task(self._send_all())
        care = asyncio.create_task(self._look_after())
        try:
            await self._receive_all()
        finally:
            self._conductor.leave(seat)
            for task in (sender, care, self._task):
                if task is not None:
                    task.cancel()

    async def _receive_all(self) -> None:
        loop = asyncio.get_running_loop()
        rate = RateLimit(self._limits.messages_per_second, loop.time())
        async for message in self._socket:
            if not rate.allows(loop.time()):
                self._end("rate", f"more than {self._limits.messages_per_second} messages a second were sent")
                return await self._drain()
            try:
                self._handle(self._parse(message.type, message.data, self._limits))
            except ProtocolError as error:
                self._bad += error.code == "message"
                self._error(error)
                if error.code in protocol.CLOSING or self._bad >= MAX_BAD_MESSAGES:
                    self._put(protocol.CLOSING.get(error.code, 1008))
                    return await self._drain()
            except UserError as error:
                self._error(ProtocolError("session", str(error)))
            self._conductor.wake()
        return None

    async def _drain(self) -> None:
        """Read and forget what still comes, until the connection is closed."""
        self._performance.playing = False
        async for _ in self._socket:
            pass

    @staticmethod
    def _parse(kind: WSMsgType, data: Any, limits: Limits) -> protocol.Message:
        if kind is WSMsgType.TEXT:
            return protocol.parse_text(data, limits)
        if kind is WSMsgType.BINARY:
            return protocol.parse_binary(data, limits)
        raise ProtocolError("message", "this kind of message is not known")

    def _handle(self, message: protocol.Message) -> None:
        """Do what a message asks. Raises `ProtocolError` or `UserError` if it cannot be done."""
        performance = self._performance
        match message:
            case protocol.Play() | protocol.Pause():
                performance.playing = isinstance(message, protocol.Play)
                self._say("settings", **performance.describe_settings())
            case protocol.Press():
                frame = performance.press(message)
                if frame is not None:
                    self._say("scheduled", key=message.key, frame=frame)
            case protocol.Release():
                performance.keyboard.release(message.key)
            case protocol.ReleaseAll():
                performance.keyboard.release_all()
            case protocol.Tempo() | protocol.Tap() | protocol.Follow():
                if performance.set_tempo(message):
                    self._say("tempo", bpm=performance.tempo.bpm, beat=performance.tempo.beat)
            case protocol.Settings():
                performance.change_settings(message)
                self._say("settings", **performance.describe_settings())
            case protocol.Buffer():
                performance.ahead = message.ahead
                self._say("settings", **performance.describe_settings())
            case protocol.Played():
                performance.heard(message)
            case protocol.Rewind():
                performance.rewind(message.frame, message.seed)
                self._say("take", **performance.describe_take())
            case protocol.Restart():
                performance.restart(message.seed)
                self._say("take", **performance.describe_take())
            case protocol.Save():
                self._begin(self._save)
            case protocol.Wav():
                self._begin(partial(self._render, message.from_frame))
            case protocol.Load():
                self._begin(partial(self._load, message.content))

    def _begin(self, work: Callable[[], Awaitable[None]]) -> None:
        """Start what takes longer, in the background; one such thing at a time."""
        if self._task is not None and not self._task.done():
            raise ProtocolError("busy", "a session or a WAV file is still being worked on")
        self._task = asyncio.create_task(self._guarded(work))

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            async with self._work:
                await work()
        except UserError as error:
            self._error(ProtocolError("session", str(error)))
        self._conductor.wake()

    async def _save(self) -> None:
        session, made_with = self._performance.session.copy(), self._conductor.streamer.made_with(self._seat.slot)
        content = await asyncio.to_thread(session.to_bytes, made_with)
        self._put(bytes([protocol.SESSION]) + content)

    async def _render(self, from_frame: int) -> None:
        sound, rate = self._performance.sound(from_frame), self._performance.instrument.sample_rate

        def render() -> bytes:
            file = io.BytesIO()
            write_wav(file, sound(), rate)
            return file.getvalue()

        self._put(bytes([protocol.WAV]) + await asyncio.to_thread(render))

    async def _load(self, content: bytes) -> None:
        session, _ = await asyncio.to_thread(Session.from_bytes, content)
        self._performance.load(session)
        self._say("settings", **self._performance.describe_settings())
        self._say("take", **self._performance.describe_take())

    async def _look_after(self) -> None:
        """Once a second: is the client still reading, and how does it go?"""
        performance = self._performance
        while True:
            await asyncio.sleep(1)
            self._leave_if_stalled()
            median, worst = self._conductor.frame_milliseconds()
            if performance.playing and median:
                self._say(
                    "health",
                    frame_ms=round(median, 3),
                    frame_ms_p99=round(worst, 3),
                    real_time_factor=round(1000 / performance.instrument.frame_rate / median, 2),
                    listeners=self._conductor.listeners,
                    ahead=performance.end - performance.played,
                )

    def _deliver(self, audio: Audio) -> None:
        self._put(pack_audio(audio))

    def _fail(self) -> None:
        self._end("server", "the model cannot go on: see what the server printed")

    def _say(self, kind: str, **fields: Any) -> None:
        self._put(pack_text(kind, **fields))

    def _error(self, error: ProtocolError) -> None:
        self._say("error", code=error.code, message=str(error))

    def _end(self, code: str, sentence: str) -> None:
        """Say why, and close when it has been said."""
        self._error(ProtocolError(code, sentence))
        self._put(protocol.CLOSING[code])

    def _put(self, content: str | bytes | int) -> None:
        """Something to send, in its order; a number closes the connection with this code."""
        try:
            self._outbox.put_nowait(content)
        except asyncio.QueueFull:
            self._transport.abort()

    async def _send_all(self) -> None:
        try:
            while True:
                content = await self._outbox.get()
                self._sending = True
                if isinstance(content, str):
                    await self._socket.send_str(content)
                elif isinstance(content, bytes):
                    await self._socket.send_bytes(content)
                else:
                    await self._socket.close(code=content)
                    return
                self._sending = False
        except ConnectionError:
            return  # the client has gone; the receiving side learns it too

    def _leave_if_stalled(self) -> None:
        """Called once a second: leave a client that has taken nothing of what is being sent for `STALL_SECONDS`."""
        unsent = self._transport.get_write_buffer_size()
        self._stalled = self._stalled + 1 if self._sending and unsent >= self._unsent else 0
        self._unsent = unsent
        if self._stalled >= STALL_SECONDS:
            self._transport.abort()
