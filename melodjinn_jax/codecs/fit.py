"""Fitting a small codec: without codes at first, then codebooks from k-means, then all of it together.

Measured on the drum world: Muon (Jordan et al. 2024) instead of Adam nearly halves the spectral error of as many
steps (not of music, see `Recipe`); a waveform loss that counts for more buys signal-to-noise ratio with what a listener
hears. Music needs it: out of phase from frame to frame, a low tone is a buzz.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from melodjinn_jax.codecs.fitted import (
    HOP_LENGTH,
    SAMPLE_RATE,
    FittedCodec,
    Functions,
    Params,
    initial_params,
    silent_frame,
)
from melodjinn_jax.codecs.music import MusicCodec, starting_params
from melodjinn_jax.codecs.rvq import Codebooks, initial_codebooks, quantize, update_codebooks
from melodjinn_jax.config import CodecConfig
from melodjinn_jax.errors import UserError
from melodjinn_jax.validation import check_codec

_BATCH = 12
_CROP_FRAMES = 24
_WARMUP_STEPS = 20
_STEPS_PER_CALL = 50
_EMA_DECAY = 0.95
_COMMITMENT = 0.25
_LOG_SPECTRUM = 2.0
_STFTS = ((1024, 512), (256, 128), (64, 32))  # windows and hops: the longest hears pitch, the shortest attacks
_SPECTRAL_FLOOR = 6e-4  # of full scale, -64 dB: what is softer need not be right
_KMEANS_CLIPS = 160
_KMEANS_FRAMES = 8000
_SILENCE = 1e-3  # peak of a frame that k-means leaves out: silence has its code already
_GAIN_CLIPS = 64


@dataclass(frozen=True)
class Recipe:
    """What the designs are fitted with."""

    muon: bool
    """Muon, or Adam: half the cost of a step, and as good where a transform has done most of the work."""
    learning_rate: float
    continuous_share: float
    """Of the steps, those before the codebooks."""
    waveform: float
    """Weight of the waveform's error. Drums: less lets bass come out upside down; more costs what is above it."""
    relative: bool
    """Each crop's error counts by its own level, not by that of all."""


_RECIPES = {FittedCodec: Recipe(True, 2e-2, 0.4, 0.3, False), MusicCodec: Recipe(False, 3e-3, 0.3, 3.0, True)}
_SOFTEST = 0.05  # of the mean power: crops softer than this count by it


class FitState(NamedTuple):
    """What changes from step to step."""

    params: Params
    optimizer: Any
    books: Codebooks


def fit_codec(
    waveforms: np.ndarray,
    config: CodecConfig,
    progress: Callable[[str], None] = lambda message: None,
    design: type[FittedCodec] = FittedCodec,
) -> FittedCodec:
    """Fit a small codec on training clips. The same clips and settings give the same codec on the same machine.

    Args:
      waveforms: float32 [B, F * H] at 24 kHz.
      config: sizes, steps and seed.
      progress: told a line at each stage.
      design: `FittedCodec` for drums, `MusicCodec` for music.

    Raises:
      UserError: naming the field of `codec` that cannot work, or if the clips are silent or not whole frames.
    """
    waveforms = np.asarray(waveforms, np.float32)
    check_codec(config, "codec")
    _check_clips(waveforms)
    recipe = _RECIPES[design]
    per_call = max(n for n in range(1, min(_STEPS_PER_CALL, config.steps // 2) + 1) if config.steps % n == 0)
    continuous = per_call * max(1, round(recipe.continuous_share * config.steps / per_call))
    crop = min(_CROP_FRAMES, waveforms.shape[1] // HOP_LENGTH)
    optimizer, advance = _compiled_steps(design, config.steps, crop)
    crops = _draw_crops(waveforms.shape, crop, config)
    on_device, power = jnp.asarray(waveforms), jnp.float32(waveforms.var())
    params = _initial_params(design, waveforms, config.seed)
    state = FitState(params, optimizer.init(params), _empty_codebooks(params, config))
    for start in range(0, config.steps, per_call):
        if start == continuous:
            latents = _sounding_latents(design.functions, state.params, waveforms, config.seed)
            books = initial_codebooks(latents, config.num_codebooks, config.codebook_size, config.seed)
            state = state._replace(books=books)
        quantized = jnp.full(per_call, float(start >= continuous))
        state, losses = advance(state, crops[start : start + per_call], quantized, on_device, power)
        if start + per_call in (continuous, config.steps):
            kind = "without" if start < continuous else "with"
            progress(f"codec: step {start + per_call} of {config.steps}, loss {float(losses.mean()):.2f} {kind} codes")
    return _calibrated(design, state, waveforms)


def _check_clips(waveforms: np.ndarray) -> None:
    if waveforms.ndim != 2 or waveforms.shape[1] % HOP_LENGTH or waveforms.size == 0:
        raise UserError(f"the clips {list(waveforms.shape)} to fit the codec on are no batch of frames of {HOP_LENGTH}")
    if np.abs(waveforms).max() <= _SILENCE:
        raise UserError("the clips to fit the codec on are silent: give clips with sound in them")


def _initial_params(design: type[FittedCodec], waveforms: np.ndarray, seed: int) -> Params:
    return starting_params(waveforms, seed) if design is MusicCodec else initial_params(jax.random.key(seed))


def _optimizer(steps: int, recipe: Recipe) -> optax.GradientTransformation:
    peak = recipe.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak, min(_WARMUP_STEPS, steps - 1), steps, 0.03 * peak)
    # Three Newton-Schulz steps are as good here as the usual five, and cheaper.
    rule = contrib.muon(schedule, ns_steps=3, adam_b2=0.99) if recipe.muon else optax.adam(schedule, b2=0.99)
    return optax.chain(optax.clip_by_global_norm(1.0), rule)


def _empty_codebooks(params: Params, config: CodecConfig) -> Codebooks:
    shape = (config.num_codebooks, config.codebook_size, params["encoder"][-1]["bias"].shape[0])
    return Codebooks(jnp.zeros(shape), jnp.zeros(shape[:2]), jnp.zeros(shape))


@functools.cache
def _compiled_steps(
    design: type[FittedCodec], steps: int, crop_frames: int
) -> tuple[optax.GradientTransformation, Callable]:
    """The optimiser, and several steps of it in one call: with and without codes by one program, compiled once."""
    recipe = _RECIPES[design]
    optimizer = _optimizer(steps, recipe)
    loss = functools.partial(_loss, design.functions, recipe)

    def step(waveforms: jax.Array, power: jax.Array, state: FitState, inputs: tuple[jax.Array, jax.Array]):
        crops, quantized = inputs
        target = jax.vmap(lambda crop: jax.lax.dynamic_slice(waveforms, crop, (1, crop_frames * HOP_LENGTH))[0])(crops)
        loss_function = functools.partial(loss, state.books.entries, target, quantized, power)
        (value, (codes, residuals)), gradients = jax.value_and_grad(loss_function, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        num_codebooks, *_, latent_dim = residuals.shape
        books = update_codebooks(
            state.books,
            codes.reshape(-1, num_codebooks),
            residuals.reshape(num_codebooks, -1, latent_dim),
            _EMA_DECAY,
        )
        return FitState(optax.apply_updates(state.params, updates), optimizer_state, books), value

    @jax.jit
    def advance(state: FitState, crops: jax.Array, quantized: jax.Array, waveforms: jax.Array, power: jax.Array):
        return jax.lax.scan(functools.partial(step, waveforms, power), state, (crops, quantized))

    return optimizer, advance


def _draw_crops(shape: tuple[int, ...], frames: int, config: CodecConfig) -> np.ndarray:
    """Clip and first sample of every crop of the fit, int32 [steps, batch, 2]."""
    rng = np.random.default_rng(config.seed)
    size = (config.steps, _BATCH)
    starts = HOP_LENGTH * rng.integers(shape[1] // HOP_LENGTH - frames + 1, size=size)
    return np.stack([rng.integers(shape[0], size=size), starts], axis=-1).astype(np.int32)


def _loss(
    functions: Functions,
    recipe: Recipe,
    entries: jax.Array,
    target: jax.Array,
    quantized: jax.Array,
    power: jax.Array,
    params: Params,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Reconstruction and commitment, with the codes and residuals that the codebooks learn from."""
    _, latents = functions.embed(params, silent_frame(len(target)), target)
    fixed = jax.lax.stop_gradient(latents)
    nearest, codes, residuals = quantize(entries, fixed)
    # Straight through: the decoder gets the codes' latents, the encoder the decoder's gradient.
    past = functions.silent_past(len(target))
    _, decoded = functions.synthesize(params, past, latents + quantized * (nearest - fixed))
    commitment = quantized * ((latents - nearest) ** 2).mean() / ((fixed**2).mean() + 1e-9)
    return _reconstruction_loss(recipe, target, decoded, power) + _COMMITMENT * commitment, (codes, residuals)


def _reconstruction_loss(recipe: Recipe, target: jax.Array, decoded: jax.Array, power: jax.Array) -> jax.Array:
    """Multi-resolution STFT loss (Yamamoto et al. 2020, "Parallel WaveGAN"), and the waveform itself."""
    error = (target - decoded) ** 2
    if recipe.relative:
        loss = recipe.waveform * (error.mean(axis=-1) / ((target**2).mean(axis=-1) + _SOFTEST * power)).mean()
    else:
        loss = recipe.waveform * error.mean() / power
    for window, hop in _STFTS:
        if window > target.shape[-1]:
            continue
        truth, guess = _stft_magnitudes(target, window, hop), _stft_magnitudes(decoded, window, hop)
        difference = jnp.log(truth + _SPECTRAL_FLOOR) - jnp.log(guess + _SPECTRAL_FLOOR)
        convergence = jnp.sqrt(((truth - guess) ** 2).sum() + 1e-9) / jnp.sqrt((truth**2).sum() + 1e-6)
        loss += _LOG_SPECTRUM * (_pitch_weights(window) * jnp.abs(difference)).mean() + convergence
    return loss


def _pitch_weights(window: int) -> np.ndarray:
    """How much each bin counts, [bins], 1 on average: as many mels as it spans.

    Were all hertz alike, the level of a bass under a hat would hardly count, and it is what one hears.
    """
    weights = 1 / (1 + np.fft.rfftfreq(window, 1 / SAMPLE_RATE) / 700)
    return (weights / weights.mean()).astype(np.float32)


def _stft_magnitudes(waveform: jax.Array, window: int, hop: int) -> jax.Array:
    """[B, T, bins], 1 for a sine of full scale."""
    starts = np.arange(0, waveform.shape[-1] - window + 1, hop)
    segments = waveform[:, starts[:, None] + np.arange(window)] * np.hanning(window).astype(np.float32)
    spectrum = jnp.fft.rfft(segments, axis=-1)
    # Not jnp.abs, whose gradient is not defined at zero, where silence is.
    return jnp.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-9) / (window / 2)


def _sounding_latents(functions: Functions, params: Params, waveforms: np.ndarray, seed: int) -> np.ndarray:
    """Latents [n, Z] of frames that sound: silence is most of a clip and would draw most of the entries."""
    clips = waveforms[np.abs(waveforms).max(axis=1) > _SILENCE][:_KMEANS_CLIPS]
    compiled = jax.jit(lambda clips: functions.embed(params, silent_frame(len(clips)), clips)[1])
    latents = np.concatenate([np.asarray(compiled(clips[i : i + 16])) for i in range(0, len(clips), 16)])
    sounding = np.abs(clips).reshape(len(clips), -1, HOP_LENGTH).max(axis=-1) > _SILENCE
    points = latents[sounding]
    order = np.random.default_rng(seed).permutation(len(points))[:_KMEANS_FRAMES]
    return points[order]


def _calibrated(design: type[FittedCodec], state: FitState, waveforms: np.ndarray) -> FittedCodec:
    """The codec with the gain that restores the level: a log-spectral loss settles a little below it."""
    entries = np.asarray(state.books.entries)
    clips = waveforms[np.abs(waveforms).max(axis=1) > _SILENCE][:_GAIN_CLIPS]
    plain = design(state.params, entries, gain=1.0)
    decoded = plain.decode(plain.encode(clips))
    gain = float(np.sqrt((clips.astype(np.float64) ** 2).sum() / max((decoded.astype(np.float64) ** 2).sum(), 1e-9)))
    return design(state.params, entries, gain)
