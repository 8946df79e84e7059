"""What a run says of its speed: tokens, sound and model FLOPs per second and chip, memory, goodput."""

from dataclasses import dataclass
from typing import Any

import jax

from melodjinn_jax.models.features import num_channels
from melodjinn_jax.models.flops import dynamics_flops, lam_decoder_flops, lam_encoder_flops
from melodjinn_jax.training.chips import find_chip
from melodjinn_jax.training.goodput import WallTime
from melodjinn_jax.training.state import Models, Phase


@dataclass(frozen=True)
class StepFlops:
    """Model FLOPs of one training step over the global batch, without what rematerialisation computes again."""

    lam: float
    dynamics: float

    @property
    def total(self) -> float:
        return self.lam + self.dynamics


def step_flops(models: Models, phase: Phase) -> StepFlops:
    """Three times the forward pass for what trains (the backward pass is two), once for the frozen LAM's encoder."""
    config, codec = models.config, models.codec
    actions, training = config.latent_actions, config.training
    channels = num_channels(actions, codec.sample_rate, codec.hop_length)
    blocks = training.crop_frames // actions.action_stride
    encoder = lam_encoder_flops(actions, channels, blocks)
    decoder = 0.0 if models.trains_jointly else lam_decoder_flops(actions, channels, blocks)
    dynamics = dynamics_flops(config.dynamics, codec.num_codebooks, codec.codebook_size, training.crop_frames)
    if phase is Phase.FROZEN:
        lam, trains_dynamics = (0.0 if config.data.actions else encoder), True
    else:
        is_early = phase is Phase.QUANTISE and config.phases.dynamics_start == "quantise"
        lam, trains_dynamics = 3 * (encoder + decoder), models.trains_jointly or is_early
        lam += encoder if is_early and not models.trains_jointly else 0.0  # the dynamics step's own keys
    return StepFlops(training.batch_size * lam, training.batch_size * 3 * dynamics * trains_dynamics)


class SpeedMeter:
    """Turns a number of steps and the seconds they took into the `speed` of a line of metrics."""

    def __init__(self, models: Models, wall_time: WallTime):
        self._models, self._wall_time = models, wall_time
        self._chips = jax.device_count()
        self._chip = find_chip(jax.devices()[0].device_kind)
        self._interrupted = 0.0

    def measure(self, phase: Phase, steps: int, seconds: float) -> dict[str, Any]:
        """Rates over the `steps` steps since the last call; per second and, where it says so, per chip.

        What interrupted the steps (compiling, looks, saves and the evaluation before them) is left out of their time,
        and counted in the goodput.
        """
        before, lost = self._interrupted, self._wall_time.lost
        self._interrupted = sum(lost[name] for name in ("compile", "looks", "checkpoint", "evaluation"))
        seconds -= self._interrupted - before
        training, codec = self._models.config.training, self._models.codec
        steps_per_second = steps / max(seconds, 1e-9)
        frames = steps_per_second * training.batch_size * training.crop_frames
        flops = step_flops(self._models, phase)
        rate = steps_per_second / self._chips
        measured = {
            "step_ms": 1000 / steps_per_second,
            "tokens_per_second": frames * codec.num_codebooks,
            "audio_seconds_per_second_per_chip": frames * codec.hop_length / codec.sample_rate / self._chips,
            "model_tflops_per_chip": flops.total * rate / 1e12,
        }
        if self._chip:
            measured["mfu"] = flops.total * rate / self._chip.flops
            measured["mfu_without_lam"] = flops.dynamics * rate / self._chip.flops
        if memory := jax.local_devices()[0].memory_stats():  # None on a CPU
            measured["memory_gib"] = memory["bytes_in_use"] / 2**30
            measured["peak_memory_gib"] = memory["peak_bytes_in_use"] / 2**30
        measured["goodput"] = self._wall_time.goodput()
        rounded = {name: float(f"{value:.4g}") for name, value in measured.items()}
        return {**rounded, "lost_seconds": {name: round(value, 3) for name, value in lost.items()}}
