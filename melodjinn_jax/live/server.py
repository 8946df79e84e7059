"""The HTTP server of live play: the page, and the WebSocket of docs/protocol.md for each of its listeners."""

import asyncio
import errno
import mimetypes
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web

from melodjinn_jax.errors import UserError
from melodjinn_jax.live import protocol
from melodjinn_jax.live.conductor import Conductor
from melodjinn_jax.live.listener import Listener
from melodjinn_jax.live.stage import Stage

PAGE = Path(__file__).parent / "page"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_HEADERS = {"Referrer-Policy": "no-referrer", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
_NO_TOKEN = "the address needs its token: open it as the server printed it"
_CLOSE_SECONDS = 2.0
_HEARTBEAT_SECONDS = 20.0
_UNSENT_BYTES = 1 << 14
"""Bytes that may wait in a connection before its sender does."""


class Server:
    """Handlers of the server's addresses. Empty `token`: none is wanted, and only this machine may ask."""

    def __init__(self, stage: Stage, token: str, page: Path = PAGE):
        self._stage, self._token, self._page = stage, token, page
        self._work = asyncio.Semaphore(1)

    def application(self) -> web.Application:
        """The aiohttp application; it makes frames while it runs."""
        app = web.Application()
        app.cleanup_ctx.append(self._conduct)
        app.on_response_prepare.append(self._add_headers)
        app.router.add_get("/server.json", self._describe)
        app.router.add_get("/live", self._listen)
        app.router.add_get("/{path:.*}", self._serve_page)
        return app

    async def _conduct(self, app: web.Application) -> AsyncIterator[None]:
        self._conductor = Conductor(self._stage.streamer)
        self.conducting = asyncio.create_task(self._conductor.run())
        yield
        self.conducting.cancel()
        await asyncio.gather(self.conducting, return_exceptions=True)

    @staticmethod
    async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
        response.headers.update(_HEADERS)

    def _admits(self, request: web.Request) -> bool:
        """Whether a request has the token; without a token, whether it was meant for this machine.

        A page of somebody else's may send a browser here under a name that it made point to this machine.
        """
        if self._token:
            return secrets.compare_digest(request.query.get("token", "").encode(), self._token.encode())
        return urlsplit(f"//{request.host}").hostname in LOCAL_HOSTS

    async def _describe(self, request: web.Request) -> web.Response:
        if not self._admits(request):
            return web.json_response(
                {"error": "the address needs its token: open it as the server printed it"}, status=401
            )
        return web.json_response({"protocol": protocol.VERSION})

    async def _listen(self, request: web.Request) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            return web.json_response({"error": "a page of another site may not play here"}, status=403)
        socket = web.WebSocketResponse(
            protocols=(protocol.SUBPROTOCOL,),
            max_msg_size=self._stage.limits.session_bytes + 1,
            heartbeat=_HEARTBEAT_SECONDS,
            timeout=_CLOSE_SECONDS,
            compress=False,
            writer_limit=_UNSENT_BYTES,
        )
        await socket.prepare(request)
        transport = request.transport
        if not isinstance(transport, asyncio.Transport):
            return socket  # gone already
        listener = Listener(socket, transport, self._conductor, self._work)
        if self._admits(request):
            await listener.run(self._stage.perform(), self._stage.welcome())
        else:
            await listener.refuse("token", _NO_TOKEN)
        return socket

    async def _serve_page(self, request: web.Request) -> web.StreamResponse:
        files = {file.relative_to(self._page).as_posix(): file for file in self._page.rglob("*") if file.is_file()}
        path = files.get(request.match_info["path"] or "index.html")
        if path is None:
            return web.Response(status=404, text="There is no such page here.\n")
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        return web.FileResponse(path, headers={"Content-Type": kind})


async def serve(server: Server, host: str, port: int, ready: Callable[[int], None]) -> None:
    """Serve until cancelled, or until the model fails; `ready` is told the port, which the system chooses if it is 0.

    Raises:
      UserError: the port is taken, or the host is none of this machine's.
    """
    runner = web.AppRunner(server.application(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, shutdown_timeout=_CLOSE_SECONDS).start()
        ready(runner.addresses[0][1])
        await asyncio.wait({server.conducting})
        await asyncio.sleep(_CLOSE_SECONDS)  # listeners are being told
        server.conducting.result()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port {port} is in use: choose another, or 0 for any that is free") from error
        raise UserError(f"--host {host} --port {port}: cannot listen there ({error.strerror or error})") from error
    finally:
        await runner.cleanup()
