"""Downloads that may stop anywhere: partial files are resumed, and nothing takes its place before it is verified.

FILE.part         what has come so far
FILE.part.json    address, size and version (ETag or date) of the file that it is a part of
"""

import contextlib
import errno
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import requests

from melodjinn_jax.data.files import file_sha256
from melodjinn_jax.errors import UserError
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

_MISMATCHES = 2  # whole downloads with a wrong checksum before giving up


@dataclass(frozen=True)
class Expected:
    """What is known of a file before it comes."""

    sha256: str | None = None
    """Checksum."""
    size: int | None = None
    """Bytes."""
    min_size: int = 1
    """Fewest bytes that such a file can have."""


ANYTHING = Expected()


@dataclass(frozen=True)
class _Part:
    """The file that a partial file is a part of."""

    url: str
    version: str | None
    size: int | None


def download(url: str, file: Path, expected: Expected = ANYTHING, retry: Retry = PATIENT) -> str:
    """Bring the file at `url` to `file` and return its SHA-256; what is there already is verified.

    Raises:
      DownloadError: the server does not give it, or what it gives is not what is expected.
      UnreachableError: there is no way to the server.
      UserError: the file cannot be written; what has come is kept.
    """
    with writing(file):
        if file.exists():
            digest = file_sha256(file)
            if _complaint(file, digest, expected) is None:
                return digest
            file.unlink()
        file.parent.mkdir(parents=True, exist_ok=True)
        attempts, mismatches = Attempts(url, retry), 0
        with requests.Session() as session:
            while True:
                try:
                    _fetch_rest(session, url, file, attempts)
                except TransientError as failure:
                    attempts.failed(failure)
                    continue
                part = _part_of(file)
                digest = file_sha256(part)
                complaint = _complaint(part, digest, expected)
                if complaint is None:
                    part.replace(file)
                    _state_of(file).unlink(missing_ok=True)
                    return digest
                _discard_part(file)
                mismatches += 1
                if mismatches >= _MISMATCHES:
                    raise DownloadError(f"{url}: {complaint}")
                attempts.failed(TransientError(complaint))


def _discard_part(file: Path) -> None:
    """Forget what has come of `file`."""
    _part_of(file).unlink(missing_ok=True)
    _state_of(file).unlink(missing_ok=True)


@contextlib.contextmanager
def writing(file: Path):
    """Trouble with the disk as a `UserError` that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left for {file}: make room and run the same command again") from error
        raise UserError(f"{file} cannot be written: {error.strerror or error}") from error


def _part_of(file: Path) -> Path:
    return file.with_name(file.name + ".part")


def _state_of(file: Path) -> Path:
    return file.with_name(file.name + ".part.json")


def _fetch_rest(session: requests.Session, url: str, file: Path, attempts: Attempts) -> None:
    """Bring what is missing of FILE.part, or all of it if the server has another version or cannot resume."""
    part, state = _part_of(file), _read_state(file)
    start = part.stat().st_size if part.exists() else 0
    if state is None or state.url != url or state.version is None:
        state, start = None, 0
    if state and start and start == state.size:
        return
    headers = {"Range": f"bytes={start}-", "If-Range": str(state.version)} if state and start else {}
    with request(session, url, headers) as response:
        if response.status_code == 416:
            _discard_part(file)
            raise TransientError("the server cannot go on where it stopped")
        if response.status_code == 206:
            if state is None or not _continues(response, state, start):
                _discard_part(file)
                raise TransientError("the server goes on elsewhere than it was asked")
        else:
            start, state = 0, _Part(url, validator(response), _length(response))
            _write_state(file, state)
        with part.open("r+b" if start else "wb") as stream:
            stream.seek(start)
            for chunk in body(response):
                stream.write(chunk)
                attempts.reached(stream.tell())
    if state.size is not None and part.stat().st_size != state.size:
        raise TransientError("connection lost before the end")


def _continues(response: requests.Response, state: _Part, start: int) -> bool:
    """Whether an answer 206 is the rest of the same version of the file."""
    resumed = content_range(response)
    if resumed is None or resumed[0] != start or resumed[1] != (state.size or resumed[1]):
        return False
    return validator(response) in (None, state.version)


def _length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _read_state(file: Path) -> _Part | None:
    try:
        return _Part(**json.loads(_state_of(file).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write_state(file: Path, state: _Part) -> None:
    """The state is on disk, whole, before the part grows; an older part is gone before that."""
    _part_of(file).unlink(missing_ok=True)
    new = _state_of(file).with_suffix(".new")
    new.write_text(json.dumps(asdict(state)))
    os.replace(new, _state_of(file))


def _complaint(file: Path, digest: str, expected: Expected) -> str | None:
    size = file.stat().st_size
    if expected.size is not None and size != expected.size:
        return f"{size} bytes came instead of {expected.size}"
    if size < expected.min_size:
        return f"only {size} bytes came"
    if expected.sha256 is not None and digest != expected.sha256:
        return f"its SHA-256 is {digest[:12]}..., not {expected.sha256[:12]}... as it should be"
    return None
