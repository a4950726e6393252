r"""Codebooks: the nearest entry, moving averages, restarts, k-means++ starts, use.

    j*_m = argmin_j |z_m - e_j|^2 (the lowest on ties),    |e| <= rho after every update

van den Oord et al. 2017 (arXiv 1711.00937), appendix A.1 for moving averages; the bound rho is that
of Hu et al., VQ-CD, arXiv 2410.15698, section 3.1.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.vqcd.config import AlignmentConfig


class Averages(NamedTuple):
    """Moving averages of what falls to each entry."""

    count: jax.Array
    """[N] rows a batch."""
    total: jax.Array
    """[N, d] their sum."""


def nearest(codebook: jax.Array, z: jax.Array) -> jax.Array:
    """The nearest entry of a codebook [N, d] to each vector [..., d], int32 [...]."""
    # Differences, not |z|^2 - 2 z e + |e|^2: that loses the digits that tell close entries apart.
    distance = jnp.square(z[..., None, :] - codebook).sum(-1)  # [..., N]
    least = distance.min(-1, keepdims=True)
    # Two vectorized passes; XLA's argmin on CPU is a scalar loop. A NaN is nearest to nothing.
    places = jnp.arange(codebook.shape[0], dtype=jnp.int32)
    found = jnp.where(distance == least, places, codebook.shape[0] - 1)
    return found.min(-1)


def clip(codebook: jax.Array, config: AlignmentConfig) -> jax.Array:
    """The codebook within rho: every number, or the norm of every entry."""
    if config.clip == "elementwise":
        return jnp.clip(codebook, -config.rho, config.rho)
    norm = jnp.linalg.norm(codebook, axis=-1, keepdims=True)
    return codebook * jnp.minimum(1.0, config.rho / jnp.maximum(norm, 1e-12))


def use_counts(index: jax.Array, codes: int) -> jax.Array:
    """How often each of N = `codes` entries occurs in an array of indices, float32 [N]."""
    return jnp.zeros(codes).at[index.reshape(-1)].add(1.0)


def update_averages(
    averages: Averages, z: jax.Array, index: jax.Array, config: AlignmentConfig
) -> tuple[Averages, jax.Array]:
    """One step of the moving averages and the codebook that they make.

    Args:
        averages: those before.
        z: [..., d] encoded vectors.
        index: [...] their entries.
        config: decay, smoothing, rho; static.

    Returns:
        Averages and codebook [N, d]. Counts are smoothed (Laplace), so that an entry that nothing
        falls to is not divided by 0.
    """
    codes, width = averages.total.shape
    flat = z.reshape(-1, width)  # [n, d]
    decay = config.ema_decay
    count = decay * averages.count + (1 - decay) * use_counts(index, codes)
    fallen = jnp.zeros((codes, width), flat.dtype).at[index.reshape(-1)].add(flat)  # [N, d]
    total = decay * averages.total + (1 - decay) * fallen
    everything, smoothing = count.sum(), config.ema_smoothing
    smoothed = (count + smoothing) / (everything + codes * smoothing) * everything
    return Averages(count, total), clip(total / smoothed[:, None], config)


def kmeans_start(key: jax.Array, z: jax.Array, codes: int) -> jax.Array:
    """`codes` rows of z [R, d], by k-means++: each with probability ~ its squared distance.

    Arthur and Vassilvitskii 2007. Once every row is taken, rows are drawn uniformly.
    """
    first_key, key = jax.random.split(key)
    first = z[jax.random.randint(first_key, (), 0, z.shape[0])]

    def pick(distance: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        weights = jnp.where(distance.max() > 0, distance, jnp.ones_like(distance))
        row = z[jax.random.categorical(key, jnp.log(weights))]
        return jnp.minimum(distance, jnp.square(z - row).sum(-1)), row

    start = jnp.square(z - first).sum(-1)
    _, rows = jax.lax.scan(pick, start, jax.random.split(key, codes - 1))
    return jnp.concatenate([first[None], rows])


def restart(
    key: jax.Array, codebook: jax.Array, idle: jax.Array, z: jax.Array, config: AlignmentConfig
) -> tuple[jax.Array, jax.Array]:
    """Puts entries that have not been used for long where encoded vectors are.

    Args:
        key: [] typed key.
        codebook: [N, d].
        idle: [N] int32 steps since each entry was used.
        z: [R, d] vectors of this batch.
        config: `restart_after`, rho; static.

    Returns:
        The codebook, and which entries [N] bool were moved.
    """
    dead = idle >= config.restart_after
    rows = z[jax.random.randint(key, (codebook.shape[0],), 0, z.shape[0])]
    return jnp.where(dead[:, None], clip(rows, config), codebook), dead


class Use(NamedTuple):
    """How much of a codebook is used."""

    share: jax.Array
    """[] of entries that occur."""
    perplexity: jax.Array
    """[] the exponential of the entropy of their frequencies."""


def code_use(index: jax.Array, codes: int) -> Use:
    """Use of N = `codes` entries by an array of indices."""
    counts = use_counts(index, codes)
    frequency = counts / counts.sum()
    entropy = -(frequency * jnp.log(jnp.where(frequency > 0, frequency, 1.0))).sum()
    return Use((counts > 0).mean(), jnp.exp(entropy))
