"""How good is the small codec? Fits it on drum worlds, listens to held-out clips, prints a table.

    python benchmarks/codecs.py
    python benchmarks/codecs.py --one-shots my_drums/ --steps 1200

For each world: the fitted codec, and as a baseline k-means on the waveform of each frame. Columns: F1 of the onset
detector on the truth and through the codec; mean absolute error of the log-mel spectrogram in nats; signal-to-noise
ratio; error of the level; energy 10 to 2 ms before isolated attacks against that of the 20 ms after (pre-echo), and the
first 4 ms of attacks against the truth; entropy of the first and the last codebook's codes; level where the truth has
been silent for 8 frames; CPU seconds of the fit, compilation included (a second fit in a process costs as much).
"""

import argparse
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from melodjinn_jax.codecs import fit_codec
from melodjinn_jax.codecs.rvq import initial_codebooks, lookup, quantize
from melodjinn_jax.config import CodecConfig, DataConfig
from melodjinn_jax.data.audio import HOP_LENGTH, SAMPLE_RATE, to_float32, to_int16
from melodjinn_jax.data.one_shots import OneShots, one_shots_for
from melodjinn_jax.data.toy_drums import Hit, make_clips
from melodjinn_jax.evaluation.onsets import Onset, OnsetDetector, log_mel, match_onsets

WORLDS = {
    "1 drum": DataConfig(num_drums=1),
    "3 drums": DataConfig(),
    "3 drums, grid": DataConfig(offsets=False),
    "3 drums, loops": DataConfig(rhythm="loop"),
    "5 drums": DataConfig(num_drums=5),
    "5 drums, velocity .5-1": DataConfig(num_drums=5, min_velocity=0.5),
}
HEADER = "F1 truth|F1|log-mel|SNR dB|level dB|pre-echo dB|attack dB|entropy bits|silence dBFS|CPU-s"


@dataclass(frozen=True)
class HeldOut:
    """Clips that no codec was fitted on."""

    drums: OneShots
    waveforms: np.ndarray
    hits: list[tuple[Hit, ...]]


def fit_frames(waveforms: np.ndarray, config: CodecConfig) -> tuple[Callable, Callable]:
    """The baseline: residual k-means on frames of the waveform; its encode and decode."""
    frames = waveforms.reshape(-1, HOP_LENGTH)
    frames = frames[np.abs(frames).max(axis=1) > 1e-3]
    chosen = np.random.default_rng(config.seed).permutation(len(frames))[:8000]
    books = initial_codebooks(frames[chosen], config.num_codebooks, config.codebook_size, config.seed)

    def encode(clips: np.ndarray) -> np.ndarray:
        return np.asarray(quantize(books.entries, jnp.asarray(clips.reshape(len(clips), -1, HOP_LENGTH)))[1])

    def decode(codes: np.ndarray) -> np.ndarray:
        return np.asarray(lookup(books.entries, jnp.asarray(codes))).reshape(len(codes), -1)

    return encode, decode


def decibel(ratio: float) -> float:
    return 10 * np.log10(ratio + 1e-12)


def attack_measures(truth: np.ndarray, heard: np.ndarray, held_out: HeldOut) -> tuple[float, float]:
    """Medians over attacks that no other hit's tail reaches: pre-echo and sharpness, in dB."""
    millisecond = SAMPLE_RATE // 1000
    before, sharpness = [], []
    for clip, hits in enumerate(held_out.hits):
        last = -held_out.drums.waveforms.shape[1]
        for sample, _, _ in hits:
            isolated = sample - last >= held_out.drums.waveforms.shape[1] and sample >= 20 * millisecond
            last = sample
            if isolated and sample + 20 * millisecond <= truth.shape[1]:
                power, true_power = heard[clip] ** 2, truth[clip] ** 2
                early = power[sample - 10 * millisecond : sample - 2 * millisecond].sum()
                before.append(early / true_power[sample : sample + 20 * millisecond].sum())
                start = slice(sample, sample + 4 * millisecond)
                sharpness.append(power[start].sum() / true_power[start].sum())
    return decibel(float(np.median(before))), decibel(float(np.median(sharpness)))


def silence_level(truth: np.ndarray, heard: np.ndarray) -> float:
    """RMS in dBFS of frames that follow 8 silent ones in the truth."""
    silent = np.abs(truth).reshape(len(truth), -1, HOP_LENGTH).max(axis=2) < 1e-4
    rest = silent.copy()
    for age in range(1, 8):
        rest[:, age:] &= silent[:, :-age]
    rest[:, :8] = False
    quiet = heard.reshape(len(heard), -1, HOP_LENGTH)[rest]
    return decibel(float((quiet**2).mean())) if quiet.size else float("nan")


def entropy(codes: np.ndarray) -> float:
    shares = np.bincount(codes.ravel()) / codes.size
    return float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum())


def measure(encode: Callable, decode: Callable, held_out: HeldOut) -> list[str]:
    truth = held_out.waveforms
    codes = encode(truth)
    heard = decode(codes)
    detector = OnsetDetector(held_out.drums.waveforms, SAMPLE_RATE, HOP_LENGTH)
    hits = [[Onset(hit.sample / HOP_LENGTH, hit.drum, hit.gain) for hit in clip] for clip in held_out.hits]
    stop = truth.shape[1] // HOP_LENGTH - 3
    f1 = [match_onsets(hits, detector(sound), start=1, stop=stop).f1 for sound in (truth, heard)]
    log_mel_error = np.abs(np.asarray(log_mel(truth)) - np.asarray(log_mel(heard))).mean()
    pre_echo, sharpness = attack_measures(truth, heard, held_out)
    return [
        *(f"{score:.3f}" for score in f1),
        f"{log_mel_error:.2f}",
        f"{decibel((truth**2).sum() / ((truth - heard) ** 2).sum()):.1f}",
        f"{decibel((heard**2).sum() / (truth**2).sum()):.2f}",
        f"{pre_echo:.0f}",
        f"{sharpness:.1f}",
        f"{entropy(codes[..., 0]):.1f} + {entropy(codes[..., -1]):.1f}",
        f"{silence_level(truth, heard):.0f}",
    ]


def compare(name: str, data: DataConfig, config: CodecConfig) -> None:
    drums = one_shots_for(data)
    train, test = (make_clips(data, drums, split) for split in ("train", "test"))
    waveforms = to_float32(to_int16(np.stack([clip.waveform for clip in train])))
    held_out = HeldOut(drums, np.stack([clip.waveform for clip in test]), [clip.hits for clip in test])
    for kind in ("fitted", "k-means"):
        start = time.process_time()
        if kind == "fitted":
            codec = fit_codec(waveforms, config)
            functions: tuple[Callable, Callable] = (codec.encode, codec.decode)
        else:
            functions = fit_frames(waveforms, config)
        seconds = time.process_time() - start
        print("|" + "|".join([name, kind, *measure(*functions, held_out), f"{seconds:.1f}"]) + "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one-shots", help="folder of recordings to measure instead of the synthetic drums")
    parser.add_argument("--steps", type=int, default=CodecConfig().steps, help="optimiser steps of the fit")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the world and the fit")
    arguments = parser.parse_args()
    config = CodecConfig(steps=arguments.steps, seed=arguments.seed)
    worlds = WORLDS
    if arguments.one_shots:
        one_shots = DataConfig(one_shots=arguments.one_shots)
        worlds = {"one-shots": one_shots, "one-shots, velocity .5-1": dataclasses.replace(one_shots, min_velocity=0.5)}
    print(f"|world|codec|{HEADER}|\n" + "|---" * 12 + "|")
    for name, data in worlds.items():
        compare(name, dataclasses.replace(data, seed=arguments.seed), config)


if __name__ == "__main__":
    main()
