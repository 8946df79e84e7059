"""JamendoMaxCaps: python -m data_pipelines.jamendo_maxcaps --metadata FOLDER_OF_JSONL --tags techno --plan."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from melodjinn_jax.errors import reports_user_errors
from melodjinn_jax.ingest.command import run_source
from melodjinn_jax.ingest.fetch import Fetcher
from melodjinn_jax.ingest.links import Links
from melodjinn_jax.ingest.sources import jamendo_maxcaps
from melodjinn_jax.ingest.track import Plan


@dataclass(frozen=True)
class Source:
    """JamendoMaxCaps: tracks by genre, split by artist, a licence for each track."""

    metadata: Path
    """Folder of the files YYYY-MM-DD.jsonl, or one of them."""
    tags: tuple[str, ...] = ()
    """Keep the tracks that have any of these genres, such as techno minimaltechno; all, if none is given."""
    audio_from: Literal["links", "hub"] = "links"
    """Download each track from its own address at Jamendo, or read it out of the dataset's shards on the Hub."""
    repository: str = "amaai-lab/JamendoMaxCaps"
    """The dataset on the Hub."""
    revision: str = "main"
    """Revision of the dataset on the Hub; name a commit to have the same one again."""
    connections: int = 4
    """Tracks that are downloaded at the same time from their own addresses."""

    def plan(self) -> Plan:
        """The tracks that have the genres."""
        return jamendo_maxcaps.read_plan(self.metadata, self.tags)

    def fetcher(self, folder: Path) -> Fetcher:
        """Track by track, or out of the shards."""
        if self.audio_from == "hub":
            from melodjinn_jax.ingest.hub import HubShards  # it brings the client of the Hub along

            return HubShards(self.repository, self.revision, folder)
        return Links(jamendo_maxcaps.download_address, folder, workers=self.connections)


@reports_user_errors
def main(args: list[str] | None = None) -> None:
    """Run the command with `args`, or those of the command line."""
    run_source(Source, args, prog="python -m data_pipelines.jamendo_maxcaps")


if __name__ == "__main__":
    sys.exit(main())
