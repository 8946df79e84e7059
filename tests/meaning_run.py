"""A run for the tests of commands: models that were never trained, held in memory, over a small DATASET of music."""

from pathlib import Path

import jax
import numpy as np
from conftest import tiny_config
from music_world import codec, write_music

from melodjinn_jax.config import DataConfig, DynamicsConfig, EvaluationConfig, LatentActionConfig, RuntimeConfig
from melodjinn_jax.models.action_space import ActionSpace, digest_codebook
from melodjinn_jax.training.phases import PhaseRecord
from melodjinn_jax.training.run import Run, make_models
from melodjinn_jax.training.state import Phase
from melodjinn_jax.training.workdir import WorkDir

STRIDE = 2
TRACKS = {"train": {"a": 170, "b": 120}, "test": {"c": 150, "d": 100}}


def make_run(folder: Path) -> Run:
    """A frozen run of stride 2 whose LAM tells eight codes apart, merged into three keys and NOOP."""
    if not (folder / "music").exists():
        write_music(folder / "music", TRACKS)
    config = tiny_config(
        data=DataConfig(datasets=(str(folder / "music"),)),
        latent_actions=LatentActionConfig(
            dim=16, num_heads=2, latent_dim=2, window=5, max_codes=8, action_stride=STRIDE, collapse_frames=1
        ),
        dynamics=DynamicsConfig(dim=16, num_heads=2, num_layers=2, window=8),
        evaluation=EvaluationConfig(clips=4, frames=40, prompt_frames=8),
        runtime=RuntimeConfig(compile_cache=""),
    )
    models = make_models(config, codec())
    codebook = models.init_codebook(jax.random.key(1))
    key_of_code = np.arange(8) // 2
    space = ActionSpace(STRIDE, tuple(key_of_code.tolist()), digest_codebook(np.asarray(codebook["vectors"])))
    state = {
        "lam": jax.jit(models.init_lam)(jax.random.key(0)),
        "feature_scale": np.float32(0.3),
        "codebook": codebook,
        "key_of_code": key_of_code,
        "dynamics": jax.jit(models.init_dynamics)(jax.random.key(2)),
    }
    record = PhaseRecord(Phase.FROZEN, freeze_step=1, freeze_reason="deadline")
    return Run(WorkDir(folder), config, codec(), models, 1, record, space, state)
