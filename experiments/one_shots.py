"""The drum world with recordings of real drums: discover them, and play them.

    python -m melodjinn_jax.train --config experiments/one_shots.py --workdir runs/one_shots --data.one-shots FOLDER

FOLDER holds one recording for each drum (WAV, FLAC, MP3 or OGG; any rate, mono or stereo). Real drums ring longer and
are less alike than synthetic ones, so there are more clips, a finer codec and more training than in toy_drums.py: three
to five CPU-minutes. docs/toy_world.md lists eight trios of recordings, with what they reach and what fails.
"""

from melodjinn_jax.config import (
    CodecConfig,
    Config,
    DataConfig,
    DynamicsConfig,
    EvaluationConfig,
    PhasesConfig,
    TrainingConfig,
)


def get_config() -> Config:
    return Config(
        name="one_shots",
        # So many that none is learnt by heart.
        data=DataConfig(train_clips=8192),
        codec=CodecConfig(codebook_size=512, steps=1200),
        # A kick over another's tail changes few bands: what the LAM has not learnt to hear stands under NOOP, and is
        # then played unasked.
        phases=PhasesConfig(discover_steps=1000, freeze_deadline=1300),
        # A splice cuts tails off, and the model learns that tails break off, and begin, by themselves. Only loops need
        # it: --dynamics.splice-probability .5 --dynamics.max-mask-rate 1. Averaged weights slip less at temperature .5.
        dynamics=DynamicsConfig(max_mask_rate=0, splice_probability=0, ema_decay=0.99),
        training=TrainingConfig(steps=3200),
        # As in toy_drums.py.
        evaluation=EvaluationConfig(strength=1.5),
    )
