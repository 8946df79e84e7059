"""A client of the live server for tests: it speaks the protocol as docs/protocol.md tells it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType, web

from melodjinn_jax.live import protocol
from melodjinn_jax.live.mock import MOCK_KEY_NAMES, MockStreamer, mock_prompt
from melodjinn_jax.live.server import Server
from melodjinn_jax.live.session import Sampling
from melodjinn_jax.live.stage import Stage


def mock_stage(slots: int = 4, streamer: MockStreamer | None = None) -> Stage:
    return Stage(streamer or MockStreamer(slots), mock_prompt(), Sampling(), MOCK_KEY_NAMES, holds=False)


@contextlib.asynccontextmanager
async def running(server: Server) -> AsyncIterator[str]:
    """The address of a server, `http://host:port`, while it runs."""
    runner = web.AppRunner(server.application(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.1).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class Client:
    """One WebSocket; keeps all that came: texts by type, audio in order."""

    def __init__(self, socket: ClientWebSocketResponse):
        self.socket = socket
        self.texts: list[dict[str, Any]] = []
        self.audio: list[protocol.Audio] = []
        self.files: list[bytes] = []

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send_str(json.dumps({"type": kind, **fields}))

    async def receive(self) -> bool:
        """Take one message; False when the connection is closed."""
        message = await self.socket.receive(timeout=60)
        if message.type is WSMsgType.TEXT:
            self.texts.append(json.loads(message.data))
        elif message.type is WSMsgType.BINARY and message.data[0] == protocol.AUDIO:
            self.audio.append(protocol.unpack_audio(message.data))
        elif message.type is WSMsgType.BINARY:
            self.files.append(message.data)
        else:
            return False
        return True

    async def until(self, kind: str) -> dict[str, Any]:
        """The next text of a kind; what comes before it is kept."""
        while await self.receive():
            if self.texts and self.texts[-1]["type"] == kind:
                return self.texts.pop()
        raise AssertionError(f"closed before {kind}: {self.texts}")

    async def file(self) -> bytes:
        """The next session or WAV file, without its first byte."""
        while not self.files:
            assert await self.receive(), self.texts
        return self.files.pop()[1:]

    async def frames(self, count: int) -> None:
        """Hear so many frames more, as fast as they come."""
        wanted = len(self.audio) + count
        while len(self.audio) < wanted:
            assert await self.receive(), self.texts
            last = self.audio[-1] if self.audio else None
            if last is not None:
                await self.send("played", take=last.take, frame=last.frame)

    @property
    def actions(self) -> dict[int, int]:
        """The action of every frame heard."""
        return {audio.frame + i: int(a) for audio in self.audio for i, a in enumerate(audio.actions)}

    @property
    def pcm(self) -> np.ndarray:
        """int16 [F, H]: all that was heard."""
        return np.concatenate([audio.pcm for audio in self.audio])


@contextlib.asynccontextmanager
async def connected(url: str, query: str = "", **options: Any) -> AsyncIterator[Client]:
    """A client and, in `texts`, its welcome."""
    protocols = (protocol.SUBPROTOCOL,)
    async with (
        ClientSession() as session,
        session.ws_connect(f"{url}/live{query}", protocols=protocols, **options) as socket,
    ):
        client = Client(socket)
        await client.receive()
        yield client


def with_client(scene: Callable[[Client], Any], stage: Stage | None = None) -> None:
    """Play a scene with one client of a server of its own."""

    async def play() -> None:
        async with running(Server(stage or mock_stage(), token="")) as url, connected(url) as client:
            await scene(client)

    asyncio.run(asyncio.wait_for(play(), 60))
