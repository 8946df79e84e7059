"""Random weights of the 24 kHz EnCodec as its published file holds them, and a proof that codes differ only by ties."""

import json
from pathlib import Path

import jax
import numpy as np

from melodjinn_jax.codecs import EncodecCodec
from melodjinn_jax.codecs.encodec.model import build_params, embed, initial_encoder
from melodjinn_jax.codecs.encodec.weights import fold

LAYOUT: dict[str, list[int]] = json.loads((Path(__file__).parent / "encodec_layout.json").read_text())
"""Shapes by name, as tests/tools/encodec_layout.py wrote them."""
_GAIN, _DIRECTION = ".parametrizations.weight.original0", ".parametrizations.weight.original1"
_compiled_embed = jax.jit(embed)


def published_weights(seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded tensors, float32 by published name, through which sound passes at a sane level, with live codebooks."""
    rng = np.random.default_rng(seed)
    tensors = {name: _draw(rng, name, shape) for name, shape in LAYOUT.items()}
    residual = _latents(tensors, rng)
    for q in range(32):
        # Gaussians like the residual: with codebooks of zeros, as an untrained model has them, every code is 0.
        embed_name = f"quantizer.layers.{q}.codebook.embed"
        entries = residual.mean(axis=0) + 0.5 * residual.std(axis=0) * rng.normal(size=LAYOUT[embed_name])
        tensors[embed_name] = entries.astype(np.float32)
        nearest = ((entries**2).sum(axis=1) - 2 * residual @ entries.T).argmin(axis=1)
        residual = residual - entries[nearest]
    return tensors


def old_spelling(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same tensors with `weight_g` and `weight_v`."""
    return {
        name.replace(_GAIN, ".weight_g").replace(_DIRECTION, ".weight_v"): tensor for name, tensor in tensors.items()
    }


def _draw(rng: np.random.Generator, name: str, shape: list[int]) -> np.ndarray:
    if name.endswith(_GAIN):  # the length of a filter; a transposed convolution has its inputs in front
        drawn = rng.uniform(0.8, 1.2, shape)
    elif "bias" in name:
        drawn = rng.normal(0, 0.02, shape)
    elif "lstm" in name:
        drawn = rng.uniform(-0.06, 0.06, shape)
    else:
        drawn = rng.normal(size=shape)
    return drawn.astype(np.float32)


def _latents(tensors: dict[str, np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """What the encoder makes of noise of many levels, [n, 128]."""
    levels = np.repeat(10 ** rng.uniform(-2, 0, (4, 40)), 960, axis=1)
    noise = (0.5 * levels * rng.normal(size=levels.shape)).astype(np.float32)
    params = build_params(fold(tensors, "drawn"))["encoder"]
    _, latents = _compiled_embed(params, initial_encoder(len(noise)), noise)
    return np.asarray(latents).reshape(-1, latents.shape[-1]).astype(np.float64)


def embed_whole(codec: EncodecCodec, waveform: np.ndarray) -> np.ndarray:
    """Latents float32 [B, F, 128] of whole clips, before quantisation."""
    return np.asarray(_compiled_embed(codec._params["encoder"], initial_encoder(len(waveform)), waveform)[1])


def codes_beyond_ties(
    codec: EncodecCodec, latents: np.ndarray, codes: np.ndarray, others: np.ndarray, latent_error: float
) -> list[str]:
    """Frames in which two encoders differ by more than a tie; each as a line with the gap and what rounding allows.

    Where codes first differ, both encoders quantised the same residual r up to `latent_error`, the largest norm of the
    difference of their latents. Entries a and b then may change places if their squared distances to r differ by at
    most 2 |a - b| latent_error, plus the rounding of a squared distance in float32 on either side. What follows a tie
    in its frame says nothing.
    """
    entries = np.asarray(codec._params["codebooks"], np.float64)
    epsilon = float(np.finfo(np.float32).eps)
    beyond = []
    for row, frame in np.argwhere((codes != others).any(axis=2)):
        mine, theirs = codes[row, frame], others[row, frame]
        q = int((mine != theirs).argmax())
        r = latents[row, frame] - sum(entries[i, mine[i]] for i in range(q))
        a, b = entries[q, mine[q]], entries[q, theirs[q]]
        gap = abs(((r - a) ** 2).sum() - ((r - b) ** 2).sum())
        terms = (r**2).sum() + 2 * np.linalg.norm(r) * max(np.linalg.norm(a), np.linalg.norm(b)) + (a**2 + b**2).sum()
        allowed = 2 * np.linalg.norm(a - b) * latent_error + 8 * epsilon * terms
        if gap > allowed:
            beyond.append(f"clip {row}, frame {frame}, codebook {q}: a gap of {gap:.2e} against {allowed:.2e}")
    return beyond
