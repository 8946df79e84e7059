"""How fast is EnCodec here, beside the `encodec` package, and how much memory does a long track take?

    OMP_WAIT_POLICY=PASSIVE python benchmarks/encodec.py                          # needs the extra encodec
    python benchmarks/encodec.py --track-minutes 45                               # memory only, without torch

Speed: random weights, shared by both; noise of a musical level; times real time (seconds of sound for a second of
work), the median of interleaved repeats, and the median of the ratios of neighbours, by the clock and in CPU time,
which says more on a busy machine. Both sides run on the first --threads cores.
Memory: a made-up track is encoded and decoded a chunk at a time with carried state; peak resident set of the process
after the first minute and after the whole track.
"""

import argparse
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from melodjinn_jax.codecs import EncodecCodec
from melodjinn_jax.codecs.encodec.weights import fold

# In the place of this script's folder, where `import encodec` would find this very file.
sys.path[0] = str(Path(__file__).parents[1] / "tests")
from encodec_weights import published_weights  # noqa: E402

SHAPES = ((1, 1), (1, 10), (8, 4))
"""Clips, and seconds of each."""


def noise(clips: int, seconds: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(0).normal(size=(clips, seconds * 24000))).astype(np.float32)


def race(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> tuple[float, ...]:
    """Median seconds of each, and medians of theirs / ours of neighbouring runs: by the clock, and in CPU time."""
    times = []
    for _ in range(repeats + 1):  # the first compiles
        clocks = [(time.perf_counter(), time.process_time())]
        for function in (ours, theirs):
            function()
            clocks.append((time.perf_counter(), time.process_time()))
        times.append(np.diff(clocks, axis=0))
    seconds = np.array(times[1:])  # [repeats, side, clock]
    return *np.median(seconds[..., 0], axis=0), *np.median(seconds[:, 1] / seconds[:, 0], axis=0)


def speed_table(bandwidths: list[float], threads: int, repeats: int) -> None:
    from melodjinn_jax.codecs.encodec.reference import ReferenceCodec

    tensors = published_weights()
    header = "|package|ratio|CPU ratio"
    print(f"|kbps|clips|encode{header}|decode{header}|\n" + "|---" * 10 + "|")
    for bandwidth in bandwidths:
        codec, reference = EncodecCodec(fold(tensors, "drawn"), bandwidth), ReferenceCodec(tensors, bandwidth)
        import torch

        torch.set_num_threads(threads)
        for clips, seconds in SHAPES:
            waveform = noise(clips, seconds)
            codes = codec.encode(waveform)
            columns = [f"{bandwidth:g}", f"{clips} x {seconds} s"]
            for name, argument in (("encode", waveform), ("decode", codes)):
                functions = [getattr(side, name) for side in (codec, reference)]
                ours, theirs, *ratios = race(*[lambda f=f, x=argument: f(x) for f in functions], repeats)
                columns += [f"{clips * seconds / took:.1f}x" for took in (ours, theirs)]
                columns += [f"{ratio:.2f}" for ratio in ratios]
            print("|" + "|".join(columns) + "|", flush=True)


def memory_of_a_track(minutes: int) -> None:
    codec = EncodecCodec(fold(published_weights(), "drawn"), 6.0)
    chunk = noise(1, codec.chunk_frames * codec.hop_length // codec.sample_rate)
    state = codec.initial_state(1)
    start = time.perf_counter()
    for second in range(60 * minutes):
        state, codes = codec.encode_chunk(state, np.roll(chunk, second))
        state, _ = codec.decode_chunk(state, codes)
        np.asarray(codes)
        if second + 1 in (60, 60 * minutes):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{(second + 1) // 60} min: peak {peak:.0f} MiB, {time.perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bandwidths", type=float, nargs="+", default=[3.0, 24.0], help="kbps")
    parser.add_argument("--threads", type=int, default=1, help="and cores")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--track-minutes", type=int, default=0, help="measure memory on a track this long instead")
    arguments = parser.parse_args()
    if arguments.track_minutes:
        memory_of_a_track(arguments.track_minutes)
    else:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
        speed_table(arguments.bandwidths, arguments.threads, arguments.repeats)


if __name__ == "__main__":
    main()
