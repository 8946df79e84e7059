"""The ladder: dynamics models from 50k to 1B parameters on one DATASET, all on the labels of one frozen LAM.

    python -m data_pipelines.mtg_jamendo --metadata autotagging_genre.tsv --tags genre---techno --output data/techno \\
        --codec encodec_24khz --bandwidth 3.0
    python -m melodjinn_jax.sweep --sweep experiments/scaling/ladder.py --workdir DIR --launcher slurm \\
        --launcher-options="--gpus-per-node 1"

Each size trains on 20 tokens a parameter, about the compute-optimal for text (Hoffmann et al. 2022), those to 3M also
on a quarter and on four times as many; LAMs of five sizes train on the sound. `1b` and `lam-30m` are kept out of the
fits. The whole is 1.6e20 FLOPs, of which `1b` takes 1.3e20: at 40 % of the 990 TFLOP/s (bfloat16) that one H100 states
all but `1b` are 20 hours of one, and `1b` is 90. **This has not been run**, for want of the music: 116 hours of techno
hold 125M tokens, so from `6m` on, more music (DATASETS below) is needed to have no token twice or more often than the
16 passes after which repeated tokens are known to teach little (Muennighoff et al. 2023). The smallest rungs have
batches of one clip, so a run has one accelerator here; up to eight divide those from `3m` on. Take a shorter ladder by
leaving out the last of SIZES. One size alone is trained from DIR/runs/SIZE/config.json.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from melodjinn_jax.config import Config
from melodjinn_jax.experiment import load_experiment
from melodjinn_jax.sweeping.plan import Sweep, SweepRun, override

DATASETS = ("data/techno",)
TOKENS_PER_PARAMETER = 20
CODEBOOKS = 4


@dataclass(frozen=True)
class Size:
    """One rung: a name that is its number of parameters over EnCodec at 3 kbps, and the shape that has them."""

    name: str
    parameters: float
    dim: int
    num_heads: int
    num_layers: int


# Wide models have heads of 128, which matrix units like; a head of a small one is 8 or more wide.
SIZES = (
    Size("50k", 5e4, 16, 2, 6),
    Size("100k", 1e5, 24, 2, 7),
    Size("200k", 2e5, 40, 2, 6),
    Size("400k", 4e5, 64, 4, 5),
    Size("800k", 8e5, 96, 4, 5),
    Size("1600k", 1.6e6, 128, 4, 7),
    Size("3m", 3e6, 160, 4, 9),
    Size("6m", 6e6, 224, 4, 9),
    Size("12m", 12e6, 288, 4, 11),
    Size("25m", 25e6, 384, 6, 14),
    Size("50m", 50e6, 512, 8, 16),
    Size("100m", 100e6, 768, 6, 14),
    Size("200m", 200e6, 1024, 8, 16),
    Size("400m", 400e6, 1280, 10, 20),
    Size("1b", 1e9, 2048, 16, 20),
)
DATA = {"quarter": 0.25, "four": 4.0}
LAM_SIZES = {"lam-400k": (64, 4), "lam-1600k": (128, 4), "lam-6m": (256, 4), "lam-14m": (384, 4), "lam-30m": (512, 5)}


def get_sweep(workdir: str) -> Sweep:
    techno = load_experiment(str(Path(__file__).parent.parent / "techno_200m.py"))
    base = override(techno, {"data.datasets": DATASETS, "evaluation.clips": 128, "evaluation.generate": False})
    # The labeller is a LAM alone, frozen at its last step.
    alone = override(base, {"phases.freeze": "step", "training.steps": base.phases.freeze_deadline})
    alone = override(alone, {"dynamics.dim": 64, "dynamics.num_layers": 2})
    runs = [SweepRun(size.name, dynamics_config(base, size, 1.0), is_held_out=size.name == "1b") for size in SIZES]
    for size in SIZES:
        if size.parameters <= 3e6:
            runs += [SweepRun(f"{size.name}-{name}", dynamics_config(base, size, by)) for name, by in DATA.items()]
    for name, (dim, layers) in LAM_SIZES.items():
        shape = {f"latent_actions.{side}_layers": layers for side in ("encoder", "decoder")}
        rate = {"lam_optimizer.learning_rate": min(4e-3, 1e-3 * 256 / dim)}
        config = override(alone, {"latent_actions.dim": dim, **shape, **rate})
        runs.append(SweepRun(name, config, "lam", is_held_out=name == "lam-30m"))
    return Sweep("ladder", tuple(runs), labeller=alone)


def dynamics_config(base: Config, size: Size, data: float) -> Config:
    """One rung on the labels, trained on `data` times 20 tokens a parameter."""
    # Batches of the square root of the size: at 1B 128 clips, at 50k one.
    batch_size = 2 ** round(math.log2(size.parameters / 5e4) / 2)
    tokens = data * TOKENS_PER_PARAMETER * size.parameters
    steps = round(tokens / (batch_size * base.training.crop_frames * CODEBOOKS))
    return override(
        base,
        {
            "data.actions": "auto",
            "dynamics.dim": size.dim,
            "dynamics.num_heads": size.num_heads,
            "dynamics.num_layers": size.num_layers,
            # The rate of the 200M model, and wider models want smaller ones in proportion.
            "dynamics_optimizer.learning_rate": min(5e-3, 3e-4 * 1024 / size.dim),
            "dynamics_optimizer.schedule": "cosine",
            "dynamics_optimizer.warmup_steps": min(500, steps // 10),
            "training.batch_size": batch_size,
            "runtime.remat": "dots" if size.parameters >= 1e8 else "none",
            "training.steps": steps,
        },
    )
