"""From a folder of MP3s to a DATASET: how many times faster than the music lasts.

    python benchmarks/ingest.py --hours 1
    python benchmarks/ingest.py --codec encodec_24khz --codec-weights FILE

Makes a folder of MP3s first, of the recordings in ../shared/data/music at other speeds and backwards, so that each is
another one to the search for duplicates. Prints the wall time of each stage, the whole with and without the fit of the
codec (which costs the same for any amount of music), and the CPU time, for a machine that others use too.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import soundfile

from melodjinn_jax.ingest.fetch import LocalFolder
from melodjinn_jax.ingest.run import IngestOptions, ingest
from melodjinn_jax.ingest.sources.folder import plan_folder

MUSIC = Path(__file__).resolve().parents[2] / "shared" / "data" / "music"
SPEEDS = (44100, 48000, 32000)


def make_collection(folder: Path, hours: float) -> float:
    """Write MP3s of about so many hours; returns the hours there are."""
    folder.mkdir()
    seconds = 0.0
    for variant in range(100):
        rate, backwards = SPEEDS[variant % len(SPEEDS)], variant // len(SPEEDS)
        for source in sorted(MUSIC.glob("ds10_*.mp3")):
            if "320k" in source.name:
                continue
            if seconds >= 3600 * hours:
                return seconds / 3600
            sound, _ = soundfile.read(source, dtype="float32", always_2d=True)
            sound = sound[::-1] if backwards % 2 else sound
            artist = folder / source.stem
            artist.mkdir(exist_ok=True)
            soundfile.write(artist / f"{variant}.mp3", 0.6 * sound[variant // 6 * rate :], rate)
            seconds += len(sound) / rate
    return seconds / 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--codec", default="fitted", choices=["fitted", "encodec_24khz"])
    parser.add_argument("--codec-weights", default="")
    parser.add_argument("--bandwidth", type=float, default=3.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        hours = make_collection(Path(folder) / "mp3", arguments.hours)
        options = IngestOptions(
            codec=arguments.codec, codec_weights=arguments.codec_weights, bandwidth=arguments.bandwidth
        )
        marks: list[tuple[float, str]] = []
        began, cpu = time.monotonic(), time.process_time()
        plan = plan_folder(Path(folder) / "mp3")
        dataset = ingest(
            plan,
            LocalFolder(Path(folder) / "mp3"),
            Path(folder) / "dataset",
            options,
            progress=lambda line: marks.append((time.monotonic(), line)),
        )
        ended, cpu = time.monotonic(), time.process_time() - cpu
        records = sum(dataset.info.records.values())
    print(f"{hours:.2f} hours of MP3, {len(plan.tracks)} files, {records} records, load {os.getloadavg()[0]:.1f}")
    stages = [(moment, line) for moment, line in marks if line.startswith(("decoding", "making", "encoding"))]
    spent: dict[str, float] = {}
    for (moment, line), (following, _) in zip(stages, [*stages[1:], (ended, "done")], strict=True):
        spent[line.split()[0]] = spent.get(line.split()[0], 0.0) + following - moment
    seconds = 3600 * hours
    for stage, time_spent in spent.items():
        print(f"{stage}: {time_spent:.1f} s, {seconds / time_spent:.0f} times real time")
    whole = ended - began
    print(
        f"all: {whole:.1f} s, {seconds / whole:.0f} times real time; {cpu:.1f} CPU seconds, {seconds / cpu:.0f} times"
    )
    print(f"without making the codec: {seconds / (whole - spent.get('making', 0.0)):.0f} times real time")


if __name__ == "__main__":
    main()
