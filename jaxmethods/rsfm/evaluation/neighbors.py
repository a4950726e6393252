r"""Nearest neighbors of frozen features.

    s_c(q) = sum_{i in k nearest, y_i = c} exp(cos(q, x_i) / T)

Wu et al. 2018 (arXiv 1805.01978); k = 20 and T = 0.07 as Scale-MAE evaluates. Below T = 1 / 80,
where exponentials overflow, all classes' scores are divided by that of the nearest image. Queries
are compared in chunks, so that never more than a chunk's similarities are in memory.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from jaxmethods.models.clip.contrastive import unit
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.order_statistics import largest
from jaxmethods.numerics.precision import wide
from jaxmethods.numerics.predictions import labeled

Metric = Literal["cosine", "l2"]


@compiled("classes", "k", "metric", "weighted", "chunk")
def neighbor_scores(
    features: jax.Array,
    labels: jax.Array,
    queries: jax.Array,
    *,
    classes: int,
    k: int = 20,
    temperature: float = 0.07,
    metric: Metric = "cosine",
    weighted: bool = True,
    chunk: int = 1024,
) -> jax.Array:
    """What the nearest neighbors vote for.

    Args:
        features: [N, D] of the training images.
        labels: [N] integers; an image whose label is no class, such as -1, is nobody's neighbor.
        queries: [Q, D].
        classes: C; static.
        k: neighbors that vote; static.
        temperature: T of the weights.
        metric: "cosine", or "l2" of features as they are; static.
        weighted: by exp(similarity / T), or one vote each; static.
        chunk: queries compared at a time; static.

    Returns:
        [Q, C] scores; the prediction is the largest, the first of equals. NaN for a query that is
        near to nothing: it is not finite, or no training image is.

    Raises:
        ValueError: more neighbors than images, or weights of distances.
    """
    if not 0 < k <= len(features):
        raise ValueError(f"k: expected 1 to the {len(features)} training images, got {k}")
    if weighted and metric == "l2":
        raise ValueError("weighted: expected False with metric l2")
    features, queries = wide(features), wide(queries)
    if metric == "cosine":
        features, queries = unit(features), unit(queries)
        shift = jnp.zeros(len(features), features.dtype)
    else:
        # Around the mean, differences of large numbers stay small.
        sound = jnp.isfinite(features).all(axis=1, keepdims=True)
        center = jnp.mean(features, axis=0, where=sound)
        features, queries = features - center, queries - center
        shift = -0.5 * jnp.sum(jnp.square(features), axis=1)
    shift = jnp.where(labeled(labels, classes), shift, -jnp.inf)
    number, size = len(queries), min(chunk, len(queries))
    padded = jnp.pad(queries, ((0, -number % size), (0, 0)))

    def vote(own: jax.Array) -> jax.Array:
        similarity = own @ features.T + shift
        # A broken training image would be the nearest of all.
        similarity = jnp.where(jnp.isnan(similarity), -jnp.inf, similarity)
        near, places = largest(similarity, k)  # [size, k]
        top = jnp.where(temperature * 80 < 1, near[:, :1], 0)  # exp(88) is float32's largest
        weight = jnp.exp((near - top) / temperature) if weighted else jnp.ones_like(near)
        weight = jnp.where(near > -jnp.inf, weight, 0)
        rows = jnp.arange(size)[:, None]
        votes = jnp.zeros((size, classes), near.dtype).at[rows, labels[places]].add(weight)
        near_to_some = jnp.isfinite(own).all(axis=1, keepdims=True) & (near[:, :1] > -jnp.inf)
        return jnp.where(near_to_some, votes, jnp.nan)

    scores = jax.lax.map(vote, padded.reshape(-1, size, padded.shape[1]))
    return scores.reshape(-1, classes)[:number]
