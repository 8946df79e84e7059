"""Latent actions on music, variant by variant: how dense they are, what they tell, what they control.

    python benchmarks/free_music.py --output FOLDER
    python -m data_pipelines.folder --input FOLDER --output data/games --chunk-frames 512 --fit.codebook-size 256 \
        --held-out.validation .05 --held-out.test .2
    python benchmarks/music_actions.py --dataset data/games --variants spectra/8 spectra/4 --seeds 3

Every variant (`VARIANTS`) is a run of experiments/electronic_small.py with another LAM or training. For each action
stride, and whatever else decides what a model sees of the clips (`SHARED`), one more run is trained without actions, as
a *deaf* model of the same size: the gain over it is what actions really tell, for a model that was trained with actions
may be lost without them. Finished runs are kept in --output and not trained again: for a DATASET made anew give
another. Tables of six hours of music have `--clips 108`, four of each test track, or 216; those with one continuation
of each clip were made with `--takes 1`.
The table has the measures of docs/meaning.md on the held-out tracks: medians over seeds, and the widest intervals.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from melodjinn_jax.data.mixture import open_mixture
from melodjinn_jax.errors import UserError, reports_user_errors
from melodjinn_jax.evaluation.bootstrap import estimate, mean_of
from melodjinn_jax.evaluation.instrument import instrument_of
from melodjinn_jax.evaluation.music import load_held_out_music
from melodjinn_jax.experiment import parse_train_arguments
from melodjinn_jax.training.run import load_run
from melodjinn_jax.training.workdir import differences, load_config

ROOT = Path(__file__).resolve().parent.parent


def lam(features: str, stride: int, event_share: float, **more: str) -> dict[str, str]:
    """Settings of a latent action model, which sees 47 blocks in all but for what `more` says."""
    # At the price of spectra nothing is told of samples.
    price = {"mel": ".003", "spectra": ".0005", "waveform": ".00005", "normalized": ".00005"}[features]
    chosen = {"features": features, "action-stride": str(stride), "kl-weight": price}
    chosen |= {"event-share": str(event_share), "window": "24"}
    return {f"latent_actions.{name}": value for name, value in (chosen | more).items()}


UNPRACTISED = {"dynamics.practice-rate": "0"}
FROM_THE_INPUT = {"dynamics.action-block": "0"}
RECIPE = lam("spectra", 8, 0.38, window="4")
THIRD = lam("spectra", 8, 0.33, window="4")
FAR = lam("spectra", 8, 0.33)
VARIANTS: dict[str, dict[str, str]] = {
    "spectra/8": RECIPE,
    # Other features, other numbers of kinds.
    "mel/8": lam("mel", 8, 0.38, window="4"),
    "waveform/8": lam("waveform", 8, 0.38, window="4"),
    "normalized/8": lam("normalized", 8, 0.38, window="4"),
    "three/8": RECIPE | {"latent_actions.max_codes": "4"},
    "eight/8": RECIPE | {"latent_actions.max_codes": "9"},
    # As in the drum world: clips are spliced, codes merge by effect, repeats are credited to the first.
    "spliced/8": RECIPE | {"dynamics.splice-probability": "0.5"},
    "merged/8": lam("spectra", 8, 0.38, window="4", merge="effect", max_codes="16", merge_error="0.7"),
    "collapsed/8": RECIPE | {"latent_actions.collapse_frames": "2"},
    # Single frames; the LAM hears nearly as far back.
    "spectra/1": lam("spectra", 1, 0.02),
    # Fewer events: what unmasked and lightly are to be compared with.
    "third/8": THIRD,
    # Finer, at as many bits a second.
    "near/6": lam("spectra", 6, 0.26, window="4")
    | {"evaluation.prompt-frames": "66", "dynamics.practice-rate": "0.04"},
    # All of the context is seen, not masked as in the drum world, or most of it.
    "unmasked/8": THIRD | {"dynamics.max-mask-rate": "0"},
    "lightly/8": THIRD | {"dynamics.max-mask-rate": "0.3"},
    # Longer crops and clips, for these must hold some blocks, and fewer crops.
    "spectra/64": lam("spectra", 64, 0.75, window="2")
    | UNPRACTISED
    | {"training.crop-frames": "256", "training.batch-size": "3", "evaluation.frames": "448"},
    # Hears further back than a crop of training reaches, as all those below do: they are to be compared with this one.
    "far/8": FAR,
    "unpractised/8": FAR | UNPRACTISED,
    # All of the model hears of actions.
    "input/8": FAR | FROM_THE_INPUT,
    # Learns the music first, and its actions on top.
    "late/8": FAR
    | FROM_THE_INPUT
    | {"dynamics.actions-from": "0.6", "dynamics.practice-from": "0.6", "dynamics.practice-rate": "0.05"},
    "earlier/8": FAR | FROM_THE_INPUT | {"dynamics.actions-from": "0.35", "dynamics.practice-rate": "0.04"},
    "recording/8": lam("spectra", 8, 0.33, hears="recording"),
    # About as many bits a second: the coarser the time, the more of it may be events.
    "spectra/4": lam("spectra", 4, 0.2),
    "spectra/6": lam("spectra", 6, 0.22) | {"evaluation.prompt-frames": "66"},
    "spectra/16": lam("spectra", 16, 0.5) | {"dynamics.practice-frames": "32"},
}
DEAF = UNPRACTISED | {"dynamics.action-dropout": "1", "evaluation.generate": "false"}
# What the model without actions has in common with the others: it sees the same clips, in the same way.
SHARED = (
    "dynamics.action-block",
    "dynamics.max-mask-rate",
    "dynamics.splice-probability",
    "training.crop-frames",
    "training.batch-size",
    "evaluation.frames",
    "evaluation.prompt-frames",
)
MEASURES = {
    "decisions / s": "decisions_per_second",
    "bits / s": "bits_per_second",
    "after the last": "bits_per_second_after_last",
    "gain over none": "cross_entropy_gain_over_none",
    "onsets": "control_onsets",
    "onset F1": "control_onset_f1",
    "envelope": "control_envelope",
    "spectrum": "control_spectrum",
    "recovery": "recovery",
    "chance": "recovery_chance",
    "identified": "effect_identification",
    "F": "effect_f_ratio",
    "free running": "free_running_distance_ratio",
}


def train(workdir: Path, dataset: str, seed: int, settings: dict[str, str]) -> None:
    """One run, unless it is there.

    Raises:
      UserError: what is there was made with other settings, of training or of evaluation.
    """
    arguments = [
        "--config",
        str(ROOT / "experiments" / "electronic_small.py"),
        "--workdir",
        str(workdir),
        "--data.datasets",
        dataset,
    ]
    arguments += ["--seed", str(seed), "--runtime.progress", "false"]
    for name, value in settings.items():
        arguments += [f"--{name.replace('_', '-')}", value]
    if (workdir / "eval.json").exists():
        kept = load_config(str(workdir))
        asked = parse_train_arguments(arguments).settings
        # How a run was carried out is no matter.
        asked = dataclasses.replace(asked, runtime=kept.runtime)
        if differing := list(differences(dataclasses.asdict(kept), dataclasses.asdict(asked))):
            raise UserError(f"{workdir} was made with other settings ({'; '.join(differing)}): give another --output")
        return
    command = [sys.executable, "-m", "melodjinn_jax.train", *arguments]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{workdir}: {finished.stderr.strip().splitlines()[-1]}")


def gain_over_deaf(workdir: Path, deaf: Path, dataset: str) -> Any:
    """Nats per token on the same held-out clips, with the interval over tracks."""
    losses, evaluation = [], load_config(str(workdir)).evaluation
    for path, is_deaf in ((workdir, False), (deaf, True)):
        run = load_run(path)
        clips = load_held_out_music(run, open_mixture([dataset]), evaluation)
        instrument = instrument_of(run)
        keys = np.full_like(clips.keys, instrument.null_action) if is_deaf else clips.keys
        losses.append(instrument.losses(clips.codes, keys)[:, 1:].mean(axis=1))
    return estimate(mean_of(losses[1] - losses[0]), clips.tracks).to_json()


def measure(name: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """The measures of one variant and seed."""
    settings = VARIANTS[name] | {"evaluation.clips": str(arguments.clips), "evaluation.takes": str(arguments.takes)}
    stride = settings["latent_actions.action-stride"]
    workdir = arguments.output / name.replace("/", "_") / str(seed)
    same = {name: settings[name] for name in SHARED if name in settings}
    names = [f"{name.rpartition('.')[2]}_{value}" for name, value in same.items()]
    deaf = arguments.output / "_".join(["deaf", stride, *names]) / str(seed)
    train(workdir, arguments.dataset, seed, settings)
    train(deaf, arguments.dataset, seed, lam("mel", int(stride), 0.1) | DEAF | same)
    found = json.loads((workdir / "eval.json").read_text())["meaning"]
    found["gain over deaf"] = gain_over_deaf(workdir, deaf, arguments.dataset)
    return found


def cell(values: list[Any]) -> str:
    """Median, and the widest of the intervals."""
    if any(value is None for value in values):
        return "-"
    if isinstance(values[0], float):
        return f"{statistics.median(values):.2f}"
    middle = statistics.median(value["value"] for value in values)
    low, high = min(value["low"] for value in values), max(value["high"] for value in values)
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


@reports_user_errors
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=48, help="held-out clips, four or more of each track")
    parser.add_argument("--takes", type=int, default=4, help="continuations of each clip, for delta control")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "benchmark" / "music")
    arguments = parser.parse_args()
    columns = ["variant", "shares of the keys", "gain over deaf", *MEASURES]
    print(f"|{'|'.join(columns)}|\n{'|---' * len(columns)}|")
    for name in arguments.variants:
        found = [measure(name, seed, arguments) for seed in range(arguments.seeds)]
        shares = [sorted((round(s["value"], 3) for s in one["key_share"][1:]), reverse=True) for one in found]
        cells = [name, "; ".join(" ".join(map(str, own)) for own in shares), cell([f["gain over deaf"] for f in found])]
        cells += [cell([one.get(measure) for one in found]) for measure in MEASURES.values()]
        print(f"|{'|'.join(cells)}|", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
