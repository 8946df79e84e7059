"""A folder of electronic music, on a laptop: a few keys that say when something new sounds, and a model that follows.

    python -m data_pipelines.folder --input FOLDER --output data/electronic --fit.codebook-size 256
    python -m melodjinn_jax.train --config experiments/electronic_small.py --workdir runs/electronic

Any other place of the DATASET: `--data.datasets PATH`. Half an hour of music is enough to begin with; it must come from
three artists (folders) or more, so that some can be held out. The report plays a held-out clip, what the model makes of
its actions, and every key pressed.

It finds four keys, each a kind of event, and practises them. docs/research/music_actions.md has what it reaches on 4.5
hours of game music, and what was tried on the way.
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
            # What is played passes through the codec, so the LAM hears music through it too.
            hears="codec",
            features="spectra",
            action_stride=8,  # 9 actions a second: of so few, .38 may be events for less than 15 bits a second
            # What is an event is decided by the last .75 s. If the LAM hears further back than a crop, a fifth of the
            # events of a crop are others than those which a clip of twice the length has there.
            window=4,
            # At four times this price the latents have two dimensions left, too few for four kinds that differ.
            kl_weight=0.0005,
            # Four kinds of events, among the blocks about which there is most to say. Music has no clusters to be found
            # and merged, as drums have. With a share of .33 the weaker kinds lie so near to NOOP that more of their
            # presses are heard as nothing (docs/research/music_actions.md).
            max_codes=5,
            event_share=0.38,
            merge="none",
            collapse_frames=0,
        ),
        dynamics=DynamicsConfig(
            dim=96,  # the size of the pilot, 0.4M parameters; 19 minutes of music hold 0.34M tokens
            num_layers=3,
            window=64,  # 0.85 s, two beats at 140 bpm, and less than a crop, so that training sees full windows
            action_block=2,  # the last: what comes before learns the music as well as a model without actions
            splice_probability=0.0,  # with .5 keys were told apart less well (.46 instead of .55)
            # So little music is soon learnt by heart: without this, and with a tenth of the weight decay, unseen music
            # was foretold worse with its actions than without.
            ema_decay=0.99,
            action_dropout=0.05,
            # The second half of the model's steps also practises keys, at the strength at which they are played.
            practice_rate=0.03,
            practice_strength=2.0,
            practice_from=0.5,
            practice_frames=24,
        ),
        # The latents of the warm-up are the actions: a codebook that trains on would move the events.
        phases=PhasesConfig(discover_steps=500, freeze="step", freeze_deadline=501),
        dynamics_optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100, weight_decay=0.3),
        training=TrainingConfig(
            steps=2000,  # 1500 of the dynamics model
            batch_size=8,
            crop_frames=96,  # 1.28 s, as in the pilot
        ),
        # 2.5 s each, of which the first 0.85 s are given. Below temperature 1 the model falls silent. Of one
        # continuation of each clip, the dice make most of the interval of onset control.
        evaluation=EvaluationConfig(clips=48, frames=192, prompt_frames=64, temperature=1.0, strength=2.0, takes=4),
        runtime=RuntimeConfig(log_every=20, save_every=300),
    )
