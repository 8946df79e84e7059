"""A local HTTP server that answers as real ones do on bad days."""

import contextlib
import re
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server holds, how it behaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list["Fault"]] = field(default_factory=lambda: defaultdict(list))
    """By path: what happens at the next requests, one after another; then all is well."""
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and range of every request."""
    sent: int = 0
    """Bytes of bodies."""
    ranges: bool = True
    etag: str | None = '"one"'
    length: bool = True
    address: str = ""

    def asked(self, path: str) -> list[str | None]:
        """The ranges of the requests for this path."""
        return [span for asked, span in self.requests if asked == path]


class Handler(BaseHTTPRequestHandler):
    """Serves the files of `site`, with ranges and `If-Range`, unless a fault comes first."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the body waits until the head is acknowledged
    site: Site

    def do_GET(self) -> None:
        """A file, a part of it, or a fault."""
        site = self.site
        span = self.headers.get("Range")
        site.requests.append((self.path, span))
        content = site.files.get(self.path)
        faults = site.faults[self.path]
        if faults:
            faults.pop(0)(self, content or b"")
        elif content is None:
            self.answer(404, b"")
        else:
            self.file(content)

    def file(self, content: bytes, size: int | None = None, announced: int | None = None) -> None:
        """`content` or the range asked for; only `size` bytes of it, or with another length announced."""
        site, span = self.site, re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, site.etag)
        if not (span and site.ranges and same):
            return self.answer(200, content, size=size, announced=announced)
        start, end = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
        if start >= len(content):
            return self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
        part = content[start : end + 1]
        headers = {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(content)}"}
        return self.answer(206, part, headers, size, announced)

    def answer(
        self,
        status: int,
        content: bytes,
        headers: dict[str, str] | None = None,
        size: int | None = None,
        announced: int | None = None,
    ) -> None:
        """Send it; with fewer bytes than announced the connection is closed after them."""
        site = self.site
        self.send_response(status)
        for name, value in ({"Content-Type": "audio/mpeg"} | (headers or {})).items():
            self.send_header(name, value)
        if site.etag:
            self.send_header("ETag", site.etag)
        if site.length or status != 200:
            self.send_header("Content-Length", str(len(content) if announced is None else announced))
        else:
            self.close_connection = True
        self.end_headers()
        body = b"" if self.command == "HEAD" else content if size is None else content[:size]
        site.sent += len(body)
        with contextlib.suppress(OSError):
            self.wfile.write(body)
        if size is not None or announced is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


Fault = Callable[[Handler, bytes], None]


def status(code: int, **headers: str) -> Fault:
    """An answer without a file."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, content: handler.answer(code, b"no", named)


def cut(size: int) -> Fault:
    """The connection ends after so many bytes."""
    return lambda handler, content: handler.file(content, size=size)


def announce(length: int) -> Fault:
    """The right bytes under a wrong length."""
    return lambda handler, content: handler.file(content, announced=length)


def wrong(content: bytes) -> Fault:
    """Other bytes, as if they were the file."""
    return lambda handler, _: handler.file(content)


def web_page(handler: Handler, _: bytes) -> None:
    """A page that says sorry, with status 200."""
    handler.answer(200, b"<html>sorry</html>" * 500, {"Content-Type": "text/html; charset=utf-8"})


def reset(handler: Handler, _: bytes) -> None:
    """No answer: the connection is reset."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True
    handler.wfile = contextlib.nullcontext()  # type: ignore[assignment]


@contextlib.contextmanager
def serving(handler: type[Handler] = Handler) -> Iterator[Site]:
    """A server on a free port of this machine while the context lasts."""
    site = Site()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (handler,), {"site": site}))
    server.handle_error = lambda *args: None  # type: ignore[method-assign]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
