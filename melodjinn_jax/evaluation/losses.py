"""The losses of both models on held-out clips, with nothing generated: what runs of a sweep are compared by."""

from typing import Any

import jax
import numpy as np

from melodjinn_jax.config import EvaluationConfig
from melodjinn_jax.data.mixture import Mixture
from melodjinn_jax.evaluation.measures import cross_entropies
from melodjinn_jax.evaluation.music import load_held_out_music
from melodjinn_jax.models.bottlenecks import finite_scalar_quantize
from melodjinn_jax.training.run import CODEBOOK_PARTS, LAM_PARTS, Run
from melodjinn_jax.training.state import Models, State
from melodjinn_jax.training.step import encode_codes, reconstruction_loss, scaled_features


def held_out_losses(run: Run, data: Mixture, config: EvaluationConfig) -> dict[str, Any]:
    """What `eval.json` holds of a run that generates nothing.

    The dynamics model's cross entropies, once it has trained, and the reconstruction of a LAM that has a decoder.
    """
    held_out = load_held_out_music(run, data, config)
    measures: dict[str, Any] = {"num_actions": held_out.num_actions, "num_keys": run.action_space.num_keys}
    if _dynamics_has_trained(run):
        measures |= cross_entropies(run.models, run.state, held_out.codes, held_out.keys)
    if run.has_lam and not run.models.trains_jointly:
        networks = {name: run.state[name] for name in (*LAM_PARTS, *CODEBOOK_PARTS)}
        waveform = run.heard(held_out.waveform.reshape(*held_out.codes.shape[:2], -1), held_out.codes)
        measures["reconstruction"] = float(reconstruction(run.models, networks, waveform))
    return measures


def _dynamics_has_trained(run: Run) -> bool:
    starts_frozen = run.config.phases.dynamics_start == "frozen" and not run.models.trains_jointly
    return not starts_frozen or (run.record.freeze_step is not None and run.step > run.record.freeze_step)


def reconstruction(models: Models, state: State, waveform: np.ndarray) -> jax.Array:
    """Mean squared error of the LAM's predictions through its codebook, as in training, in units of its features.

    Args:
      models: of the run.
      state: with the parts of the LAM and its codebook.
      waveform: int16 or float [B, F, H].
    """

    @jax.jit
    def error(state: State, waveform: jax.Array) -> jax.Array:
        features, lam = scaled_features(models, state, waveform), models.lam(state["lam"])
        config = models.config.latent_actions
        if config.bottleneck == "fsq":
            _, quantized = finite_scalar_quantize(lam.encode(features), config.fsq_levels)
        else:
            quantized = state["codebook"]["vectors"][encode_codes(models, state, waveform)]
        return reconstruction_loss(lam.decode(features, quantized), features)

    return error(state, waveform)
