"""Nearly three hours of freely licensed game music, as a folder to make a DATASET of.

    python benchmarks/free_music.py --output FOLDER
    python -m data_pipelines.folder --input FOLDER --output data/games --chunk-frames 512 --fit.codebook-size 256 \
        --held-out.validation .05 --held-out.test .2

Fetches single files of six public repositories with git, each at one commit, into FOLDER/PROJECT_TRACK/FILE: a folder
of its own for each, so that the artists that the files name, or else the files, are kept apart. What is there is kept.
The music has its authors' licences, which the repositories name: Creative Commons with attribution, mostly share-alike,
and the GPL. Files of 4 MB and more are left out.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class Source(NamedTuple):
    """A folder of a repository at one commit, and tracks in it."""

    project: str
    repository: str
    commit: str
    folder: str
    suffix: str
    tracks: str
    """Names of files below the folder without their suffix, with spaces between."""


SOURCES = (
    Source(
        "beat-feet",
        "beat-feet/beat-feet",
        "77985c10eb19c7db811b44f56a4b2b48cb56337e",
        "android/assets/songs/mp3",
        ".mp3",
        "health_and_safety_contact_with_dust_and_lint health_and_safety_convulsions health_and_safety_eye_twitching "
        "health_and_safety_forcing_the_gamecard health_and_safety_light_flashes health_and_safety_maintenance "
        "health_and_safety_play_in_a_well_lit_room health_and_safety_regulations_for_equipment_use "
        "health_and_safety_sharply_bent_wire the_haunted_mansion_the_ballroom the_haunted_mansion_the_courtyard "
        "the_haunted_mansion_the_exercise_room the_haunted_mansion_the_laundry_room vivaldi",
    ),
    Source(
        "beatgame",
        "bydariogamer/beatgame",
        "79ca300cc23b5dc5a6f4e49dcee604601ec273a5",
        "assets/songs",
        ".ogg",
        "doomed flags great_mission piloting_waves spacetime twists waking_the_devil warped",
    ),
    Source(
        "opensurge",
        "alemart/opensurge",
        "bcb3466e10913f2d5f34dec848e0c2f3ee944883",
        "musics",
        ".ogg",
        "boss citychill gimacian intro invincible menu options sharp sunshine theme waterworks winning_plusplus",
    ),
    Source(
        "openclonk",
        "openclonk/openclonk",
        "db975b4a887883f4413d1ce3181f303d83ee0ab5",
        "planet/Music.ocg",
        ".ogg",
        "@CrushedIceCocktail Cavern LucidDream Motorway Offshore UrbanBolero",
    ),
    Source(
        "tsc",
        "Secretchronicles/TSC",
        "6cd32717a940924e70458662ad3082c5a1a6f6ee",
        "tsc/data/music",
        ".ogg",
        "game/bossbattle_2 game/bossbattle_3 game/star land/castle_1 land/castle_2 land/cave_1 land/cave_2 land/cave_3 "
        "land/factory_1 land/factory_2 land/ghost_2 land/holdon_1 land/hyper_1 land/hyper_2 land/land_1 land/land_2 "
        "land/land_3 land/land_4 land/land_5 land/lost land/medieval_1 land/reunion_1 land/revenge land/snow_1 "
        "land/snow_2 land/sprinting land/waterway_1 overworld/bonus_1 story/theme_1 story/tutorial",
    ),
    Source(
        "unknown-horizons",
        "unknown-horizons/unknown-horizons",
        "fdc8e9692a46d1248af201c2c676c5239ee043e7",
        "content/audio/music",
        ".ogg",
        "goldenvalley menu/main_theme music music2 newfrontier nightdream seafight",
    ),
)


def fetch(source: Source, output: Path) -> int:
    """Bring the tracks of a source that are not there yet; how many are there then."""
    places = {}
    for track in source.tracks.split():
        path = PurePosixPath(source.folder, track + source.suffix)
        places[str(path)] = output / f"{source.project}_{path.stem}" / path.name
    missing = {path: place for path, place in places.items() if not place.exists()}
    if missing:
        with tempfile.TemporaryDirectory() as scratch:
            url = f"https://github.com/{source.repository}"
            git(scratch, "init", "-q")
            git(scratch, "remote", "add", "origin", url)
            # Without blobs; those that are checked out come on demand.
            git(scratch, "fetch", "-q", "--depth", "1", "--filter=blob:none", "origin", source.commit)
            git(scratch, "checkout", "-q", source.commit, "--", *missing)
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
    arguments = parser.parse_args()
    for source in SOURCES:
        print(f"{source.project}: {fetch(source, arguments.output)} recordings", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
