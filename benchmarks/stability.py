"""Are the actions the same from run to run and from crop to clip, do they leak, do they last? Prints tables.

    python benchmarks/seeds.py --suite random3 --seeds 5
    python benchmarks/stability.py runs/benchmark/random3/*

Runs are work directories of finished runs; agreement needs two or more of the same kind of world (same codec rate and
stride; their drums may be drawn anew). The held-out clips are those of the first run: every LAM listens to them.
"""

import argparse
import sys
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from melodjinn_jax.errors import UserError, reports_user_errors
from melodjinn_jax.evaluation.actions import require_frozen_lam
from melodjinn_jax.evaluation.atlas import held_out_clips
from melodjinn_jax.evaluation.effects import Clips, measure_effects
from melodjinn_jax.evaluation.instrument import Instrument, instrument_of
from melodjinn_jax.evaluation.meaning import density, leakage, long_play
from melodjinn_jax.training.run import Run, load_run, tune_process

# A LAM may hear a hit one block later than another.
TOLERANCE = 1


class Witness(NamedTuple):
    """What one run makes of the shared clips."""

    run: Run
    keys: np.ndarray
    """int [B, N - 1], of the shared clips."""
    effects: np.ndarray
    """[K, D]: mean effect of each key in the run's own held-out contexts."""


def match_by_effect(first: np.ndarray, second: np.ndarray) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Pairs of keys (from 1) whose effects [K, D] are most alike, one to one, and the cosines of all: [K1, K2]."""
    norms = [np.maximum(np.linalg.norm(effects, axis=1, keepdims=True), 1e-9) for effects in (first, second)]
    cosines = (first / norms[0]) @ (second / norms[1]).T
    rows, columns = linear_sum_assignment(-cosines)
    return [(int(row) + 1, int(column) + 1) for row, column in zip(rows, columns, strict=True)], cosines


def key_agreement(first: np.ndarray, second: np.ndarray, keys: tuple[int, int]) -> float:
    """F1 of one key's actions in one run [B, n] against those of its match in another, `TOLERANCE` blocks apart."""
    one, other = first == keys[0], second == keys[1]
    total = int(one.sum() + other.sum())
    if not total:
        return float("nan")
    return float(((one & _widened(other)).sum() + (other & _widened(one)).sum()) / total)


def _widened(where: np.ndarray) -> np.ndarray:
    """True wherever it is true, and `TOLERANCE` blocks around: bool [B, n]."""
    padded = np.pad(where, ((0, 0), (TOLERANCE, TOLERANCE)))
    return np.any([padded[:, i : i + where.shape[1]] for i in range(2 * TOLERANCE + 1)], axis=0)


def show_agreement(witnesses: list[Witness]) -> None:
    """Every pair of runs: agreement of matched keys, worst first, and the cosine of their effects."""
    print("| runs | keys | matched | agreement: mean | worst | cosine of effects: worst |")
    print("|---|---|---|---|---|---|")
    means, worsts = [], []
    for one, other in combinations(witnesses, 2):
        pairs, cosines = match_by_effect(one.effects, other.effects)
        agreements = [key_agreement(one.keys, other.keys, pair) for pair in pairs]
        # A key without a partner agrees with nothing.
        lone = abs(len(one.effects) - len(other.effects))
        mean, worst = np.nansum(agreements) / (len(pairs) + lone), 0.0 if lone else np.nanmin(agreements)
        means.append(mean)
        worsts.append(worst)
        alike = min(cosines[a - 1, b - 1] for a, b in pairs)
        names = f"{one.run.workdir.path.name}, {other.run.workdir.path.name}"
        print(
            f"| {names} | {len(one.effects)}, {len(other.effects)} | {len(pairs)} | {mean:.3f} | {worst:.3f} | "
            f"{alike:.3f} |"
        )
    print(f"| all {len(means)} pairs, median | | | {np.median(means):.3f} | {np.median(worsts):.3f} | |\n")


def crop_agreement(whole: np.ndarray, crop: np.ndarray) -> float:
    """F1 of the events, each key for itself, in the last actions of keys [B, N] and in keys [B, n] of these alone."""
    whole = whole[:, -crop.shape[1] :]
    events = int((whole > 0).sum() + (crop > 0).sum())
    return float(2 * ((whole == crop) & (crop > 0)).sum() / events) if events else float("nan")


def hear_crops(instrument: Instrument, clips: Clips, frames: int) -> np.ndarray:
    """The LAM's keys of the last frames of clips, heard as training hears a crop: with nothing before them."""
    return instrument.listen_to(clips.waveform[:, -frames * instrument.hop_length :], clips.codes[:, -frames:])


def show_run(run: Run, clips: Clips, minutes: float) -> None:
    """One row: density, leakage, whether a crop has the events that the whole clip has, and a long generation."""
    instrument = instrument_of(run, run.config.evaluation.strength)
    config = run.config.evaluation
    measures = {
        **density(instrument, clips.keys, clips.tracks),
        **leakage(instrument, clips),
        **long_play(instrument, clips, config.prompt_frames, config.temperature, 60 * minutes),
    }
    names = ("decisions_per_second", "bits_per_second", "leakage")
    names += ("long_level_difference_db", "long_silence_difference", "long_drift_db")
    cells = [f"{m.value:.3f} [{m.low:.3f}, {m.high:.3f}]" for m in (measures[name] for name in names)]
    crop, same = run.config.training.crop_frames, "-"
    if crop < clips.codes.shape[1]:  # else a crop is the whole clip
        same = f"{crop_agreement(clips.keys, hear_crops(instrument, clips, crop)):.3f}"
    cells.insert(3, same)
    print(f"| {run.workdir.path.name} | " + " | ".join(cells) + " |", flush=True)


def require_comparable(run: Run, first: Run) -> None:
    """Raise `UserError` unless a run can listen to the clips of the first."""
    wanted = [("the frames of an action", run.action_space.stride, first.action_space.stride)]
    wanted.append(("the codec's hop length", run.codec.hop_length, first.codec.hop_length))
    if run.config.latent_actions.hears == "codec":
        wanted.append(("the codec that it hears through", run.codec.digest, first.codec.digest))
    for what, here, there in wanted:
        if here != there:
            raise UserError(f"{run.workdir.path}: {what}, {here}, must be as in {first.workdir.path}, {there}")


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="work directories")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the long generation; 0: agreement only")
    arguments = parser.parse_args()
    if not arguments.minutes >= 0:
        raise UserError(f"--minutes is {arguments.minutes}: it must not be negative")
    runs = [load_run(str(path)) for path in arguments.runs]
    tune_process(runs[0].config.runtime.compile_cache)
    shared, witnesses, owned = None, [], []
    for run in runs:
        require_frozen_lam(run)
        if not run.action_space.num_keys:
            raise UserError(f"{run.workdir.path} found no key beside NOOP: leave it out")
        require_comparable(run, runs[0])
        own = held_out_clips(run, run.open_data(), run.config.evaluation)
        shared = shared or own
        instrument = instrument_of(run, run.config.evaluation.strength)
        effects = measure_effects(
            instrument, own, run.config.evaluation.prompt_frames, run.config.evaluation.temperature
        )
        witnesses.append(
            Witness(run, instrument.listen_to(shared.waveform, shared.codes), effects.vectors().mean(axis=1))
        )
        owned.append(own)
    if len(witnesses) > 1:
        show_agreement(witnesses)
    if arguments.minutes:
        print("| run | decisions/s | bits/s | leakage | events of crops | level, dB | silence | drift, dB |")
        print("|---|---|---|---|---|---|---|---|")
        for run, own in zip(runs, owned, strict=True):
            show_run(run, own, arguments.minutes)


if __name__ == "__main__":
    sys.exit(main())
