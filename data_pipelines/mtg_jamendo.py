"""MTG-Jamendo: python -m data_pipelines.mtg_jamendo --metadata autotagging_genre.tsv --tags genre---techno --plan."""

import sys
from dataclasses import dataclass
from pathlib import Path

from melodjinn_jax.errors import reports_user_errors
from melodjinn_jax.ingest.archives import NumberedTars
from melodjinn_jax.ingest.command import run_source
from melodjinn_jax.ingest.sources import mtg_jamendo
from melodjinn_jax.ingest.track import Plan

ARCHIVES = "https://cdn.freesound.org/mtg-jamendo/raw_30s"


@dataclass(frozen=True)
class Source:
    """MTG-Jamendo: tracks by tag, official splits, a licence for each track."""

    metadata: Path
    """A TSV of the dataset's repository, such as data/autotagging_genre.tsv; what lies beside it there is used too."""
    tags: tuple[str, ...] = ()
    """Keep the tracks that have any of these tags, such as genre---techno genre---house; all, if none is given."""
    split: int | None = None
    """Number of the official split (0 to 4), from splits/ beside the TSV; by default 0 if it is there."""
    licences: Path | None = None
    """audio_licenses.txt, if it does not lie in the repository beside the TSV."""
    checksums: Path | None = None
    """raw_30s_audio_sha256_tracks.txt, if it does not lie in the repository beside the TSV."""
    quality: mtg_jamendo.Quality = "audio"
    """The audio as it was (320 kb/s, 508 GB in all), or smaller mono files (156 GB in all)."""
    address: str = ARCHIVES
    """Address of the folder of archives."""

    def plan(self) -> Plan:
        """The tracks that have the tags."""
        companions = mtg_jamendo.find_companions(
            self.metadata,
            split=self.split,
            licences=self.licences,
            checksums=self.checksums,
            quality=self.quality,
        )
        return mtg_jamendo.read_plan(self.metadata, self.tags, companions, self.quality)

    def fetcher(self, folder: Path) -> NumberedTars:
        """Out of the hundred tars."""
        return NumberedTars(f"{self.address}/{self.quality}/raw_30s_{self.quality}-{{number}}.tar", folder)


@reports_user_errors
def main(args: list[str] | None = None) -> None:
    """Run the command with `args`, or those of the command line."""
    run_source(Source, args, prog="python -m data_pipelines.mtg_jamendo")


if __name__ == "__main__":
    sys.exit(main())
