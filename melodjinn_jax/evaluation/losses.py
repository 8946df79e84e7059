"""The losses of both models on held-out clips, with nothing generated: what is watched in training, and what runs of a
sweep are compared by."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from melodjinn_jax.codecs import Codec
from melodjinn_jax.config import EvaluationConfig
from melodjinn_jax.data.mixture import Mixture
from melodjinn_jax.evaluation.measures import clip_losses, cross_entropies
from melodjinn_jax.evaluation.music import draw_held_out, load_held_out_music
from melodjinn_jax.models.bottlenecks import finite_scalar_quantize
from melodjinn_jax.training.mesh import replicated, share_rows
from melodjinn_jax.training.run import CODEBOOK_PARTS, LAM_PARTS, Run, hearing
from melodjinn_jax.training.state import Models, State
from melodjinn_jax.training.step import encode_codes, encode_keys, reconstruction_loss, scaled_features


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


class HeldOutLosses:
    """The dynamics model's losses on the held-out clips of a music run, while it trains."""

    def __init__(self, models: Models, data: Mixture, codec: Codec):
        config = models.config
        stride = config.latent_actions.action_stride
        needed = ("codes", "id") if data.labels else ("waveform", "codes", "id")
        batch = draw_held_out(data, config.evaluation, stride, needed)
        hear = hearing(config, codec)
        self._codes = share_rows(batch["codes"].astype(np.int32))
        if data.labels:
            self._given = share_rows(batch["actions"].astype(np.int32))
        else:
            self._given = share_rows(batch["waveform"] if hear is None else hear(batch["codes"]))

        def losses(state: State, codes: jax.Array, given: jax.Array) -> dict[str, jax.Array]:
            keys = given if data.labels else encode_keys(models, state, given)
            dynamics = models.dynamics(state["dynamics"])
            actions = {"true_actions": keys, "no_actions": jnp.full_like(keys, models.num_codes)}
            return {name: clip_losses(dynamics, codes, chosen).mean() for name, chosen in actions.items()}

        self._losses = jax.jit(losses, out_shardings=replicated())

    def measure(self, state: State) -> dict[str, float]:
        """Nats per token under the clips' own actions and under none."""
        parts = {name: state[name] for name in (*LAM_PARTS, *CODEBOOK_PARTS) if name in state}
        parts["dynamics"] = state.get("dynamics_ema", state["dynamics"])
        return {name: float(loss) for name, loss in self._losses(parts, self._codes, self._given).items()}


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
