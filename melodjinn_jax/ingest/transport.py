"""HTTP as it is: requests that fail for a while are made again, those that fail for good say why in one sentence."""

import contextlib
import email.utils
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

from melodjinn_jax.errors import UserError

CHUNK = 1 << 18  # bytes
_TIMEOUT = (20, 60)  # seconds to connect, and without a byte
_TOO_MANY = 429
_PASSING = {408, 425, _TOO_MANY, 500, 502, 503, 504}
_PROGRESS = 1 << 20  # bytes


class DownloadError(UserError):
    """What an address does not give, and why."""


class UnreachableError(UserError):
    """Nothing comes from a host: no other address there will do better now."""


class TransientError(Exception):
    """A failure that may pass."""

    def __init__(self, reason: str, wait: float = 0.0, whole_host: bool = False):
        """`wait`: seconds that the server asks to wait; `whole_host`: other addresses there fail as this one does."""
        super().__init__(reason)
        self.reason = reason
        self.wait = wait
        self.whole_host = whole_host


@dataclass(frozen=True)
class Retry:
    """How often and after what pauses a request is made again."""

    attempts: int = 6
    """Attempts without progress before giving up."""
    first_wait: float = 1.0
    """Seconds before the second attempt; each later pause is twice as long."""
    longest_wait: float = 60.0
    """Longest pause in seconds; a server that asks for more is left alone."""


PATIENT = Retry()


class Attempts:
    """Counts the failures of one download in a row, and waits between them."""

    def __init__(self, url: str, retry: Retry):
        self._url = url
        self._retry = retry
        self._failures = 0
        self._mark = 0

    def reached(self, position: int) -> None:
        """So many bytes of the file have come; a megabyte more than ever makes up for the failures before."""
        if position >= self._mark + _PROGRESS:
            self._failures, self._mark = 0, position

    def failed(self, failure: TransientError) -> None:
        """Wait before the next attempt. Raises `DownloadError`, or `UnreachableError`, if there were enough."""
        self._failures += 1
        host = urlsplit(self._url).hostname
        if failure.wait > self._retry.longest_wait:
            raise UnreachableError(
                f"{host} asks to wait {failure.wait:.0f} s ({failure.reason}): run the same command again after that"
            ) from failure
        if self._failures >= self._retry.attempts:
            if failure.whole_host:
                raise UnreachableError(
                    f"nothing comes from {host} ({failure.reason}): "
                    "check the network, try again later, or give the audio with --input"
                ) from failure
            raise DownloadError(f"{self._url}: {failure.reason}") from failure
        pause = min(max(self._retry.first_wait * 2 ** (self._failures - 1), failure.wait), self._retry.longest_wait)
        print(f"{self._url}: {failure.reason}, trying again in {pause:g} s", file=sys.stderr)
        time.sleep(pause)


@contextlib.contextmanager
def request(session: requests.Session, url: str, headers: dict[str, str]) -> Iterator[requests.Response]:
    """One GET, whose body is still to be read with `body`.

    Raises `TransientError` for a failure that may pass, `DownloadError` for one that will not.
    """
    try:
        response = session.get(url, headers={"Accept-Encoding": "identity"} | headers, stream=True, timeout=_TIMEOUT)
    except (requests.ConnectionError, requests.Timeout) as error:
        raise _not_connected(error) from error
    except (requests.RequestException, ValueError) as error:
        raise DownloadError(f"{url}: {' '.join(str(error).split())}") from error
    with response:
        status = response.status_code
        if status in _PASSING:
            reason = f"the server answers {status} {response.reason}"
            raise TransientError(reason, _retry_after(response), whole_host=status == _TOO_MANY)
        if status not in (200, 206, 416):
            raise DownloadError(f"{url}: the server answers {status} {response.reason}")
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise TransientError("the server sends a web page instead of a file")
        yield response


def _not_connected(error: requests.RequestException) -> TransientError:
    cause = getattr(error.args[0], "reason", None) if error.args else None
    if isinstance(error, requests.exceptions.SSLError):
        said = " ".join(str(cause or error).split())
        return TransientError(f"no secure connection, {said}: check certificates and the clock", whole_host=True)
    if isinstance(error, requests.exceptions.ProxyError):
        return TransientError("the proxy lets nothing through: check HTTPS_PROXY and NO_PROXY", whole_host=True)
    if isinstance(cause, urllib3.exceptions.NameResolutionError):
        return TransientError("its name is unknown here", whole_host=True)
    if isinstance(cause, urllib3.exceptions.NewConnectionError) or isinstance(error, requests.ConnectTimeout):
        return TransientError("no connection", whole_host=True)
    late = isinstance(error, requests.Timeout)
    return TransientError("the server does not answer in time" if late else "connection lost")


def _retry_after(response: requests.Response) -> float:
    """Seconds, of a header that holds seconds or a date; 0 if there is none."""
    value = response.headers.get("Retry-After", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (email.utils.parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return 0.0


def body(response: requests.Response) -> Iterator[bytes]:
    """The bytes of an answer as they come. Raises `TransientError` if they stop before the length that it announced."""
    try:
        yield from response.raw.stream(CHUNK, decode_content=False)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise TransientError("connection lost before the end") from error


def validator(response: requests.Response) -> str | None:
    """What identifies this version of the file to `If-Range`: a strong ETag, else the date of the last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def content_range(response: requests.Response) -> tuple[int, int] | None:
    """First byte and size of the whole file, of an answer 206; None if it does not say."""
    unit, _, span = response.headers.get("Content-Range", "").partition(" ")
    window, _, total = span.partition("/")
    first = window.partition("-")[0]
    return (int(first), int(total)) if unit == "bytes" and first.isdigit() and total.isdigit() else None
