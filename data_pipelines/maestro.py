"""MAESTRO v3, 199 h of piano: python -m data_pipelines.maestro --metadata maestro-v3.0.0.csv --plan."""

import sys
from dataclasses import dataclass
from pathlib import Path

from melodjinn_jax.errors import reports_user_errors
from melodjinn_jax.ingest.archives import OneZip
from melodjinn_jax.ingest.command import run_source
from melodjinn_jax.ingest.sources import maestro
from melodjinn_jax.ingest.track import Plan

ZIP = "https://storage.googleapis.com/magentadata/datasets/maestro/v3.0.0/maestro-v3.0.0.zip"


@dataclass(frozen=True)
class Source:
    """MAESTRO: its own splits, CC BY-NC-SA 4.0."""

    metadata: Path
    """maestro-v3.0.0.csv, or the JSON file of that name."""
    address: str = ZIP
    """Address of the zip of all recordings; only the wanted ones are asked for if its server allows that."""
    sha256: str = ""
    """SHA-256 of the zip: then all of it is downloaded, checked and kept."""

    def plan(self) -> Plan:
        """All recordings."""
        return maestro.read_plan(self.metadata)

    def fetcher(self, folder: Path) -> OneZip:
        """Out of the zip."""
        return OneZip(self.address, folder, self.sha256 or None)


@reports_user_errors
def main(args: list[str] | None = None) -> None:
    """Run the command with `args`, or those of the command line."""
    run_source(Source, args, prog="python -m data_pipelines.maestro")


if __name__ == "__main__":
    sys.exit(main())
