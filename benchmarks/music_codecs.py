"""How good are the fitted codecs on music? Fits them on recordings, listens to others, prints a table.

    python benchmarks/music_codecs.py
    python benchmarks/music_codecs.py --music FOLDER --held-out FOLDER --codebooks 4
    python benchmarks/music_codecs.py --encodec-weights model.safetensors

Without --music the recordings are those of ../shared/data: fitted on four tracks by one artist and every other loop,
measured on two more tracks by that artist (`same`), four recordings by others (`other`), the loops between, 4 s of each
(`loops`), and one-shots, half a second of each (`drums`); at most 20 s. Columns: rate; signal-to-noise ratio in dB;
log-spectral distance (root mean square over frequency of the difference of levels, averaged over windows of 1024
samples, levels below -60 dB taken as -60 dB) and log-mel distance in dB, the same over 64 bands and windows together;
CPU and wall seconds of the fit.
"""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.signal

from melodjinn_jax.codecs import Codec, EncodecCodec, FittedCodec, MusicCodec, fit_codec
from melodjinn_jax.codecs.encodec import BANDWIDTHS
from melodjinn_jax.config import CodecConfig
from melodjinn_jax.data.audio import AUDIO_SUFFIXES, HOP_LENGTH, SAMPLE_RATE, load_audio
from melodjinn_jax.evaluation.measures import logmel_distance
from melodjinn_jax.ingest.codec import CodecOptions

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TRACKS = ("contact_with_dust_and_lint", "convulsions", "exercise_room", "maintenance")
SAME = ("eye_twitching", "play_in_a_well_lit_room")
OTHER = ("piloting_waves.ogg", "electro_1.mp3", "test_24k.wav", "brahms_hungarian5.hq.ogg")
CLIPS = 512
CLIP_FRAMES = 96
SECONDS = 20
FLOOR_DB = -60.0
STEPS = {MusicCodec: CodecOptions().fit.steps, FittedCodec: CodecConfig().steps}
"""Of the toy world and of ingest."""


def read(path: Path) -> np.ndarray:
    """float32 [samples], not above full scale."""
    sound = load_audio(path)
    return sound / max(1.0, float(np.abs(sound).max()))


def audio_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)


def joined(paths: Sequence[Path], seconds: float) -> np.ndarray:
    """The beginnings of recordings, one after the other."""
    return np.concatenate([read(path)[: int(seconds * SAMPLE_RATE)] for path in paths])


def recordings() -> tuple[list[np.ndarray], dict[str, list[np.ndarray]]]:
    """Those to fit on, and those to measure on by what they are."""
    music, loops = DATA / "music", audio_files(DATA / "loops")
    train = [read(music / f"ds10_{name}.mp3") for name in TRACKS] + [read(path) for path in loops[::2]]
    held_out = {
        "same": [read(music / f"ds10_{name}.mp3") for name in SAME],
        "other": [read(music / name) for name in OTHER],
        "loops": [joined(loops[1::2], 4)],
        "drums": [joined(audio_files(DATA / "drums"), 0.5)],
    }
    return train, held_out


def training_clips(sounds: Sequence[np.ndarray]) -> np.ndarray:
    """float32 [CLIPS, CLIP_FRAMES * H] from random places."""
    rng = np.random.default_rng(0)
    length = CLIP_FRAMES * HOP_LENGTH
    sizes = np.array([len(sound) for sound in sounds], float)
    clips = np.zeros((CLIPS, length), np.float32)
    for clip, chosen in zip(clips, rng.choice(len(sounds), CLIPS, p=sizes / sizes.sum()), strict=True):
        start = int(rng.integers(max(1, len(sounds[chosen]) - length + 1)))
        piece = sounds[chosen][start : start + length]
        clip[: len(piece)] = piece
    return clips


def log_spectral_distance(truth: np.ndarray, heard: np.ndarray) -> float:
    """In dB, of sounds [samples]."""

    def levels(sound: np.ndarray) -> np.ndarray:
        _, _, spectrum = scipy.signal.stft(sound, nperseg=1024, noverlap=768)  # 1/2 for a sine of full scale
        return 20 * np.log10(2 * np.abs(spectrum) + 10 ** (FLOOR_DB / 20))

    return float(np.sqrt(((levels(truth) - levels(heard)) ** 2).mean(axis=0)).mean())


def measure(codec: Codec, sounds: Sequence[np.ndarray]) -> np.ndarray:
    """Means over recordings of SNR, log-spectral distance and log-mel distance."""
    rows = []
    for sound in sounds:
        truth = sound[: SECONDS * SAMPLE_RATE]
        truth = truth[: len(truth) // HOP_LENGTH * HOP_LENGTH]
        heard = codec.decode(codec.encode(truth[None]))[0]
        snr = 10 * np.log10((truth**2).sum() / ((truth - heard) ** 2).sum())
        rows.append((snr, log_spectral_distance(truth, heard), logmel_distance(truth[None], heard[None])))
    return np.mean(rows, axis=0)


def report(name: str, codec: Codec, held_out: dict[str, list[np.ndarray]], fit: str) -> None:
    kbps = codec.num_codebooks * np.log2(codec.codebook_size) * SAMPLE_RATE / HOP_LENGTH / 1000
    for kind, sounds in held_out.items():
        values = "|".join(f"{value:.1f}" for value in measure(codec, sounds))
        print(f"|{name}|{codec.num_codebooks} x {codec.codebook_size}|{kbps:.1f}|{kind}|{values}|{fit}|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--music", help="folder of recordings to fit on; give --held-out with it")
    parser.add_argument("--held-out", help="folder of recordings to measure on")
    parser.add_argument("--codebooks", type=int, nargs="*", default=[2, 4, 8])
    parser.add_argument("--kinds", nargs="*", default=[design.kind for design in STEPS], help="codecs to fit")
    parser.add_argument("--codebook-size", type=int, default=1024)
    parser.add_argument("--steps", type=int, help="optimiser steps of the fits; by default those of each design")
    parser.add_argument("--encodec-weights", help="safetensors file: measure EnCodec too, at the same codebooks")
    arguments = parser.parse_args()
    if bool(arguments.music) != bool(arguments.held_out):
        parser.error("give --music and --held-out together")
    if arguments.music:
        train, unheard = ([read(path) for path in audio_files(Path(f))] for f in (arguments.music, arguments.held_out))
        held_out = {"held out": unheard}
    else:
        train, held_out = recordings()
    clips = training_clips(train)
    print(f"load {os.getloadavg()[0]:.1f}")
    print("|codec|codebooks|kbps|recordings|SNR dB|log-spectral dB|log-mel dB|fit CPU-s / wall s|\n" + "|---" * 8 + "|")
    for codebooks in arguments.codebooks:
        for design in (design for design in STEPS if design.kind in arguments.kinds):
            config = CodecConfig(arguments.codebook_size, codebooks, arguments.steps or STEPS[design])
            began, cpu = time.monotonic(), time.process_time()
            codec = fit_codec(clips, config, design=design)
            fit = f"{time.process_time() - cpu:.0f} / {time.monotonic() - began:.0f}"
            report(codec.kind, codec, held_out, fit)
    for codebooks, kbps in zip((2, 4, 8, 16, 32), BANDWIDTHS, strict=True):
        if arguments.encodec_weights and codebooks in arguments.codebooks:
            codec = EncodecCodec.from_published(kbps, arguments.encodec_weights)
            report(codec.kind, codec, held_out, "")


if __name__ == "__main__":
    main()
