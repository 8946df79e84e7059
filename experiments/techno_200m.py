"""Techno: the model of maestro_200m.py (204M parameters over EnCodec at 3 kbps) on Jamendo's techno.

    python -m data_pipelines.mtg_jamendo --metadata autotagging_genre.tsv --tags genre---techno --output data/techno \\
        --codec encodec_24khz --bandwidth 3.0
    python -m melodjinn_jax.train --config experiments/techno_200m.py --workdir runs/techno_200m

More techno, as of data_pipelines.jamendo_maxcaps, can be mixed in: `--data.datasets data/techno data/maxcaps
--data.weights 1 4`. Labels, cost and the reasons of all other numbers are those of maestro_200m.py. **No run of
this has been made**, for want of the music.
"""

import dataclasses
from pathlib import Path

from melodjinn_jax.config import Config, DataConfig
from melodjinn_jax.experiment import load_experiment


def get_config() -> Config:
    piano = load_experiment(str(Path(__file__).with_name("maestro_200m.py")))
    return dataclasses.replace(
        piano,
        name="techno_200m",
        data=DataConfig(datasets=("data/techno",)),
        # An action is 53 ms, half a sixteenth at 140 bpm: a hit on any sixteenth has a block of its own. 116 h of
        # training music (split 0 of MTG-Jamendo) hold 125M tokens: 20,000 steps of 98,304 for the dynamics model are 16
        # passes.
        training=dataclasses.replace(piano.training, steps=22_000),
    )
