"""The pipeline's work on one machine: threads decode on all cores, JAX encodes."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from tqdm import tqdm

from melodjinn_jax.codecs import Codec
from melodjinn_jax.ingest.decode import quiet_decoders
from melodjinn_jax.ingest.fetch import Fetched, Fetcher
from melodjinn_jax.ingest.scan import Scan, scan_track, write_scan
from melodjinn_jax.ingest.shards import ShardUnit, write_unit
from melodjinn_jax.ingest.track import Track

NOT_FETCHED = "not fetched"
"""The kind of rejection that another try may mend."""
_PIECE = 1 << 20  # bytes


class LocalRunner:
    """Does the units of work of both passes here.

    `workers` threads decode; 0: one for each core.
    """

    def __init__(self, workers: int = 0):
        self._workers = workers or os.cpu_count() or 1

    def scan(self, tracks: Sequence[Track], fetcher: Fetcher, folder: Path, check: Callable[[Scan], None]) -> None:
        """Scan tracks into `folder`. `check` sees every scan and may stop the work by raising.

        Raises `OSError` if `folder` cannot be written.
        """
        running: set[Future[Scan]] = set()
        with (
            quiet_decoders() as terminal,
            tqdm(total=len(tracks), desc="decoding", unit=" tracks", file=terminal, disable=None) as bar,
            ThreadPoolExecutor(self._workers) as pool,
        ):
            try:
                for fetched in fetcher.fetch(tracks):
                    # The file may be gone when the next one is asked for, so the thread gets a name of its own for it.
                    running.add(pool.submit(_scan_borrowed, _borrow(fetched, folder), folder))
                    running = _collect(running, 2 * self._workers, check, bar)
                _collect(running, 1, check, bar)
            finally:
                pool.shutdown(cancel_futures=True)

    def write(self, units: Sequence[ShardUnit], folder: Path, codec: Codec) -> None:
        """Write the shards. Raises `OSError` if `folder` cannot be written."""
        seconds = sum(track.samples for unit in units for track in unit.tracks) / codec.sample_rate
        with tqdm(total=round(seconds / 60), desc="encoding", unit=" min", disable=None) as bar:
            for unit in units:
                minutes = unit.chunk_frames * codec.hop_length / codec.sample_rate / 60
                write_unit(unit, folder, codec, functools.partial(bar.update, minutes))


def _collect(running: set[Future[Scan]], most: int, check: Callable[[Scan], None], bar: tqdm) -> set[Future[Scan]]:
    """Wait until fewer than `most` are running."""
    while len(running) >= most:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            check(future.result())
            bar.update()
    return running


def _borrow(fetched: Fetched, folder: Path) -> Fetched:
    """The same file under a name in `folder`; a reason, if it cannot be read. Raises `OSError` if `folder` is full."""
    if fetched.path is None:
        return fetched
    own = folder / f".{fetched.track.id}.source{fetched.path.suffix}"
    own.unlink(missing_ok=True)
    try:
        os.link(fetched.path.resolve(), own)
    except OSError:  # another file system, or one without links
        try:
            _copy(fetched.path, own)
        except _UnreadableError as error:
            own.unlink(missing_ok=True)
            return Fetched(fetched.track, None, f"it cannot be read ({error})")
    return Fetched(fetched.track, own)


class _UnreadableError(Exception):
    """A source, and not the place that it is copied to, fails."""


def _copy(source: Path, target: Path) -> None:
    with open(target, "wb") as output:
        for piece in _pieces(source):
            output.write(piece)


def _pieces(file: Path) -> Iterator[bytes]:
    try:
        with open(file, "rb") as stream:
            while piece := stream.read(_PIECE):
                yield piece
    except OSError as error:
        raise _UnreadableError(error.strerror or error) from error


def _scan_borrowed(borrowed: Fetched, folder: Path) -> Scan:
    try:
        return scan_fetched(borrowed, folder)
    finally:
        if borrowed.path:
            borrowed.path.unlink(missing_ok=True)


def scan_fetched(fetched: Fetched, folder: Path) -> Scan:
    """Scan what was fetched, or keep why it could not be had."""
    if fetched.path:
        return scan_track(fetched.track, fetched.path, folder)
    scan = Scan(fetched.track.id, reason=f"{NOT_FETCHED}: {fetched.reason}")
    write_scan(folder, scan)
    return scan
