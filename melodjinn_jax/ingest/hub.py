"""Tracks out of the parquet shards of a dataset on the Hugging Face Hub: one shard on disk at a time.

The shards have one column, `audio: struct<bytes, path>`, whose path is the id of the track and a suffix. Which ids a
shard holds is read over the network first (a small column at its end), and noted in `shards.jsonl`, so that shards
without a wanted track are not downloaded, now or the next time.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import huggingface_hub
import pyarrow
import pyarrow.parquet
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from melodjinn_jax.data.files import file_sha256
from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.download import writing
from melodjinn_jax.ingest.fetch import WRONG_CHECKSUM, Fetched, lent
from melodjinn_jax.ingest.track import Track
from melodjinn_jax.ingest.transport import PATIENT, Attempts, DownloadError, Retry, TransientError

_INDEX = "shards.jsonl"
_BATCH = 8  # rows in memory at a time, of some megabytes each
_BUFFER = 1 << 20  # bytes read at a time
_BLOCK = 1 << 16  # bytes of a shard that are asked for at a time to see which ids it holds
_PASSING = {408, 429}
_REFUSED = {401, 403}

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Shard:
    """One parquet file of the dataset."""

    path: str
    size: int
    sha256: str | None


class HubShards:
    """The shards below `data/` of a dataset, at the commit that `revision` names when the first track is asked for."""

    def __init__(
        self, repository: str, revision: str, folder: Path, *, endpoint: str | None = None, retry: Retry = PATIENT
    ):
        """Shards lie in `folder` while they are read; `endpoint` is the address of another Hub than the public one."""
        self._repository = repository
        self._revision = revision
        self._folder = folder
        self._copy = folder / "hub"
        self._hub = huggingface_hub.HfApi(endpoint=endpoint)
        self._retry = retry

    def fetch(self, tracks: Sequence[Track]) -> Iterator[Fetched]:
        """The tracks, shard by shard. Raises `UserError` if there is no such dataset or no way to it."""
        wanted = {track.id: track for track in tracks}
        faults: dict[str, str] = {}
        info = self._ask(lambda: self._hub.dataset_info(self._repository, revision=self._revision))
        commit = info.sha or self._revision
        index = self._read_index()
        for shard in self._shards(commit):
            if not wanted:
                break
            name = f"{commit}/{shard.path}"
            if name not in index:
                index[name] = self._ids(commit, shard)
                self._note(name, index[name])
            if not wanted.keys().isdisjoint(index[name]):
                try:
                    yield from self._from_shard(commit, shard, wanted)
                except DownloadError as error:
                    faults |= dict.fromkeys(index[name], str(error))
        for track in wanted.values():
            yield Fetched(track, None, faults.get(track.id, f"no audio of it in {self._repository}"))
        shutil.rmtree(self._copy, ignore_errors=True)  # only the client's notes on files that are gone

    def _shards(self, commit: str) -> list[Shard]:
        tree = self._ask(
            lambda: list(
                self._hub.list_repo_tree(self._repository, "data", repo_type="dataset", revision=commit, recursive=True)
            )
        )
        shards = [
            Shard(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None)
            for entry in tree
            if isinstance(entry, huggingface_hub.hf_api.RepoFile) and entry.path.endswith(".parquet")
        ]
        if not shards:
            raise UserError(f"{self._repository} at {commit} has no parquet files in data/: choose another revision")
        return sorted(shards, key=lambda shard: shard.path)

    def _ids(self, commit: str, shard: Shard) -> list[str]:
        """The ids of a shard's tracks; only its footer and the column of paths are read."""
        address = f"datasets/{self._repository}@{commit}/{shard.path}"

        def read() -> list[str]:
            files = huggingface_hub.HfFileSystem(endpoint=self._hub.endpoint)
            with (
                files.open(address, block_size=_BLOCK) as stream,
                _schema(shard),
                pyarrow.parquet.ParquetFile(stream) as parquet,
            ):
                rows = parquet.read(columns=["audio.path"]).column("audio")
                return [_id_of(row["path"]) for row in rows.to_pylist() if row]

        return self._ask(read)

    def _from_shard(self, commit: str, shard: Shard, wanted: dict[str, Track]) -> Iterator[Fetched]:
        """The wanted tracks of one shard, which is on disk meanwhile. Raises `DownloadError` if it does not come."""
        with lent(self._copy / shard.path) as held:
            with writing(held):
                self._copy.mkdir(parents=True, exist_ok=True)
                self._bring(commit, shard)
            for name, sound in _rows(held, shard):
                if (track := wanted.get(name)) is None:
                    continue
                with lent(self._folder / f"{track.id}.mp3") as file:
                    with writing(file):
                        file.write_bytes(sound)
                    del wanted[name]
                    yield Fetched(track, file)

    def _bring(self, commit: str, shard: Shard) -> None:
        """Download a shard; a second time, if its checksum is not the published one."""
        for _ in range(2):
            file = self._ask(
                lambda: self._hub.hf_hub_download(
                    self._repository, shard.path, repo_type="dataset", revision=commit, local_dir=self._copy
                )
            )
            if shard.sha256 in (None, file_sha256(Path(file))):
                return
            Path(file).unlink()
        raise DownloadError(f"{shard.path}: {WRONG_CHECKSUM}")

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        """What the Hub answers, asked again while a failure may pass."""
        attempts = Attempts(f"{self._hub.endpoint}/datasets/{self._repository}", self._retry)
        while True:
            try:
                return question()
            except UserError:
                raise
            except (RepositoryNotFoundError, RevisionNotFoundError) as error:
                raise UserError(
                    f"the Hub has no dataset {self._repository} at revision {self._revision}, or not for you"
                ) from error
            except HfHubHTTPError as error:
                attempts.failed(self._passing(error))
            # The client lets through the errors of whatever HTTP library it is built on.
            except Exception as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                lost = isinstance(error, LocalEntryNotFoundError) or not isinstance(error, OSError)
                attempts.failed(TransientError(_first_line(error), whole_host=lost))

    def _passing(self, error: HfHubHTTPError) -> TransientError:
        status = error.response.status_code
        if status < 500 and status not in _PASSING:
            raise DownloadError(f"{self._repository}: {_first_line(error)}") from error
        return TransientError(f"the Hub answers {status}", whole_host=True)

    def _read_index(self) -> dict[str, list[str]]:
        """Ids by shard, as noted before; a line that was cut off is not used."""
        index: dict[str, list[str]] = {}
        with contextlib.suppress(OSError):
            for line in (self._folder / _INDEX).read_text().splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    noted = json.loads(line)
                    index[noted["shard"]] = noted["ids"]
        return index

    def _note(self, name: str, ids: list[str]) -> None:
        file = self._folder / _INDEX
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a") as stream:
                stream.write("\n" + json.dumps({"shard": name, "ids": ids}))


def _rows(file: Path, shard: Shard) -> Iterator[tuple[str, bytes]]:
    """Id and audio file of every row that has both, some rows at a time."""
    with _schema(shard), pyarrow.parquet.ParquetFile(file, buffer_size=_BUFFER) as parquet:
        for batch in parquet.iter_batches(_BATCH, columns=["audio.bytes", "audio.path"], use_threads=False):
            column = batch.column("audio")
            for row in range(len(column)):
                entry: dict[str, Any] = column[row].as_py() or {}
                if entry.get("bytes") and entry.get("path"):
                    yield _id_of(entry["path"]), entry["bytes"]


@contextlib.contextmanager
def _schema(shard: Shard) -> Iterator[None]:
    """What pyarrow says of a file that is no such shard, as a `UserError`."""
    try:
        yield
    except (pyarrow.ArrowException, KeyError, TypeError) as error:
        raise UserError(f"{shard.path} is no parquet file with audio.bytes and audio.path: {error}") from error


def _id_of(path: str | None) -> str:
    return PurePosixPath(path or "").stem


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
