"""Real one-shots instead of synthetic drums: success over trios of recordings.

    python benchmarks/one_shots.py --drums ../shared/data/drums

The folder holds the recordings named below (CC0 or public domain: Sonic Pi's samples, TR-505). The first trio runs
five seeds, the others one each, and one trio again with random velocities. Finished runs are kept in --output and not
trained again: after a change of the experiment give another.
"""

import argparse
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from seeds import ROOT, Suite, show, train

EXPERIMENT = "experiments/one_shots.py"
TRIOS = {
    "pure-zome-gem": ("bd_pure.flac", "sn_zome.flac", "hat_gem.flac"),
    "haus-dub-cab": ("bd_haus.flac", "sn_dub.flac", "hat_cab.flac"),
    "808-elec-closed": ("bd_808.flac", "elec_snare.flac", "drum_cymbal_closed.flac"),
    "tr505": ("tr505-kick.wav", "tr505-snare.wav", "tr505-hihat-closed.wav"),
    "klub-snap-psych": ("bd_klub.flac", "perc_snap.flac", "hat_psych.flac"),
    "heavy-hard-open": ("drum_heavy_kick.flac", "drum_snare_hard.flac", "drum_cymbal_open.flac"),
    "fat-clap-metal": ("bd_fat.flac", "tr505-clap.wav", "hat_metal.flac"),
    "boom-fuzz-snap2": ("bd_boom.flac", "elec_fuzz_tom.flac", "perc_snap2.flac"),
}


def plan(drums: Path, output: Path) -> dict[str, tuple[Suite, int]]:
    """The runs of every trio: overrides with its folder, and how many seeds."""
    runs: dict[str, tuple[Suite, int]] = {}
    for name, files in TRIOS.items():
        folder = output / "one_shots" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(drums / file, folder / file)
        runs[name] = Suite(f"--data.one-shots {folder}", 0, EXPERIMENT), 5 if name == "pure-zome-gem" else 1
    folder = output / "one_shots" / "pure-zome-gem"
    runs["pure-zome-gem, velocity .5 to 1"] = (
        Suite(f"--data.one-shots {folder} --data.min-velocity 0.5", 0, EXPERIMENT),
        3,
    )
    return runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drums", type=Path, required=True, help="folder with the recordings")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "one_shots")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    arguments = parser.parse_args()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        runs = {}
        for name, (suite, seeds) in plan(arguments.drums, arguments.output.resolve()).items():
            folder = name.replace(" ", "_")
            runs[name] = [pool.submit(train, folder, suite, seed, arguments.output, []) for seed in range(seeds)]
        for name, jobs in runs.items():
            show(name, [job.result() for job in jobs])
    return 0


if __name__ == "__main__":
    sys.exit(main())
