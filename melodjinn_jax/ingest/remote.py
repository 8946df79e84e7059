"""A file on a server as a file to read from anywhere, so that an archive gives single members without being moved."""

import io

import requests

from melodjinn_jax.ingest.transport import (
    PATIENT,
    Attempts,
    DownloadError,
    Retry,
    TransientError,
    body,
    content_range,
    request,
    validator,
)

_FIRST_WINDOW = 1 << 14  # bytes; the header of a member fits
_LARGEST_WINDOW = 1 << 22


class RemoteFile(io.RawIOBase):
    """Reads by ranges. What is read on end comes in windows that double, up to 4 MiB, which is all it holds.

    Raises `DownloadError` or `UnreachableError` when the server gives up or the file changes, also while it is read.
    """

    def __init__(self, session: requests.Session, url: str, retry: Retry = PATIENT):
        self._session = session
        self._url = url
        self._retry = retry
        self._version: str | None = None
        self._size: int | None = None
        self._position = 0
        self._window = b""
        self._window_start = 0
        self._next_size = _FIRST_WINDOW
        self.sends_parts = self._fill(0)

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return self._size or 0

    @property
    def version(self) -> str | None:
        """What identifies this version of the file: an ETag or a date."""
        return self._version

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """The position."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; nothing is asked of the server."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer) -> int:
        """Up to `len(buffer)` bytes from the position."""
        if self._position >= self.size:
            return 0
        start = self._position - self._window_start
        if not 0 <= start < len(self._window):
            on_end = self._position == self._window_start + len(self._window)
            self._next_size = min(2 * self._next_size, _LARGEST_WINDOW) if on_end else _FIRST_WINDOW
            if not self._fill(self._position):
                raise DownloadError(f"{self._url}: the server no longer sends parts of the file")
            start = 0
        piece = self._window[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def _fill(self, start: int) -> bool:
        """Ask for the window at `start` until it is there; False if the server does not send parts."""
        attempts = Attempts(self._url, self._retry)
        while True:
            try:
                return self._ask(start)
            except TransientError as failure:
                attempts.failed(failure)

    def _ask(self, start: int) -> bool:
        headers = {"Range": f"bytes={start}-{start + self._next_size - 1}"}
        with request(self._session, self._url, headers) as response:
            span = content_range(response)
            if response.status_code != 206 or span is None or span[0] != start:
                return False
            found = (validator(response), span[1])
            if self._size is None:
                self._version, self._size = found
            elif found != (self._version, self._size):
                raise DownloadError(f"{self._url}: the file has changed while it was read, so start again")
            window = b"".join(body(response))
        self._window, self._window_start = window, start
        return True


class Stream(io.RawIOBase):
    """The body of one answer, read from front to back. Raises `TransientError` if it stops early."""

    def __init__(self, response: requests.Response):
        self._chunks = body(response)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer) -> int:
        """Up to `len(buffer)` of the next bytes; 0 at the end."""
        if not self._rest:
            self._rest = memoryview(next(self._chunks, b""))
        piece = self._rest[: len(buffer)]
        buffer[: len(piece)] = piece
        self._rest = self._rest[len(piece) :]
        return len(piece)
