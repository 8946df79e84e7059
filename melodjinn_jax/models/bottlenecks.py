"""What a latent action passes through: continuous with noise, an EMA codebook, or finite scalar quantisation.

The continuous bottleneck has unit noise and a price on information; after a warm-up with it the codebook is read off
from the clusters of the latents. All functions are pure; a codebook is a dict of arrays so that it travels with the
training state.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Where spare entries wait: no latent comes near them, so they are never chosen.
FAR_AWAY = 1e3

Codebook = dict[str, jax.Array]
"""`vectors` [K, Z] and the statistics that move them. Of a codebook of events also `radius` []: what is nearer to the
origin is NOOP, code 0."""


def add_noise(latents: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Unit-variance Gaussian bottleneck (Alemi et al. 2017): noisy latents, and the mean KL divergence in nats."""
    divergence = 0.5 * jnp.sum(latents**2, axis=-1).mean()
    return latents + jax.random.normal(key, latents.shape), divergence


def empty_codebook(max_codes: int, latent_dim: int) -> Codebook:
    """A codebook without entries in use."""
    vectors = jnp.full((max_codes, latent_dim), FAR_AWAY)
    return {
        "vectors": vectors,
        "counts": jnp.zeros(max_codes),
        "sums": jnp.zeros_like(vectors),
        "idle": jnp.zeros(max_codes),
    }


def random_codebook(key: jax.Array, max_codes: int, latent_dim: int) -> Codebook:
    """The classical start: every entry drawn at random (van den Oord et al. 2017)."""
    vectors = 0.3 * jax.random.normal(key, (max_codes, latent_dim))
    return _codebook(vectors, jnp.ones(max_codes), vectors)


def _codebook(vectors: jax.Array, counts: jax.Array, sums: jax.Array) -> Codebook:
    # Copies, because a training step is donated every one of these buffers.
    return {
        "vectors": jnp.array(vectors),
        "counts": jnp.array(counts),
        "sums": jnp.array(sums),
        "idle": jnp.zeros_like(counts),
    }


def nearest_codes(vectors: jax.Array, latents: jax.Array) -> jax.Array:
    """Index of the nearest entry: latents [..., Z] to int32 [...]."""
    distances = jnp.sum(vectors**2, axis=-1) - 2 * latents @ vectors.T
    return jnp.argmin(distances, axis=-1).astype(jnp.int32)


def assign_codes(codebook: Codebook, latents: jax.Array) -> jax.Array:
    """Codes int32 [...] of latents [..., Z]: the nearest entry; where there is a radius, the entry of the nearest
    direction, and NOOP within the radius."""
    if "radius" not in codebook:
        return nearest_codes(codebook["vectors"], latents)
    # Entry 0 is NOOP's.
    kinds = codebook["vectors"][1:]
    directions = kinds / jnp.maximum(jnp.linalg.norm(kinds, axis=-1, keepdims=True), 1e-9)
    events = 1 + jnp.argmax(latents @ directions.T, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.sum(latents**2, axis=-1) < codebook["radius"] ** 2, 0, events)


def quantize(codebook: Codebook, latents: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Vector quantisation with a straight-through gradient.

    Returns:
      codes int32 [...], quantised latents [..., Z], and the commitment loss.
    """
    codes = assign_codes(codebook, jax.lax.stop_gradient(latents))
    chosen = codebook["vectors"][codes]
    commitment = jnp.sum((latents - chosen) ** 2, axis=-1).mean()
    return codes, latents + jax.lax.stop_gradient(chosen - latents), commitment


def update_codebook(codebook: Codebook, latents: jax.Array, codes: jax.Array, decay: float) -> Codebook:
    """Move entries towards the mean of the latents assigned to them (exponential moving averages)."""
    flat = latents.reshape(-1, latents.shape[-1])
    assigned = jax.nn.one_hot(codes.reshape(-1), len(codebook["vectors"]))
    hits = assigned.sum(axis=0)
    counts = decay * codebook["counts"] + (1 - decay) * hits
    sums = decay * codebook["sums"] + (1 - decay) * assigned.T @ flat
    means = sums / jnp.maximum(counts, 1e-3)[:, None]
    return {
        **codebook,
        "vectors": jnp.where((counts > 1e-3)[:, None], means, codebook["vectors"]),
        "counts": counts,
        "sums": sums,
        "idle": jnp.where(hits > 0, 0.0, codebook["idle"] + 1),
    }


def reset_dead_code(codebook: Codebook, latents: jax.Array, key: jax.Array, patience: int = 20) -> Codebook:
    """Re-seed the entry unused for longest, if unused for `patience` steps, from a latent drawn by its error.

    Kept for the comparison with the classical start: a re-seeded entry takes over part of another's cell, which
    changes what existing codes mean.
    """
    flat = latents.reshape(-1, latents.shape[-1])
    error = jnp.sum((flat - codebook["vectors"][nearest_codes(codebook["vectors"], flat)]) ** 2, axis=-1)
    drawn = flat[jax.random.categorical(key, jnp.log(error + 1e-12))]
    dead = jnp.argmax(codebook["idle"])
    count = jnp.maximum(0.1 * codebook["counts"].mean(), 1.0)
    reseeded = {
        **codebook,
        "vectors": codebook["vectors"].at[dead].set(drawn),
        "counts": codebook["counts"].at[dead].set(count),
        "sums": codebook["sums"].at[dead].set(count * drawn),
        "idle": codebook["idle"].at[dead].set(0.0),
    }
    is_dead = codebook["idle"][dead] > patience
    return jax.tree.map(lambda new, old: jnp.where(is_dead, new, old), reseeded, codebook)


def finite_scalar_quantize(latents: jax.Array, levels: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """FSQ (Mentzer et al. 2023): each dimension rounded to one of its levels, straight-through.

    Returns:
      codes int32 [...] below the product of the levels, and quantised latents in [-1, 1].
    """
    counts = np.array(levels)
    half = (counts - 1) / 2
    offset = np.where(counts % 2 == 0, 0.5, 0.0)
    bounded = jnp.tanh(latents) * half
    rounded = jnp.clip(jnp.round(bounded - offset) + offset, -half, half)
    digits = jnp.round(rounded + half).astype(jnp.int32)
    place = np.cumprod([1, *levels[:-1]])
    return (digits * place).sum(axis=-1), (bounded + jax.lax.stop_gradient(rounded - bounded)) / half


def fsq_vectors(levels: tuple[int, ...]) -> np.ndarray:
    """The quantised latent of every FSQ code: float32 [codes, len(levels)]."""
    place = np.cumprod([1, *levels[:-1]])
    counts = np.array(levels)
    digits = np.arange(np.prod(levels))[:, None] // place % counts
    return (2 * digits / (counts - 1) - 1).astype(np.float32)


def read_off_codebook(
    latents: np.ndarray, max_codes: int, radius: float, batch_vectors: int, min_share: float = 0.002
) -> Codebook:
    """A codebook from the clusters of a warm-up's noise-free latents.

    Centres start at the median and then at the farthest latent, until all lie within `radius` of one; Lloyd steps
    follow, merging centres closer than `radius` and dropping those with a share below `min_share`. Entry 0 is the one
    nearest to the origin: the prior, that is NOOP.

    Args:
      latents: float [n, Z], in units of the bottleneck's noise.
      max_codes: entries of the codebook; unused ones are parked far away.
      radius: in the same units.
      batch_vectors: latents in a training batch, the scale of the moving averages.
      min_share: smallest cluster kept.
    """
    latents = np.asarray(latents, np.float64)
    centres = np.median(latents, axis=0)[None]
    nearest = np.sum((latents - centres[0]) ** 2, axis=-1)
    while len(centres) < max_codes and nearest.max() > radius**2:
        centres = np.concatenate([centres, latents[nearest.argmax()][None]])
        nearest = np.minimum(nearest, np.sum((latents - centres[-1]) ** 2, axis=-1))
    for iteration in range(20):
        centres, sizes = _lloyd_step(latents, centres)
        if iteration >= 5:
            centres = _merge_or_drop(centres, sizes, radius, min_share * len(latents))
    centres, sizes = _lloyd_step(latents, centres)
    order = np.argsort(np.sum(centres**2, axis=-1))
    centres, sizes = centres[order], sizes[order]
    codebook = {name: np.array(value) for name, value in empty_codebook(max_codes, latents.shape[1]).items()}
    counts = sizes / len(latents) * batch_vectors
    codebook["vectors"][: len(centres)] = centres
    codebook["counts"][: len(centres)] = counts
    codebook["sums"][: len(centres)] = centres * counts[:, None]
    return {name: jnp.asarray(value, jnp.float32) for name, value in codebook.items()}


def read_off_events(
    latents: np.ndarray, max_codes: int, event_share: float, batch_vectors: int, restarts: int = 8
) -> Codebook:
    """A codebook of `max_codes` - 1 kinds of events, from a warm-up's noise-free latents.

    Music has no clusters to be found, only latents that say more or less: half their squared norm is their information
    in nats. Those that say most are the events; all else is NOOP. What kind an event is of its direction tells, by
    spherical k-means (Dhillon and Modha 2001), the best of some restarts: by their distances, strong and weak events of
    one direction would be two kinds.

    Args:
      latents: float [n, Z], in units of the bottleneck's noise.
      max_codes: entries of the codebook; entry 0 is NOOP.
      event_share: share of the latents that are events, in (0, 1).
      batch_vectors: latents in a training batch, the scale of the moving averages.
      restarts: of k-means.
    """
    latents = np.asarray(latents, np.float64)
    norms = np.linalg.norm(latents, axis=1)
    radius = np.quantile(norms, 1 - event_share)
    events, kinds = latents[norms >= radius], max_codes - 1
    directions = _unit(events)
    rng = np.random.default_rng(0)
    best, most = directions[:kinds], -np.inf
    for _ in range(restarts):
        centres = directions[rng.choice(len(events), kinds, replace=len(events) < kinds)]
        for _ in range(50):
            centres = _unit(_lloyd_step(directions, centres)[0])
        likeness = (directions @ centres.T).max(axis=1).sum()
        if likeness > most:
            best, most = centres, likeness
    noop = latents[norms < radius].mean(axis=0, keepdims=True)
    vectors = jnp.asarray(np.concatenate([noop, norms[norms >= radius].mean() * best]), jnp.float32)
    sizes = np.concatenate([[np.sum(norms < radius)], _lloyd_step(directions, best)[1]])
    counts = jnp.asarray(sizes / len(latents) * batch_vectors, jnp.float32)
    return {**_codebook(vectors, counts, vectors * counts[:, None]), "radius": jnp.float32(radius)}


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def _lloyd_step(latents: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distances = np.sum(centres**2, axis=-1) - 2 * latents @ centres.T
    assigned = distances.argmin(axis=1)
    sizes = np.bincount(assigned, minlength=len(centres))
    sums = np.zeros_like(centres)
    np.add.at(sums, assigned, latents)
    return np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres), sizes


def _merge_or_drop(centres: np.ndarray, sizes: np.ndarray, radius: float, min_size: float) -> np.ndarray:
    """Merge the closest pair if it is too close, or else drop the smallest centre if it is too small."""
    if len(centres) == 1:
        return centres
    gaps = np.sqrt(np.sum((centres[:, None] - centres) ** 2, axis=-1)) + np.diag(np.full(len(centres), np.inf))
    first, second = np.unravel_index(gaps.argmin(), gaps.shape)
    if gaps[first, second] < radius:
        weights = np.maximum(sizes[[first, second]], 1)
        centres[first] = np.average(centres[[first, second]], axis=0, weights=weights)
        return np.delete(centres, second, axis=0)
    if sizes.min() < min_size:
        return np.delete(centres, sizes.argmin(), axis=0)
    return centres
