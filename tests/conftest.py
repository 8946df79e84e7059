"""Fixtures shared by the tests: tiny models and data, so that each test takes seconds."""

import dataclasses
import os

# Most tests compile far more than they run: with optimised programs they take half as long again. Read when JAX is
# imported, and inherited by the commands that tests start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import numpy as np
import pytest
from hypothesis import settings

from melodjinn_jax.config import (
    Config,
    DataConfig,
    DynamicsConfig,
    EvaluationConfig,
    LatentActionConfig,
    PhasesConfig,
    TrainingConfig,
)
from melodjinn_jax.training.state import CodecShape, Models

# Tests are for the CPU, here and in the commands that they start: where the TPU compiler is installed, JAX would look
# for a TPU and say so on standard error.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
jax.config.update("jax_platforms", os.environ["JAX_PLATFORMS"])

# For commands that train in earnest, or whose exactness is promised to those who run them.
OPTIMISED = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}

# A shared machine may stall any example; what a test states must not depend on the clock.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

CODEC = CodecShape(sample_rate=24000, hop_length=320, num_codebooks=2, codebook_size=16)


def tiny_config(**changes) -> Config:
    """A configuration of every part in its smallest working form."""
    config = Config(
        name="tiny",
        data=DataConfig(train_clips=24, heldout_clips=6, clip_frames=48),
        latent_actions=LatentActionConfig(dim=16, num_heads=2, latent_dim=4, window=6, max_codes=8),
        dynamics=DynamicsConfig(dim=16, num_heads=2, num_layers=2, window=6),
        phases=PhasesConfig(discover_steps=4, freeze_deadline=8, check_every=2, probe_clips=8),
        training=TrainingConfig(steps=12, batch_size=4, crop_frames=24),
        evaluation=EvaluationConfig(clips=4, frames=40, loop_prompt_frames=12, presses_per_key=2),
    )
    return dataclasses.replace(config, **changes)


def tiny_models(**changes) -> Models:
    return Models(tiny_config(**changes), CODEC)


@pytest.fixture
def models() -> Models:
    return tiny_models()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session", autouse=True)
def _compile_cache(tmp_path_factory):
    """Programs that several tests compile are compiled once per session."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.getbasetemp().parent / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def random_waveform(rng: np.random.Generator, clips: int, frames: int) -> np.ndarray:
    """int16 [clips, frames, 320] of clicks over noise."""
    waveform = rng.normal(0, 300, (clips, frames, 320))
    waveform[rng.random((clips, frames)) < 0.1] *= 30
    return np.clip(waveform, -32768, 32767).astype(np.int16)


def batch_of(rng: np.random.Generator, models: Models) -> dict[str, np.ndarray]:
    """A training batch of clicks, with codes that have nothing to do with them."""
    training = models.config.training
    waveform = random_waveform(rng, training.batch_size, training.crop_frames)
    codes = rng.integers(0, CODEC.codebook_size, (*waveform.shape[:2], CODEC.num_codebooks)).astype(np.uint16)
    return {"waveform": waveform, "codes": codes}
