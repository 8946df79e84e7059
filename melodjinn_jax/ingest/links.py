"""Tracks whose audio has an address of its own: a few downloads at a time, each resumed and verified."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.download import Expected, download
from melodjinn_jax.ingest.fetch import Fetched, lent, tidied
from melodjinn_jax.ingest.track import Track
from melodjinn_jax.ingest.transport import PATIENT, DownloadError, Retry

MIN_SIZE = 4096  # bytes; less is a message, not music


class Links:
    """Downloads every track from its address, `workers` at a time; at most that many files are on disk."""

    def __init__(self, address_of: Callable[[Track], str], folder: Path, *, workers: int = 4, retry: Retry = PATIENT):
        if workers < 1:
            raise UserError(f"--connections {workers}: it must be at least 1")
        self._address_of = address_of
        self._folder = folder
        self._workers = workers
        self._retry = retry

    def fetch(self, tracks: Sequence[Track]) -> Iterator[Fetched]:
        """The tracks, in their order. What did not come whole is resumed the next time."""
        waiting = iter(tracks)
        running: deque[Future[Fetched]] = deque()
        with tidied(self._folder), ThreadPoolExecutor(self._workers) as pool:
            try:
                while True:
                    while len(running) < self._workers and (track := next(waiting, None)) is not None:
                        running.append(pool.submit(self._bring, track))
                    if not running:
                        break
                    fetched = running.popleft().result()
                    with lent(self._file(fetched.track)):
                        yield fetched
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _file(self, track: Track) -> Path:
        return self._folder / f"{track.id}{Path(track.location).suffix}"

    def _bring(self, track: Track) -> Fetched:
        address = self._address_of(track)
        if not address:
            return Fetched(track, None, "no address to download from")
        file = self._file(track)
        try:
            download(address, file, Expected(sha256=track.sha256, min_size=MIN_SIZE), self._retry)
        except DownloadError as error:
            return Fetched(track, None, str(error))
        return Fetched(track, file)
