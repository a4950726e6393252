"""What a step of pretraining sees: random images, cropped, mirrored and normalized on the device.

Images stay as they were read (bytes, 16-bit numbers) until a step draws some. A crop that is
enlarged has smaller pixels on the ground, so the ground sampling distance follows it. Images of
another sensor are drawn with the same key: the same places, crops and mirrors.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.data.crops import crop_maps
from jaxmethods.numerics.keys import named
from jaxmethods.rsfm.config import PretrainConfig
from jaxmethods.rsfm.pretraining.targets import without_gaps


class Texts(NamedTuple):
    """Captions as token ids, K of every image; a view has one of them."""

    ids: jax.Array
    """[N, K, L] int32; [B, L] of views."""
    mask: jax.Array
    """The same shape, 0 at padding."""


class Pixels(NamedTuple):
    """Images to learn from, all of them on the device."""

    images: jax.Array
    """[N, H, W, C] of any type, or [N, T, H, W, C] of several dates."""
    mean: jax.Array
    """[C], in the unit of the images."""
    std: jax.Array
    """[C]"""
    valid: jax.Array | None = None
    """[N, H, W] bool; None: all pixels have data. What has none may be NaN."""
    gsd: jax.Array | None = None
    """[N] meters of a pixel."""
    slots: jax.Array | None = None
    """[B] int32, 0 to B - 1; how it is split over devices decides how a step's images are."""
    timestamps: jax.Array | None = None
    """[N, T, 3] year - 2002, month - 1, hour of every date."""
    other: Pixels | None = None
    """The same N places, in the same order, by another sensor."""
    texts: Texts | None = None
    """Captions of each of the N images."""


class Views(NamedTuple):
    """The images of one step."""

    images: jax.Array
    """[B, H, W, C] float32, normalized; [B, T, H, W, C] of several dates."""
    valid: jax.Array | None
    """[B, H, W] bool"""
    gsd: jax.Array | None
    """[B] meters of a pixel of the view."""
    timestamps: jax.Array | None = None
    """[B, T, 3]"""
    other: Views | None = None
    """The other sensor's."""
    texts: Texts | None = None


def draw_views(key: jax.Array, batch: Pixels, training: PretrainConfig) -> Views:
    """Random images, cropped and mirrored at random, normalized.

    Args:
        key: [] typed random key of the step.
        batch: N images.
        training: batch size and crops.

    Returns:
        B views.
    """
    number = training.batch
    slots = jnp.arange(number) if batch.slots is None else batch.slots
    rows = jax.random.randint(named(key, "rows"), (number,), 0, len(batch.images))[slots]
    valid = None if batch.valid is None else batch.valid[rows]
    images = without_gaps(normalized(batch.images[rows], batch), valid)
    gsd = None if batch.gsd is None else batch.gsd[rows]
    if training.crop < 1:
        keys = jax.random.split(named(key, "crops"), number)[slots]
        maps, sides = jax.vmap(crop_maps, (0, None, None))(keys, images.shape[-2], training.crop)
        images = jnp.einsum("bph,b...hwc->b...pwc", maps[:, 0], images)
        images = jnp.einsum("bqw,b...pwc->b...pqc", maps[:, 1], images)
        if valid is not None:
            seen = jnp.einsum("bph,bhw,bqw->bpq", maps[:, 0], 1.0 - valid, maps[:, 1])
            valid = seen < 1e-6  # none of the pixels that a pixel is made of lacks data
        gsd = None if gsd is None else gsd * sides
    if training.mirror:
        turn = jax.random.bernoulli(named(key, "mirror"), 0.5, (3, number))[:, slots]
        images = mirrored(images, turn, (-3, -2))
        valid = None if valid is None else mirrored(valid, turn, (-2, -1))
    return Views(
        images,
        valid,
        gsd,
        None if batch.timestamps is None else batch.timestamps[rows],
        _draw_other(key, batch, training),
        _draw_texts(key, batch.texts, rows),
    )


def whole_views(batch: Pixels) -> Views:
    """All images as they are, normalized, without crops; of captions the first."""
    other = None if batch.other is None else whole_views(batch.other)
    images = without_gaps(normalized(batch.images, batch), batch.valid)
    texts = None if batch.texts is None else jax.tree.map(lambda own: own[:, 0], batch.texts)
    return Views(images, batch.valid, batch.gsd, batch.timestamps, other, texts)


def normalized(images: jax.Array, batch: Pixels) -> jax.Array:
    """(x - mean) / std in float32, whatever the images' type."""
    return (images.astype(jnp.float32) - batch.mean) / batch.std


def _draw_other(key: jax.Array, batch: Pixels, training: PretrainConfig) -> Views | None:
    if batch.other is None:
        return None
    return draw_views(key, batch.other._replace(slots=batch.slots), training)


def _draw_texts(key: jax.Array, texts: Texts | None, rows: jax.Array) -> Texts | None:
    if texts is None:
        return None
    which = jax.random.randint(named(key, "captions"), rows.shape, 0, texts.ids.shape[1])
    return Texts(texts.ids[rows, which], texts.mask[rows, which])


def mirrored(images: jax.Array, turn: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Flips rows, columns, and swaps them, where `turn` [3, B] says so."""
    wide = turn.reshape(3, -1, *[1] * (images.ndim - 1))
    images = jnp.where(wide[0], jnp.flip(images, axes[0]), images)
    images = jnp.where(wide[1], jnp.flip(images, axes[1]), images)
    return jnp.where(wide[2], jnp.swapaxes(images, *axes), images)
