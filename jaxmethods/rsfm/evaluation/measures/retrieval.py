r"""Recall of images by texts and of texts by images.

R@k = share of queries with a match among the k most similar;   mean recall: over both directions
                                                                and k = 1, 5, 10
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.rsfm.pretraining.contrastive import unit


def retrieval(
    image: jax.Array, text: jax.Array, text_image: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Recalls in percent; an image's several texts all count as matches.

    Args:
        image: [I, P] features.
        text: [T, P] features.
        text_image: [T] index of the image that a text describes.
        ks: how many may be looked at.

    Returns:
        "image_to_text_R1", "text_to_image_R1", ... and "mean_recall".
    """
    similarity = unit(jnp.asarray(image)) @ unit(jnp.asarray(text)).T  # [I, T]
    matches = jnp.arange(len(image))[:, None] == jnp.asarray(text_image)
    best = jnp.max(jnp.where(matches, similarity, -jnp.inf), axis=1, keepdims=True)
    by_image = np.asarray(jnp.sum(similarity > best, axis=1))
    own = similarity[jnp.asarray(text_image), jnp.arange(len(text))]
    by_text = np.asarray(jnp.sum(similarity > own, axis=0))
    ranks = {"image_to_text": by_image, "text_to_image": by_text}
    found = {
        f"{way}_R{k}": 100.0 * float(np.mean(rank < k)) for way, rank in ranks.items() for k in ks
    }
    return found | {"mean_recall": float(np.mean(list(found.values())))}
