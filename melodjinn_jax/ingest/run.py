"""The pipeline, defined once: scan every track, decide what becomes of it, make the codec, write the shards.

Everything unfinished lies in `.NAME.partial` beside the DATASET, so a run that was killed goes on where it was. Each
step is a pure function of what lies there, so the finished DATASET is the same whenever and wherever its parts were
made.
"""

import hashlib
import json
import math
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from melodjinn_jax.codecs import Codec, load_codec
from melodjinn_jax.data.audio import HOP_LENGTH, SAMPLE_RATE
from melodjinn_jax.data.dataset import MANIFEST, Dataset, is_taken, open_dataset, sha256_or_none
from melodjinn_jax.data.files import write_atomically
from melodjinn_jax.data.writer import Shard, complete_dataset
from melodjinn_jax.errors import UserError
from melodjinn_jax.ingest.codec import CodecOptions, check_options, make_codec
from melodjinn_jax.ingest.decide import Decision, Kept, Rejected, decide
from melodjinn_jax.ingest.fetch import Fetcher
from melodjinn_jax.ingest.local import NOT_FETCHED, LocalRunner
from melodjinn_jax.ingest.plan import Fractions, check_fractions
from melodjinn_jax.ingest.scan import Scan, read_scan
from melodjinn_jax.ingest.shards import DATASET, SHARDS, TRACKS, ShardTrack, ShardUnit, read_unit, split_units
from melodjinn_jax.ingest.summary import (
    REJECTED,
    SUMMARY,
    TRACK_LIST,
    provenance,
    summarize,
    to_json_lines,
    track_entries,
)
from melodjinn_jax.ingest.track import SPLITS, Plan, Track
from melodjinn_jax.ingest.workplace import claimed, os_errors_as_user_errors, partial_folder

_PIPELINE_VERSION = 2  # raise it when the same tracks give other records
_SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class IngestOptions(CodecOptions):
    """How tracks become a DATASET."""

    chunk_frames: int = 1125
    """Frames in one record (75 a second); a shorter track is rejected."""
    held_out: Fractions = field(default_factory=Fractions)
    """What is held out where the source has no official split."""
    max_rejected: float = 0.2
    """Share of the tracks that may be lost to damage before the run stops; short, silent and repeated ones aside."""
    workers: int = 0
    """Threads that decode; 0: one for each core."""
    beam: str = ""
    """Options of Apache Beam, for a cluster, such as "runner=FlinkRunner parallelism=8"; empty: this machine."""


class Runner(Protocol):
    """Where the work is done: `melodjinn_jax.ingest.local` or `melodjinn_jax.ingest.beam`."""

    def scan(self, tracks: Sequence[Track], fetcher: Fetcher, folder: Path, check: Callable[[Scan], None]) -> None: ...

    def write(self, units: Sequence[ShardUnit], folder: Path, codec: Codec) -> None: ...


def ingest(
    plan: Plan,
    fetcher: Fetcher,
    output: str | Path,
    options: IngestOptions | None = None,
    progress: Callable[[str], None] = print,
) -> Dataset:
    """The DATASET of a plan at `output`; opened if it was made before from the same plan and options.

    Raises:
      UserError: the options cannot work, `output` is taken or cannot be written, the disk is full, or more tracks are
        lost than `options.max_rejected` allows. What is done by then stays for the next try.
    """
    output, options = Path(output), options or IngestOptions()
    _check_options(options)
    if not plan.tracks:
        raise UserError(f"{plan.source} has no tracks: nothing can be made of it")
    fingerprint = _fingerprint(plan, options)
    partial = partial_folder(output)
    if is_taken(output) and not (output / MANIFEST).exists():
        raise UserError(f"{output} is not a DATASET, and nothing is written over it: choose another --output")
    if not is_taken(output):
        with os_errors_as_user_errors(output), claimed(partial, fingerprint):
            _make(plan, fetcher, output, options, _runner(options), progress)
    dataset = open_dataset(output).check_fingerprint(fingerprint)
    shutil.rmtree(partial, ignore_errors=True)
    return dataset


def _runner(options: IngestOptions) -> Runner:
    if not options.beam:
        return LocalRunner(options.workers)
    try:
        from melodjinn_jax.ingest.beam import BeamRunner  # it needs what only its users install
    except ImportError as error:
        raise UserError("--beam needs Apache Beam: pip install 'melodjinn-jax[beam]'") from error
    return BeamRunner(shlex.split(options.beam))


def _make(
    plan: Plan,
    fetcher: Fetcher,
    output: Path,
    options: IngestOptions,
    runner: Runner,
    progress: Callable[[str], None],
) -> None:
    folder = partial_folder(output)
    for name in (TRACKS, SHARDS, DATASET):
        (folder / name).mkdir(exist_ok=True)
    for stray in (folder / DATASET).glob(".*"):
        stray.unlink()  # what a killed run was writing is no part of the DATASET
    if options.codec != "fitted":
        codec = _codec((), folder, options, progress)  # what it may lack shows now and not after hours of work
        if options.chunk_frames < codec.start_frames:
            raise UserError(
                f"--chunk-frames {options.chunk_frames}: the codec {options.codec} needs at least {codec.start_frames}"
            )
    scans = _scans(plan, fetcher, folder, options, runner, progress)
    decision = decide(plan.tracks, scans, options.chunk_frames * HOP_LENGTH, options.held_out)
    _write_rejected(decision, folder, progress)
    codec = _codec(decision.kept, folder, options, progress)
    write_atomically(folder / DATASET / TRACK_LIST, to_json_lines(track_entries(plan.source, decision.kept)))
    units = _units(plan.source, decision.kept, options.chunk_frames, codec)
    progress(f"encoding {sum(kept.scan.samples for kept in decision.kept) / SAMPLE_RATE / 3600:.2f} hours")
    runner.write(units, folder, codec)
    written = [done for unit in units if (done := read_unit(unit, folder))]
    splits: dict[str, list[Shard]] = {}
    for unit, (shard, _) in zip(units, written, strict=True):
        splits.setdefault(unit.split, []).append(shard)
    summary = summarize(plan, decision, [counts for _, counts in written])
    write_atomically(folder / DATASET / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
    complete_dataset(folder / DATASET, output, codec=codec, fingerprint=_fingerprint(plan, options), splits=splits)


def _scans(
    plan: Plan,
    fetcher: Fetcher,
    folder: Path,
    options: IngestOptions,
    runner: Runner,
    progress: Callable[[str], None],
) -> dict[str, Scan]:
    """The scans of all tracks; those that are there already are not made again.

    What could not be fetched is tried again until the tracks are decided on: then what is out stays out.
    """
    losses = _Losses(len(plan.tracks), options.max_rejected)
    undecided, todo = not (folder / DATASET / REJECTED).exists(), []
    for track in plan.tracks:
        scan = read_scan(folder / TRACKS, track.id)
        if scan is None or (undecided and (scan.reason or "").startswith(NOT_FETCHED)):
            todo.append(track)
        else:
            losses.count(scan)
    progress(f"decoding {len(todo)} of {len(plan.tracks)} tracks")
    if todo:
        runner.scan(todo, fetcher, folder / TRACKS, losses.count)
    scans = {track.id: read_scan(folder / TRACKS, track.id) for track in plan.tracks}
    missing = [name for name, scan in scans.items() if scan is None]
    if missing:
        raise UserError(f"{plan.source} brought nothing for {len(missing)} tracks, {missing[0]} first: try again")
    return {name: scan for name, scan in scans.items() if scan}


class _Losses:
    """Counts tracks that are lost to damage. Raises `UserError` as soon as they are too many."""

    def __init__(self, tracks: int, most: float):
        self._tracks, self._most = tracks, most
        self._lost: list[Rejected] = []

    def count(self, scan: Scan) -> None:
        rejected = Rejected(scan.id, "", scan.reason or "")
        if scan.reason is None or not rejected.is_loss:
            return
        self._lost.append(rejected)
        if len(self._lost) > self._most * self._tracks:
            raise UserError(
                f"more than {self._most:g} of the {self._tracks} tracks are lost ({_kinds(self._lost)}; the last is "
                f"{scan.id}, {scan.reason}): mend the source, or allow more with --max-rejected"
            )


def _kinds(rejected: Sequence[Rejected]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(one.kind for one in rejected).most_common())


def _write_rejected(decision: Decision, folder: Path, progress: Callable[[str], None]) -> None:
    file = (folder / DATASET if decision.kept else folder) / REJECTED
    write_atomically(file, to_json_lines([asdict(one) for one in decision.rejected]))
    if not decision.kept:
        raise UserError(f"none of the tracks can be used ({_kinds(decision.rejected)}): {file} says why of each")
    if decision.rejected:
        progress(f"{len(decision.rejected)} tracks rejected: {_kinds(decision.rejected)}")
    groups = {kept.same_as for kept in decision.kept if kept.same_as}
    if groups:
        progress(f"{len(groups)} recordings are there more than once: each stays in one split")
    if decision.shares_artists:
        progress("too few artists to hold any out: tracks of one artist are in several splits")


def _codec(train: Sequence[Kept], folder: Path, options: IngestOptions, progress: Callable[[str], None]) -> Codec:
    """The codec that an interrupted run left, or a new one."""
    place = folder / DATASET / "codec"
    if not place.exists():
        progress(f"making the codec: {options.codec}")
        train = [kept for kept in train if kept.track.split == "train"]
        codec = make_codec(options, train, folder / TRACKS, progress)
        partial = folder / "codec.partial"
        shutil.rmtree(partial, ignore_errors=True)
        codec.save(partial)
        partial.rename(place)
    return load_codec(place)


def _units(source: str, kept: Sequence[Kept], chunk_frames: int, codec: Codec) -> list[ShardUnit]:
    """The shards of all splits that have tracks, of about equal size."""
    units = []
    for split in SPLITS:
        tracks = [
            ShardTrack(one.track.id, one.scan.start, one.scan.samples, provenance(source, one))
            for one in kept
            if one.track.split == split
        ]
        frames = sum(track.samples for track in tracks) / HOP_LENGTH
        num_shards = math.ceil(frames * 2 * (HOP_LENGTH + codec.num_codebooks) / _SHARD_BYTES)
        units += split_units(split, tracks, num_shards, chunk_frames)
    return units


def _check_options(options: IngestOptions) -> None:
    check_options(options)
    check_fractions(options.held_out)
    if options.chunk_frames < 1:
        raise UserError(f"--chunk-frames {options.chunk_frames}: it must be at least 1")
    if not 0 <= options.max_rejected <= 1:
        raise UserError(f"--max-rejected {options.max_rejected:g}: it must be from 0 to 1")
    if options.workers < 0:
        raise UserError(f"--workers {options.workers}: it must not be negative")


def _fingerprint(plan: Plan, options: IngestOptions) -> dict[str, Any]:
    """All that the records depend on: the plan, and the options that matter."""
    tracks = json.dumps([asdict(track) for track in plan.tracks], sort_keys=True, default=dict)
    chosen = asdict(options)
    del chosen["max_rejected"], chosen["workers"], chosen["beam"]
    del chosen["bandwidth" if options.codec == "fitted" else "fit"]
    # By their content, so that other weights are another DATASET, wherever the file lies.
    weights = chosen.pop("codec_weights")
    if weights:
        chosen["codec_weights"] = sha256_or_none(Path(weights))
    return {
        "ingest": _PIPELINE_VERSION,
        "source": plan.source,
        "tracks": hashlib.sha256(tracks.encode()).hexdigest(),
        "options": chosen,
    }
