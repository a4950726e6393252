"""A merged tower with the head of one task as a classifier that can be diagnosed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data.images import Split
from jaxmethods.merging.finetuning import Base, encode, to_pixels
from jaxmethods.merging.static.trees import Tree
from jaxmethods.models.clip.network import normalize
from jaxmethods.models.clip.vit import VisionConfig
from jaxmethods.stages import Diagnosable

IMAGES = 512
"""Images of either set, at most."""


def diagnosable(
    vision: VisionConfig,
    tower: Tree,
    projection: jax.Array,
    head: jax.Array,
    scale: float,
    train: Split,
    test: Split,
) -> Diagnosable:
    """The tower on the first images of a task.

    Args:
        vision: sizes of the tower.
        tower: merged parameters.
        projection: [P, D] to the features.
        head: [C, P] of the task.
        scale: of logits.
        train: images that experts were trained on.
        test: images that were held out.

    Returns:
        Outputs are logits [N, C]; projection and head are frozen.
    """

    def apply(params: Tree, pixels: jax.Array) -> jax.Array:
        features = encode(Base(params, projection), vision, pixels[None])[0]
        return scale * normalize(features) @ head.T

    def images(split: Split) -> tuple[jax.Array, np.ndarray]:
        labels = np.asarray(split.labels[:IMAGES], np.int32)
        return to_pixels(jnp.asarray(split.images[:IMAGES])), labels

    title = "a merged tower (task arithmetic) on its first task"
    return Diagnosable(title, apply, tower, "cross_entropy", images(train), images(test))
