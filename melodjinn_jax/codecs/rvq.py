"""Residual vector quantisation (Zeghidour et al. 2021, "SoundStream"). Entry 0 of every codebook stays zero.

So what embeds to zero, silence, always has the code 0 in every codebook, and decodes to exactly what it was.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_KMEANS_STEPS = 10
_SEEDS_AT_ONCE = 16
_MIN_COUNT = 1e-2  # an entry that nothing chose for long keeps its place


class Codebooks(NamedTuple):
    """Q codebooks of K entries, with the moving averages they are the quotient of."""

    entries: jax.Array
    """float32 [Q, K, Z]."""
    counts: jax.Array
    """float32 [Q, K]."""
    sums: jax.Array
    """float32 [Q, K, Z]."""


def quantize(entries: jax.Array, latents: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Nearest entries of [..., Z]: the quantised latents, codes int32 [..., Q], the residuals quantised [Q, ..., Z]."""
    residual, codes, residuals = latents, [], []
    for codebook in entries:
        # The squared distance, less the part that all entries share.
        code = _first_minimum((codebook**2).sum(-1) - 2 * residual @ codebook.T)
        codes.append(code)
        residuals.append(residual)
        residual = residual - codebook[code]
    return latents - residual, jnp.stack(codes, axis=-1), jnp.stack(residuals)


def _first_minimum(distances: jax.Array) -> jax.Array:
    """The index, int32 [...], of the least of [..., K]; ties go to the lowest. On a CPU ten times as fast as argmin."""
    last = distances.shape[-1] - 1
    least = distances.min(axis=-1, keepdims=True)
    # Indices up to 2^24 are exact in float32, whose minimum is the faster.
    return jnp.where(distances == least, jnp.arange(last + 1, dtype=jnp.float32), last).min(axis=-1).astype(jnp.int32)


def lookup(entries: jax.Array, codes: jax.Array) -> jax.Array:
    """The latents [..., Z] that codes [..., Q] stand for."""
    return sum((entries[q][codes[..., q]] for q in range(1, len(entries))), start=entries[0][codes[..., 0]])


def initial_codebooks(latents: np.ndarray, num_codebooks: int, codebook_size: int, seed: int) -> Codebooks:
    """Codebooks from k-means on latents [n, Z], then on what they leave over."""
    rng = np.random.default_rng(seed)
    residual, entries = latents, []
    for _ in range(num_codebooks):
        codebook = _kmeans(residual, codebook_size, rng)
        entries.append(codebook)
        residual = residual - codebook[_nearest(codebook, residual)]
    counts = np.full((num_codebooks, codebook_size), 0.5, np.float32)
    stacked = np.stack(entries)
    return Codebooks(jnp.asarray(stacked), jnp.asarray(counts), jnp.asarray(stacked * counts[..., None]))


def update_codebooks(books: Codebooks, codes: jax.Array, residuals: jax.Array, decay: float) -> Codebooks:
    """Move each entry towards the mean of what chose it (van den Oord et al. 2017, "Neural discrete representations").

    Args:
      books: the codebooks.
      codes: int32 [n, Q].
      residuals: float32 [Q, n, Z], what each codebook quantised.
      decay: of the moving averages.
    """
    chosen = jax.nn.one_hot(codes.T, books.entries.shape[1])
    counts = decay * books.counts + (1 - decay) * chosen.sum(axis=1)
    sums = decay * books.sums + (1 - decay) * jnp.einsum("qnk,qnz->qkz", chosen, residuals)
    alive = counts[..., None] > _MIN_COUNT
    entries = jnp.where(alive, sums / jnp.maximum(counts, _MIN_COUNT)[..., None], books.entries)
    return Codebooks(entries.at[:, 0].set(0.0), counts, sums)


def _nearest(codebook: np.ndarray, points: np.ndarray) -> np.ndarray:
    return ((codebook**2).sum(axis=1) - 2 * points @ codebook.T).argmin(axis=1)


def _kmeans(points: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """k-means++ seeds, several drawn at a time, then Lloyd's iterations; entry 0 stays zero."""
    codebook = np.zeros((size, points.shape[1]), np.float32)
    distance = (points**2).sum(axis=1).astype(np.float64)
    filled = 1
    while filled < size and distance.sum() > 0:  # fewer distinct points than entries: the others stay zero, unused
        for index in rng.choice(len(points), min(_SEEDS_AT_ONCE, size - filled), p=distance / distance.sum()):
            codebook[filled] = points[index]
            distance = np.minimum(distance, ((points - points[index]) ** 2).sum(axis=1))
            filled += 1
    for _ in range(_KMEANS_STEPS):
        chosen = np.zeros((len(points), size), np.float32)
        chosen[np.arange(len(points)), _nearest(codebook, points)] = 1
        counts = chosen.sum(axis=0)[:, None]
        codebook = np.where(counts > 0, chosen.T @ points / np.maximum(counts, 1), codebook)
        codebook[0] = 0
    return codebook
