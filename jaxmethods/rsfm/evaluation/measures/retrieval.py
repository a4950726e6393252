r"""Images found by images, by texts, and texts found by images.

    R@k = share of queries with a match among the k most similar
    AP(q) = (1 / m) sum_{r: the r-th nearest matches} (matches among the r nearest) / r
    mean recall: over both directions of images and texts, and k = 1, 5, 10

Equal similarities count in favor of a match, but one that is NaN is the last of all: features that
diverged find nothing. Queries are ranked in chunks, so that never more than a chunk's similarities
are in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.models.clip.contrastive import unit
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.precision import wide


class Retrieved(NamedTuple):
    """How well every query finds its matches; means over queries are the measures."""

    first: jax.Array
    """[Q] int32: how many of the gallery are nearer than the nearest match; the largest int32 where
    nothing matches, which is found in no gallery."""
    precision: jax.Array
    """[Q] average precision; 0 where nothing matches."""


@compiled("chunk")
def rank(
    queries: jax.Array,
    marks: jax.Array,
    gallery: jax.Array,
    gallery_marks: jax.Array,
    *,
    chunk: int = 256,
) -> Retrieved:
    """Ranks a gallery for every query; equal marks match: classes, or numbers of images.

    Args:
        queries: [Q, P] features.
        marks: [Q] integers.
        gallery: [N, P] features.
        gallery_marks: [N] integers.
        chunk: queries ranked at a time; static.

    Returns:
        The rank of the first match and the average precision of every query.
    """
    # Ranks of half precision stop at a few hundred.
    queries, gallery = unit(wide(queries)), unit(wide(gallery))
    number, size = len(queries), min(chunk, len(queries))
    fill = -number % size
    rows = jnp.pad(queries, ((0, fill), (0, 0))).reshape(-1, size, queries.shape[1])
    own_marks = jnp.pad(marks, (0, fill)).reshape(-1, size)

    def ranked(part: tuple[jax.Array, jax.Array]) -> Retrieved:
        matches = part[1][:, None] == gallery_marks
        similarity = _without_nan(part[0] @ gallery.T, matches)  # [size, N]
        best = jnp.max(jnp.where(matches, similarity, -jnp.inf), axis=1, keepdims=True)
        nearer = jnp.sum(similarity > best, axis=1, dtype=jnp.int32)
        first = jnp.where(matches.any(axis=1), nearer, jnp.iinfo(jnp.int32).max)
        # Matches come first among equals: they are the larger of two keys.
        order = jnp.lexsort((1 - matches.astype(jnp.int32), -similarity), axis=1)
        hits = jnp.take_along_axis(matches, order, axis=1).astype(similarity.dtype)
        precision = jnp.cumsum(hits, axis=1) / jnp.arange(1, hits.shape[1] + 1)
        total = jnp.maximum(jnp.sum(hits, axis=1), 1)
        return Retrieved(first, jnp.sum(precision * hits, axis=1) / total)

    found = jax.lax.map(ranked, (rows, own_marks))
    return Retrieved(*(own.reshape(-1)[:number] for own in found))


def recall_of_pairs(first: jax.Array, second: jax.Array) -> jax.Array:
    """The share of rows [N, P] whose own row of the other features is the nearest one, [].

    Args:
        first: [N, P].
        second: [N, P].

    Returns:
        [] float32; equal ones count in its favor.
    """
    # Many similarities are equal in half precision.
    similarity = unit(wide(first)) @ unit(wide(second)).T
    similarity = _without_nan(similarity, jnp.eye(len(first), dtype=bool))
    own = jnp.diagonal(similarity)[:, None]
    return jnp.mean(jnp.sum(similarity > own, axis=1) == 0, dtype=jnp.float32)


def retrieval(
    image: jax.Array, text: jax.Array, text_image: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recalls and mean average precision in percent; an image's several texts all are matches.

    Args:
        image: [I, P] features.
        text: [T, P] features.
        text_image: [T] index of the image that a text describes.
        ks: how many may be looked at.

    Returns:
        "image_to_text_R1", "text_to_image_R1", ..., "mean_recall", "image_to_text_mAP" and
        "text_to_image_mAP".
    """
    images, texts = jnp.arange(len(image)), jnp.asarray(text_image)
    ways = {
        "image_to_text": rank(jnp.asarray(image), images, jnp.asarray(text), texts),
        "text_to_image": rank(jnp.asarray(text), texts, jnp.asarray(image), images),
    }
    found = {
        f"{way}_R{k}": 100.0 * float(np.mean(np.asarray(own.first) < k))
        for way, own in ways.items()
        for k in ks
    }
    found["mean_recall"] = float(np.mean(list(found.values())))
    precisions = {f"{way}_mAP": 100.0 * float(jnp.mean(own.precision)) for way, own in ways.items()}
    return found | precisions


def _without_nan(similarity: jax.Array, matches: jax.Array) -> jax.Array:
    """Similarities [Q, N] whose NaN come last, matches behind the others."""
    last = jnp.where(matches, -jnp.inf, jnp.finfo(similarity.dtype).min)
    return jnp.where(jnp.isnan(similarity), last.astype(similarity.dtype), similarity)
