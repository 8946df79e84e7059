"""The drum world with recordings of real drums: discover them, and play them.

    python -m melodjinn_jax.train --config experiments/one_shots.py --workdir runs/one_shots --data.one-shots FOLDER

FOLDER holds one recording for each drum (WAV, FLAC, MP3 or OGG; any rate, mono or stereo). Real drums ring longer and
are less alike than synthetic ones, so there are more clips, a finer codec and more training than in toy_drums.py:
about three CPU-minutes. docs/toy_world.md lists eight trios of recordings, with what they reach and what fails.
"""

from melodjinn_jax.config import CodecConfig, Config, DataConfig, TrainingConfig


def get_config() -> Config:
    return Config(
        name="one_shots",
        data=DataConfig(train_clips=2048),
        codec=CodecConfig(codebook_size=512, steps=1200),
        training=TrainingConfig(steps=1400),
    )
