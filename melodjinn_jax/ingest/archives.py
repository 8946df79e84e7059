"""Tracks out of archives on a server, without keeping the archives: tars by number, and one large zip."""

import contextlib
import hashlib
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import requests

from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.download import Expected, download, writing
from melodjinn_jax.ingest.fetch import WRONG_CHECKSUM, Fetched, lent, tidied
from melodjinn_jax.ingest.remote import RemoteFile, Stream
from melodjinn_jax.ingest.track import Track
from melodjinn_jax.ingest.transport import CHUNK, PATIENT, Attempts, DownloadError, Retry, TransientError, request

_BUFFER = 1 << 13
_RECORD = "archive.json"
# What Python's readers raise for archives that are damaged.
_BAD_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError)
_BAD_TAR = (tarfile.TarError, ValueError)


class NumberedTars:
    """Tars that hold the tracks `NN/NAME`, one tar per NN.

    Where the server sends parts of a file, only the headers and the wanted members are asked for; else the tar is read
    through. Members are written under the names of their tracks, one at a time: no name in a tar reaches the disk.
    """

    def __init__(self, address: str, folder: Path, retry: Retry = PATIENT):
        """`address` has `{number}` where the number of the tar stands; files lie in `folder` while they are used."""
        self._address = address
        self._folder = folder
        self._retry = retry

    def fetch(self, tracks: Sequence[Track]) -> Iterator[Fetched]:
        """The tracks, tar by tar, in the order in which the tars hold them."""
        by_tar: dict[str, dict[str, Track]] = {}
        for track in tracks:
            by_tar.setdefault(track.location.partition("/")[0], {})[track.location] = track
        with tidied(self._folder), requests.Session() as session:
            for number in sorted(by_tar):
                yield from self._from_tar(session, self._address.format(number=number), by_tar[number])

    def _from_tar(self, session: requests.Session, url: str, wanted: dict[str, Track]) -> Iterator[Fetched]:
        """The tracks of one tar, and a reason for those that it does not give."""
        reason = f"not in {url}"
        try:
            yield from self._read_patiently(session, url, wanted)
        except DownloadError as error:
            reason = str(error)
        except _BAD_TAR as error:
            reason = f"{url}: a damaged tar ({error})"
        for track in wanted.values():
            yield Fetched(track, None, reason)

    def _read_patiently(self, session: requests.Session, url: str, wanted: dict[str, Track]) -> Iterator[Fetched]:
        """Read the tar, again from its start after a failure that may pass."""
        attempts = Attempts(url, self._retry)
        while True:
            try:
                yield from self._read_through(session, url, wanted, attempts)
                return
            except TransientError as failure:
                attempts.failed(failure)

    def _read_through(
        self, session: requests.Session, url: str, wanted: dict[str, Track], attempts: Attempts
    ) -> Iterator[Fetched]:
        """One reading of the tar; what has come is no longer wanted."""
        with _open_tar(session, url, self._retry) as (tar, tries):
            for member in tar:
                if not member.isreg() or (track := wanted.get(member.name.removeprefix("./"))) is None:
                    continue
                with lent(self._folder / f"{track.id}{Path(track.location).suffix}") as file:
                    right = any(_extract(tar, member, file, track.sha256) for _ in range(tries))
                    attempts.reached(member.offset_data + member.size)
                    del wanted[track.location]
                    yield Fetched(track, file) if right else Fetched(track, None, WRONG_CHECKSUM)
                if not wanted:
                    break


@contextlib.contextmanager
def _open_tar(session: requests.Session, url: str, retry: Retry) -> Iterator[tuple[tarfile.TarFile, int]]:
    """The tar, and how often a member of it may be read."""
    remote = RemoteFile(session, url, retry)
    if remote.sends_parts:
        with tarfile.open(fileobj=io.BufferedReader(remote, _BUFFER), mode="r:") as tar:
            yield tar, 2
    else:
        with request(session, url, {}) as response:
            stream = io.BufferedReader(Stream(response), CHUNK)
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                yield tar, 1


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, file: Path, sha256: str | None) -> bool:
    """Write a member to `file`; whether its checksum is right."""
    source = tar.extractfile(member)
    if source is None:
        return False
    with source:
        return sha256 in (None, _write(source, file))


def _write(source: IO[bytes], file: Path) -> str:
    """Copy to `file`; returns the SHA-256."""
    digest = hashlib.sha256()
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as target:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
                target.write(chunk)
    return digest.hexdigest()


class OneZip:
    """A zip that holds all tracks, below one folder or none.

    Where the server sends parts of a file, only the wanted members are asked for, each checked by its CRC. Else, or to
    check the whole zip against `sha256`, it is downloaded once, and kept in `folder`. Which zip it was is recorded on
    first use: another one at the same address is refused.
    """

    def __init__(self, url: str, folder: Path, sha256: str | None = None, retry: Retry = PATIENT):
        self._url = url
        self._folder = folder
        self._sha256 = sha256
        self._retry = retry

    def fetch(self, tracks: Sequence[Track]) -> Iterator[Fetched]:
        """The tracks, in the order in which the zip holds them. Raises `UserError` if there is no such zip."""
        with requests.Session() as session, self._open(session) as archive:
            below = {info.filename.partition("/")[2]: info for info in archive.infolist() if not info.is_dir()}
            members = below | {info.filename: info for info in archive.infolist()}
            found = [track for track in tracks if track.location in members]
            for track in sorted(found, key=lambda track: members[track.location].header_offset):
                with lent(self._folder / f"{track.id}{Path(track.location).suffix}") as file:
                    reason = self._extract(archive, members[track.location], file, track.sha256)
                    yield Fetched(track, None if reason else file, reason)
        for track in tracks:
            if track.location not in members:
                yield Fetched(track, None, f"not in {self._url}")

    @contextlib.contextmanager
    def _open(self, session: requests.Session) -> Iterator[zipfile.ZipFile]:
        source: Path | IO[bytes]
        remote = None if self._sha256 else RemoteFile(session, self._url, self._retry)
        if remote and remote.sends_parts:
            self._check_record(version=remote.version, size=remote.size)
            source = io.BufferedReader(remote, _BUFFER)
        else:
            source = self._folder / "archive.zip"
            self._check_record(sha256=download(self._url, source, Expected(self._sha256), self._retry))
        try:
            archive = zipfile.ZipFile(source)
        except _BAD_ZIP as error:
            raise UserError(f"{self._url} is not a zip archive: give another address") from error
        with archive:
            yield archive

    def _check_record(self, **found: str | int | None) -> None:
        """Compare with what was recorded on first use, or record it."""
        file = self._folder / _RECORD
        found["url"] = self._url
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            recorded = _read_record(file)
            if recorded.keys() == found.keys() and recorded["url"] == self._url and recorded != found:
                raise UserError(f"{self._url} is another archive than before: remove {file} to accept it")
            file.write_text(json.dumps(found))

    def _extract(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: Path, sha256: str | None) -> str | None:
        """Write a member to `file`; why that cannot be done, or None."""
        try:
            with archive.open(member) as source:
                digest = _write(source, file)
        except _BAD_ZIP as error:
            return f"damaged in the archive ({error})"
        return None if sha256 in (None, digest) else WRONG_CHECKSUM


def _read_record(file: Path) -> dict[str, str | int | None]:
    """What was recorded; nothing, if that cannot be read."""
    try:
        record = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        record = None
    return record if isinstance(record, dict) else {}
