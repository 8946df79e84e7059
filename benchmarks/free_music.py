"""Six hours of freely licensed game music, as a folder to make a DATASET of.

    python benchmarks/free_music.py --output FOLDER
    python -m data_pipelines.folder --input FOLDER --output data/games --chunk-frames 512 --fit.codebook-size 256 \
        --held-out.validation .05 --held-out.test .2

Fetches single files (benchmarks/free_music.tsv) of public repositories with git, each at one commit, into
FOLDER/PROJECT_ARTIST/FILE, or PROJECT_TRACK/FILE where no artist is known: so that artists, or else tracks, are kept
apart. What is there is kept. The music has its authors' licences, which the repositories or the files' authors name:
public domain, Creative Commons with attribution, some of it share-alike, and the GPL. Files of 4 MB and more are left
out.
"""

import argparse
import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECTS = {
    "beat-feet": ("beat-feet/beat-feet", "77985c10eb19c7db811b44f56a4b2b48cb56337e"),
    "beatgame": ("bydariogamer/beatgame", "79ca300cc23b5dc5a6f4e49dcee604601ec273a5"),
    "cdogs": ("cxong/cdogs-sdl", "bb7e16ce765610d705f7c3e190ddcd4a81f3b371"),
    "neverball": ("Neverball/neverball", "28bbda3627f659e95520b25b16591bd9c5f9b978"),
    "openclonk": ("openclonk/openclonk", "db975b4a887883f4413d1ce3181f303d83ee0ab5"),
    "opensurge": ("alemart/opensurge", "bcb3466e10913f2d5f34dec848e0c2f3ee944883"),
    "tmw": ("themanaworld/tmw-music", "c7004f9805e4d5a19a05fc252bf00769b395068e"),
    "tsc": ("Secretchronicles/TSC", "6cd32717a940924e70458662ad3082c5a1a6f6ee"),
    "tuxemon": ("Tuxemon/Tuxemon", "ca9b3362e158f31619a508cafc87b5be131a05c0"),
    "unknown-horizons": ("unknown-horizons/unknown-horizons", "fdc8e9692a46d1248af201c2c676c5239ee043e7"),
    "valyria": ("ValyriaTear/ValyriaTear", "1c882efff325c941c59aa59c93fb1256258ac845"),
}
"""The repository of each project, and the commit."""
TRACKS = Path(__file__).with_suffix(".tsv")


def fetch(project: str, output: Path) -> int:
    """Bring the tracks of a project that are not there yet; how many are there then."""
    with TRACKS.open(newline="") as table:
        rows = [row for row in csv.DictReader(table, delimiter="\t") if row["project"] == project]
    places = {row["path"]: output / row["folder"] / Path(row["path"]).name for row in rows}
    missing = {path: place for path, place in places.items() if not place.exists()}
    if missing:
        repository, commit = PROJECTS[project]
        with tempfile.TemporaryDirectory() as scratch:
            git(scratch, "init", "-q")
            git(scratch, "remote", "add", "origin", f"https://github.com/{repository}")
            # Without blobs; those that are checked out come on demand.
            git(scratch, "fetch", "-q", "--depth", "1", "--filter=blob:none", "origin", commit)
            git(scratch, "checkout", "-q", commit, "--", *missing)
            for path, place in missing.items():
                place.parent.mkdir(parents=True, exist_ok=True)
                unfinished = place.with_name(f"{place.name}.part")
                shutil.copyfile(Path(scratch, path), unfinished)
                unfinished.rename(place)
    return len(places)


def git(folder: str, *arguments: str) -> None:
    """Run git in a folder."""
    done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"git {arguments[0]} failed: {' '.join(done.stderr.split())}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the recordings")
    parser.add_argument("--projects", nargs="+", choices=PROJECTS, default=list(PROJECTS), help="of these games only")
    arguments = parser.parse_args()
    for project in arguments.projects:
        print(f"{project}: {fetch(project, arguments.output)} recordings", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
