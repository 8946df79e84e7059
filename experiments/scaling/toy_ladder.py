"""The small ladder: scaling laws of the drum world on two CPU cores, whole.

    python -m melodjinn_jax.sweep --sweep experiments/scaling/toy_ladder.py --workdir runs/toy_ladder

One LAM labels 44 minutes of drums. On its labels, dynamics models of 54k to 384k parameters train for different
lengths; two more, at more than twice the compute of any of them, are kept out of the fits. LAMs of five sizes train on
the sound, the largest kept out. Held-out losses only. docs/sweeps.md has the results and what they cost.
"""

from melodjinn_jax.config import (
    CodecConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LatentActionConfig,
    OptimizerConfig,
    PhasesConfig,
    RuntimeConfig,
    TrainingConfig,
)
from melodjinn_jax.sweeping.plan import Sweep, SweepRun, override

# Width and, with 3 layers and 4 heads, about so many parameters.
SIZES = {"50k": 32, "100k": 48, "200k": 64, "400k": 96, "800k": 144}
# Steps of 768 tokens: short runs of all sizes tell what size is worth, long ones of small models what data is.
STEPS = {
    "50k": (200, 400, 800, 1600),
    "100k": (280, 560, 1600),
    "200k": (200, 400, 800, 3200),
    "400k": (280, 560),
    "800k": (600,),
}
# Each has more than twice the compute of any other run; one is larger than those, the other has seen more data.
HELD_OUT = ("800k-600", "200k-3200", "lam-450k")
LAM_SIZES = {"lam-30k": 24, "lam-50k": 32, "lam-120k": 48, "lam-200k": 64, "lam-450k": 96}
LAM_STEPS = 300


def base(workdir: str) -> Config:
    """What all runs share."""
    return Config(
        name="toy_ladder",
        # Few passes over the clips, so that data is the limit that a run's length sets and no model learns by heart.
        data=DataConfig(path=f"{workdir}/dataset", train_clips=2048, heldout_clips=192),
        codec=CodecConfig(steps=400),
        phases=PhasesConfig(freeze="step", freeze_deadline=LAM_STEPS),
        training=TrainingConfig(steps=LAM_STEPS),
        # The whole clip but one frame, and all clips: losses that differ little must be told apart.
        evaluation=EvaluationConfig(clips=192, frames=95, generate=False),
        runtime=RuntimeConfig(save_every=10_000, progress=False),
    )


def get_sweep(workdir: str) -> Sweep:
    labeller = base(workdir)
    on_dataset = override(labeller, {"data": DataConfig(datasets=(f"{workdir}/dataset",))})
    runs = []
    for size, lengths in STEPS.items():
        for steps in lengths:
            config = dynamics_config(on_dataset, SIZES[size], steps)
            runs.append(SweepRun(f"{size}-{steps}", config, is_held_out=f"{size}-{steps}" in HELD_OUT))
    for name, dim in LAM_SIZES.items():
        runs.append(SweepRun(name, lam_config(on_dataset, dim), "lam", is_held_out=name in HELD_OUT))
    return Sweep("toy-ladder", tuple(runs), labeller)


def dynamics_config(base: Config, dim: int, steps: int) -> Config:
    """A dynamics model on the labels of the one LAM."""
    return override(
        base,
        {
            "data.actions": "auto",
            "dynamics.dim": dim,
            # Wider models want smaller steps: half as large at four times the width.
            "dynamics_optimizer": OptimizerConfig(learning_rate=4e-3 * (64 / dim) ** 0.5, warmup_steps=40),
            "training.steps": steps,
            "training.batch_size": 8,
        },
    )


def lam_config(base: Config, dim: int) -> Config:
    """A LAM alone: it is frozen at its last step, and the dynamics model never trains."""
    return override(base, {"latent_actions": LatentActionConfig(dim=dim), "dynamics.dim": 16})
