"""A small vision tower with experts, for tests of what is built on one."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods import merging
from jaxmethods.merging.adaptive import adaptation, wemoe
from jaxmethods.models.clip import vit
from tests.programs import normal, once, weights

VISION = vit.VisionConfig(
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=8,
    patch_size=4,
    projection_dim=6,
)


class Setting(NamedTuple):
    """T = 3 tasks of 4, 5 and 6 classes, eight images each."""

    base: dict
    stack: dict
    unlabeled: adaptation.Unlabeled
    heads: adaptation.Heads
    projection: jax.Array


def on_a_grid(tree, step=2.0**-8):
    """Leaves rounded to multiples of a power of two: sums and differences of them are exact."""
    return jax.tree.map(lambda leaf: (np.round(leaf / step) * step).astype(np.float32), tree)


@cache
def _setting(vision, tasks, images, seed):
    base = on_a_grid(weights(vit.init, vision, seed=seed))
    changes = [weights(vit.init, vision, seed=100 + seed + task) for task in range(tasks)]
    stack = jax.tree.map(
        lambda origin, *others: np.stack([origin + 0.25 * other for other in others]),
        base,
        *changes,
    )
    size, width = vision.image_size, vision.projection_dim
    counts = np.full(tasks, images, np.int32)
    heads = [normal(300 + task, 4 + task, width) for task in range(tasks)]
    classes = np.arange(3 + tasks) < np.arange(4, 4 + tasks)[:, None]
    padded = [np.pad(head, [(0, tasks - 1 - task), (0, 0)]) for task, head in enumerate(heads)]
    return Setting(
        base,
        on_a_grid(stack),
        adaptation.Unlabeled(normal(200 + seed, tasks, images, size, size, 3), counts),
        adaptation.Heads(np.stack(padded), classes),
        normal(400 + seed, width, vision.hidden_size),
    )


def setting(vision=VISION, tasks=3, images=8, seed=0) -> Setting:
    """In float32, drawn by numpy."""
    with jax.enable_x64(False):
        return _setting(vision, tasks, images, seed)


@once
def merged() -> dict:
    """By task arithmetic at 0.3."""
    return merging.task_arithmetic(setting().base, setting().stack, 0.3)


def wemoe_batch(of: Setting, config) -> wemoe.Batch:
    model = wemoe.upcycle(of.base, of.stack, config)
    return wemoe.Batch(model, of.unlabeled, of.heads, of.projection, jnp.asarray(1.0))


def expert(of: Setting, task):
    return jax.tree.map(lambda leaf: leaf[task], of.stack)
