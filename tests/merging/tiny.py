"""A small vision tower with experts, for tests of what is built on one."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods import merging
from jaxmethods.merging.adaptive import adaptation, wemoe
from jaxmethods.models.clip import vit
from tests.programs import once

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
    return jax.tree.map(lambda leaf: jnp.round(leaf / step) * step, tree)


@once
def _drawn(vision, tasks, images, seed):
    """Base, stack, pixels [T, images, size, size, 3], heads and projection."""
    keys = jax.random.split(jax.random.key(seed), 4 + tasks)
    base = on_a_grid(vit.init(keys[0], vision))
    changes = [vit.init(key, vision) for key in keys[4:]]
    stack = jax.tree.map(
        lambda origin, *others: jnp.stack([origin + 0.25 * other for other in others]),
        base,
        *changes,
    )
    pixels = jax.random.normal(keys[1], (tasks, images, vision.image_size, vision.image_size, 3))
    width = vision.projection_dim
    heads = [
        jax.random.normal(jax.random.fold_in(keys[2], t), (4 + t, width)) for t in range(tasks)
    ]
    projection = jax.random.normal(keys[3], (width, vision.hidden_size))
    return base, on_a_grid(stack), pixels, heads, projection


@cache
def setting(vision=VISION, tasks=3, images=8, seed=0) -> Setting:
    """In float32."""
    with jax.enable_x64(False), jax.ensure_compile_time_eval():
        base, stack, pixels, heads, projection = _drawn(vision, tasks, images, seed)
        return Setting(
            base,
            stack,
            adaptation.unlabeled(list(pixels)),
            adaptation.stack_heads(heads),
            projection,
        )


@once
def merged() -> dict:
    """By task arithmetic at 0.3."""
    return merging.task_arithmetic(setting().base, setting().stack, 0.3)


def wemoe_batch(of: Setting, config) -> wemoe.Batch:
    model = wemoe.upcycle(of.base, of.stack, config)
    return wemoe.Batch(model, of.unlabeled, of.heads, of.projection, jnp.asarray(1.0))


def expert(of: Setting, task):
    return jax.tree.map(lambda leaf: leaf[task], of.stack)
