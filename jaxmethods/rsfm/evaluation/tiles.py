r"""A model of small images applied to a whole scene.

The scene is continued by reflection, cut into overlapping windows, and what the model says of them
is added with weights that fall off to a window's edge as a cosine, over the sum of the weights: a
model that returns its input returns the scene, whatever its size.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def tiled_apply(
    model: Callable[[jax.Array], jax.Array],
    scene: jax.Array,
    window: int,
    stride: int | None = None,
    batch: int = 16,
) -> jax.Array:
    """Applies a model to every window of a scene and blends the results.

    Args:
        model: [B, window, window, C] -> [B, window, window, K], the same window for the same
            image, whatever its batch.
        scene: [H, W, C].
        window: pixels along a side; static.
        stride: pixels between windows; None: two thirds of a window.
        batch: windows that the model gets at a time; static.

    Returns:
        [H, W, K].

    Raises:
        ValueError: a stride that leaves gaps.
    """
    stride = max(window * 2 // 3, 1) if stride is None else stride
    if not 0 < stride <= window:
        raise ValueError(f"stride: expected 1 to window = {window}, got {stride}")
    starts, pads = zip(*(_starts(size, window, stride) for size in scene.shape[:2]), strict=True)
    rows, columns = np.meshgrid(*starts, indexing="ij")
    places = np.stack([rows.reshape(-1), columns.reshape(-1)], axis=1)
    number = len(places)
    places = jnp.asarray(np.concatenate([places, places[:1].repeat(-number % batch, axis=0)]))
    counted = jnp.arange(len(places)) < number
    padded = scene
    for axis, (before, after) in enumerate(pads):
        padded = _reflected(padded, axis, before, after)
    blend = jnp.asarray(_blend(window), jnp.float32)

    def cut(place: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(padded, (*place, 0), (window, window, scene.shape[2]))

    def add(carry: tuple[jax.Array, jax.Array], own: tuple[jax.Array, jax.Array]):
        own_places, own_counted = own
        said = model(jax.vmap(cut)(own_places))
        for place in range(batch):
            weight = blend * own_counted[place]
            carry = _added(carry, said[place], weight, own_places[place])
        return carry, None

    outputs = jax.eval_shape(
        model, jax.ShapeDtypeStruct((batch, window, window, scene.shape[2]), scene.dtype)
    )
    start = (
        jnp.zeros((*padded.shape[:2], outputs.shape[-1]), jnp.float32),
        jnp.zeros((*padded.shape[:2], 1), jnp.float32),
    )
    groups = (places.reshape(-1, batch, 2), counted.reshape(-1, batch))
    (total, weights), _ = jax.lax.scan(add, start, groups)
    (top, _), (left, _) = pads
    height, width = scene.shape[:2]
    blended = total / weights
    return blended[top : top + height, left : left + width].astype(outputs.dtype)


def _starts(size: int, window: int, stride: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Where windows begin in the continued scene, and by how much it is continued."""
    edge = (window - stride) // 2
    steps = -(-size // stride)
    length = (steps - 1) * stride + window
    return np.arange(steps) * stride, (edge, max(length - edge - size, 0))


def _reflected(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    """Continues an axis by reflection, again and again where it is short."""
    size = x.shape[axis]
    period = max(2 * size - 2, 1)
    places = np.abs(np.arange(-before, size + after)) % period
    return jnp.take(x, jnp.asarray(np.where(places < size, places, period - places)), axis=axis)


def _blend(window: int) -> np.ndarray:
    ramp = np.sin(np.pi * (np.arange(window) + 0.5) / window)
    return np.outer(ramp, ramp)[..., None]


def _added(
    carry: tuple[jax.Array, jax.Array], said: jax.Array, weight: jax.Array, place: jax.Array
) -> tuple[jax.Array, jax.Array]:
    start = (*place, 0)
    total, weights = carry
    here = jax.lax.dynamic_slice(total, start, said.shape) + said.astype(total.dtype) * weight
    there = jax.lax.dynamic_slice(weights, start, weight.shape) + weight
    return (
        jax.lax.dynamic_update_slice(total, here, start),
        jax.lax.dynamic_update_slice(weights, there, start),
    )
