"""Neural collapse: how features of a classifier settle in the last phase of training.

With class means mu_c, their offsets m_c = mu_c - mu from the global mean, and covariances within
and between classes:

    NC1  tr(S_W S_B^+) / C                        variability within classes vanishes
    NC2  std|m_c| / mean|m_c|                     offsets are of equal length
         mean |cos(m_c, m_d) + 1 / (C - 1)|       and equal angles
         |M M^T / |M M^T| - ETF|_F                a simplex: (I - 1/C) / sqrt(C - 1)
    NC3  |W / |W| - M / |M||^2                    weights align with offsets
    NC4  share where argmax f != nearest mean

(Papyan, Han, Donoho, "Prevalence of neural collapse", 2020.)
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.precision import in_own_unit, wide
from jaxmethods.numerics.predictions import labeled


class Collapse(NamedTuple):
    """All [] but for the moments they are made of."""

    class_means: jax.Array
    """[C, D]."""
    global_mean: jax.Array
    """[D], over examples."""
    within: jax.Array
    """[D, D]."""
    between: jax.Array
    """[D, D]."""
    nc1: jax.Array
    nc2_norms: jax.Array
    nc2_angles: jax.Array
    nc2_etf: jax.Array
    nc3: jax.Array
    """NaN without weights."""
    nc4: jax.Array
    """NaN without weights."""
    empty: jax.Array
    """Classes without an example; they make every measure NaN."""


class Moments(NamedTuple):
    """Sums over examples, to be added over batches."""

    count: jax.Array
    """[C]."""
    total: jax.Array
    """[C, D]."""
    squares: jax.Array
    """[D, D]."""


def moments(features: jax.Array, labels: jax.Array, classes: int) -> Moments:
    """Sums of a batch of features [N, D] with labels [N]; `jax.tree.map(add)` joins batches.

    Rows whose label is no class, such as -1 of padding, are in none of them.
    """
    features = jnp.where(labeled(labels, classes)[:, None], wide(features), 0)
    member = jax.nn.one_hot(labels, classes, dtype=features.dtype)
    return Moments(jnp.sum(member, axis=0), member.T @ features, features.T @ features)


@compiled("classes")
def neural_collapse(
    features: jax.Array,
    labels: jax.Array,
    classes: int,
    weights: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> Collapse:
    """All measures of a batch.

    Args:
        features: inputs of the last layer [N, D].
        labels: int [N]; rows whose label is no class, such as -1 of padding, don't count.
        classes: C, at least 2.
        weights: of the last layer [D, C]; None: without NC3 and NC4.
        bias: [C]; None: 0.

    Returns:
        The measures [] with means and covariances.

    Raises:
        ValueError: fewer than two classes.
    """
    if classes < 2:
        raise ValueError(f"classes: expected at least 2, got {classes}")
    there = labeled(labels, classes)
    features = jnp.where(there[:, None], wide(features), 0)
    # Centered first: sums of squares far from the origin would lose the small covariance.
    center = jnp.mean(features, axis=0, where=there[:, None])
    sums = moments(features - center, labels, classes)
    found = from_moments(sums, weights)
    means = found.class_means + center
    nc4 = jnp.asarray(jnp.nan, features.dtype)
    if weights is not None:
        logits = features @ weights + (0 if bias is None else bias)
        offsets = features[:, None] - means  # [N, C, D]
        nearest = jnp.argmin(jnp.sum(offsets**2, axis=-1), axis=1)
        differs = jnp.argmax(logits, axis=1) != nearest
        nc4 = jnp.mean(differs, dtype=features.dtype, where=there)
        # The first class is the largest and the nearest of NaN: they would agree.
        unknown = (found.empty > 0) | jnp.any(jnp.isnan(logits))
        nc4 = jnp.where(unknown, jnp.nan, nc4)
    return found._replace(class_means=means, global_mean=found.global_mean + center, nc4=nc4)


def from_moments(sums: Moments, weights: jax.Array | None = None) -> Collapse:
    """NC1 to NC3 from sums over any number of batches; NC4 needs the examples and is NaN."""
    classes, total = len(sums.count), jnp.sum(sums.count)
    means = sums.total / sums.count[:, None]
    center = jnp.sum(sums.total, axis=0) / total
    offsets = means - center
    within = (sums.squares - (sums.count[:, None] * means).T @ means) / total
    between = offsets.T @ offsets / classes
    lengths = jnp.linalg.norm(offsets, axis=1)
    own = in_own_unit(offsets)
    gram, sizes = own @ own.T, jnp.linalg.norm(own, axis=1)
    cosines = gram / (sizes[:, None] * sizes)
    pairs = ~jnp.eye(classes, dtype=bool)
    angles = jnp.sum(jnp.where(pairs, jnp.abs(cosines + 1 / (classes - 1)), 0)) / jnp.sum(pairs)
    etf = (jnp.eye(classes) - 1 / classes) / (classes - 1) ** 0.5
    # S_B has rank C - 1 at most: what rounding leaves beyond is cut, not inverted.
    clean = jnp.where(jnp.isfinite(between), between, 0)
    nc1 = jnp.trace(within @ jnp.linalg.pinv(clean, rtol=_cut(clean), hermitian=True)) / classes
    empty = jnp.sum(sums.count == 0)
    nan = jnp.asarray(jnp.nan, means.dtype)
    nc3 = nan
    if weights is not None:
        unit = lambda matrix: matrix / jnp.linalg.norm(matrix)  # noqa: E731
        nc3 = jnp.sum((unit(weights) - unit(offsets.T)) ** 2)
    return Collapse(
        means,
        center,
        within,
        between,
        jnp.where(empty > 0, nan, nc1),
        jnp.std(lengths) / jnp.mean(lengths),
        angles,
        jnp.linalg.norm(gram / jnp.linalg.norm(gram) - etf),
        nc3,
        nan,
        empty,
    )


def _cut(matrix: jax.Array) -> float:
    return float(len(matrix) * 10 * jnp.finfo(matrix.dtype).eps)
