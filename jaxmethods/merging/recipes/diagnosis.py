"""A merged tower with the heads of its tasks as a classifier that can be diagnosed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data.images import Split
from jaxmethods.merging.adaptive.adaptation import Heads
from jaxmethods.merging.finetuning import Base, encode, to_pixels
from jaxmethods.merging.static.trees import Tree
from jaxmethods.models.clip.network import normalize
from jaxmethods.models.clip.vit import VisionConfig
from jaxmethods.stages import Diagnosable

IMAGES = 128
"""Images of every task."""


def diagnosable(
    vision: VisionConfig,
    tower: Tree,
    projection: jax.Array,
    heads: Heads,
    scale: float,
    train: list[Split],
    test: list[Split],
) -> Diagnosable:
    """The tower on the first images of all tasks, one classifier of all their classes.

    Args:
        vision: sizes of the tower.
        tower: merged parameters.
        projection: [P, D] to the features.
        heads: of T tasks.
        scale: of logits.
        train, test: every task's images.

    Returns:
        Outputs are logits [N, all classes]; projection and heads are frozen.
    """
    there = np.asarray(heads.classes)  # [T, C]
    rows = heads.weights[there]  # [all classes, P]
    first = np.concatenate([[0], np.cumsum(there.sum(1))[:-1]])

    def apply(params: Tree, pixels: jax.Array) -> jax.Array:
        features = encode(Base(params, projection), vision, pixels[None])[0]
        return scale * normalize(features) @ rows.T

    def joined(splits: list[Split]) -> tuple[Any, Any]:
        images = np.concatenate([split.images[:IMAGES] for split in splits])
        labels = [split.labels[:IMAGES] + at for split, at in zip(splits, first, strict=True)]
        return to_pixels(jnp.asarray(images)), np.concatenate(labels).astype(np.int32)

    title = "a merged tower (task arithmetic) with the heads of its tasks"
    return Diagnosable(title, apply, tower, "cross_entropy", joined(train), joined(test))
