"""The pipeline's work on a cluster, by Apache Beam: the same units, so the same bytes on the same kind of device.

Every worker must see the folder of the DATASET under the same path (a network file system), and, of a local source, the
audio. Beam only hands out the work: what is done lies in files, so a job that failed goes on where it was. Needs the
extra `beam`.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from melodjinn_jax.codecs import Codec, load_codec
from melodjinn_jax.ingest.fetch import Fetcher
from melodjinn_jax.ingest.local import scan_fetched
from melodjinn_jax.ingest.scan import Scan, read_scan
from melodjinn_jax.ingest.shards import DATASET, ShardUnit, write_unit
from melodjinn_jax.ingest.track import Track

_GROUP = 64
"""Tracks that one worker fetches one after another."""


class BeamRunner:
    """Does the units of work of both passes as Beam jobs; `options` are Beam's own, such as `runner=FlinkRunner`."""

    def __init__(self, options: Sequence[str]):
        self._options = [f"--{option}" for option in options]

    def scan(self, tracks: Sequence[Track], fetcher: Fetcher, folder: Path, check: Callable[[Scan], None]) -> None:
        """Scan tracks into `folder`. `check` sees every scan when all are done."""
        # By their places, so that the tracks of one archive are fetched by few workers.
        ordered = sorted(tracks, key=lambda track: track.location)
        groups = [ordered[start : start + _GROUP] for start in range(0, len(ordered), _GROUP)]
        self._run("scan", groups, _Scan(fetcher, folder))
        for track in tracks:
            if scan := read_scan(folder, track.id):
                check(scan)

    def write(self, units: Sequence[ShardUnit], folder: Path, codec: Codec) -> None:
        """Write the shards, with the codec that lies in `folder`."""
        self._run("write", units, _Write(folder))

    def _run(self, name: str, work: Sequence[object], function: beam.DoFn) -> None:
        with beam.Pipeline(options=PipelineOptions(self._options)) as pipeline:
            _ = pipeline | beam.Create(work) | beam.Reshuffle() | name >> beam.ParDo(function)


class _Scan(beam.DoFn):
    def __init__(self, fetcher: Fetcher, folder: Path):
        self._fetcher, self._folder = fetcher, folder

    def process(self, tracks: Sequence[Track]) -> Iterator[None]:
        for fetched in self._fetcher.fetch(tracks):
            scan_fetched(fetched, self._folder)
        return iter(())


class _Write(beam.DoFn):
    def __init__(self, folder: Path):
        self._folder = folder

    def setup(self) -> None:
        self._codec = load_codec(self._folder / DATASET / "codec")

    def process(self, unit: ShardUnit) -> Iterator[None]:
        write_unit(unit, self._folder, self._codec)
        return iter(())
