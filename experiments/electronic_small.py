"""A folder of electronic music, on a laptop: a few keys that say when something new sounds, and a model that follows.

    python -m data_pipelines.folder --input FOLDER --output data/electronic --fit.codebook-size 256
    python -m melodjinn_jax.train --config experiments/electronic_small.py --workdir runs/electronic

Any other place of the DATASET: `--data.datasets PATH`. Half an hour of music is enough to begin with; it must come from
three artists (folders) or more, so that some can be held out. The report plays a held-out clip, what the model makes of
its actions, and every key pressed.

Measured on ../shared/data/music (19 minutes to train on): the DATASET takes 35 CPU seconds, training with evaluation
and report 9 CPU minutes. It finds 3 keys, which steer the onsets of held-out music (delta control .50, the codec's
ceiling being .68) at 5 decisions a second; docs/training_on_music.md has all numbers.
"""

from melodjinn_jax.config import (
    Config,
    DataConfig,
    DynamicsConfig,
    EvaluationConfig,
    LatentActionConfig,
    OptimizerConfig,
    PhasesConfig,
    RuntimeConfig,
    TrainingConfig,
)


def get_config() -> Config:
    return Config(
        name="electronic_small",
        data=DataConfig(datasets=("data/electronic",)),
        latent_actions=LatentActionConfig(
            # More than twice the price of the drum world. In the pilot .005 gave 7 codes that control onsets best, and
            # .02 two codes that both mean louder; a short run at .02 found one key.
            kl_weight=0.005,
            # What a code of music does depends on what sounds around it: codes are merged only where they are the same.
            merge_error=0.02,
        ),
        dynamics=DynamicsConfig(
            dim=96,  # the size of the pilot, 0.4M parameters; 19 minutes of music hold 0.34M tokens
            num_layers=3,
            window=64,  # 0.85 s, two beats at 140 bpm, and less than a crop, so that training sees full windows
            splice_probability=0.0,  # the pilot had none; what it does to music has not been measured
        ),
        # The pilot's LAM had converged after 400 steps of warm-up.
        phases=PhasesConfig(discover_steps=400, freeze_deadline=600, check_every=50),
        dynamics_optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, weight_decay=0.1),
        training=TrainingConfig(
            steps=1500,  # 900 of the dynamics model: 8 passes, after 15 the pilot was overfitted
            batch_size=8,
            crop_frames=96,  # 1.28 s, as in the pilot
        ),
        # 2.5 s each, of which the first 0.5 s are given.
        evaluation=EvaluationConfig(clips=32, frames=192, prompt_frames=40, temperature=0.8),
        runtime=RuntimeConfig(log_every=20, save_every=300),
    )
