r"""Features that no table does without: statistics of the pixels, and convolutions never trained.

    imagestats:           mean, standard deviation and a histogram of every band
    random convolutions:  mean and standard deviation over places of relu(filter * image)

An encoder that does not beat them has learned nothing that a histogram doesn't say. The filters are
patches of the images themselves, drawn at random and standardized (Rolf et al. 2021,
arXiv 2010.08168).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.models.geovit.patches import patchify

BINS = 16
EPSILON = 1e-6


def mean_and_std(images: jax.Array) -> jax.Array:
    """[N, 2 C]: mean and standard deviation of every band of [N, H, W, C]."""
    return jnp.concatenate([jnp.mean(images, axis=(1, 2)), jnp.std(images, axis=(1, 2))], axis=-1)


def imagestats(images: jax.Array, bins: int = BINS) -> jax.Array:
    """Mean, standard deviation and histogram of every band.

    Args:
        images: [N, H, W, C], full scale is 1; what is beyond counts as 0 or 1.
        bins: of the histogram between 0 and 1; static.

    Returns:
        [N, (2 + bins) C] in the type of the images; 54 features of RGB.
    """
    place = jnp.clip(jnp.floor(images * bins), 0, bins - 1)
    shares = [jnp.mean(place == number, axis=(1, 2), dtype=images.dtype) for number in range(bins)]
    return jnp.concatenate([mean_and_std(images), *shares], axis=-1)


def random_filters(key: jax.Array, images: jax.Array, number: int, patch: int = 8) -> jax.Array:
    """Filters that are random patches of images, standardized.

    Args:
        key: [] typed random key.
        images: [N, H, W, C], normalized.
        number: F; static.
        patch: p; static.

    Returns:
        [F, p p C], of mean 0 and length 1.
    """
    image_key, row_key, column_key = jax.random.split(key, 3)
    which = jax.random.randint(image_key, (number,), 0, len(images))
    rows = jax.random.randint(row_key, (number,), 0, images.shape[1] - patch + 1)
    columns = jax.random.randint(column_key, (number,), 0, images.shape[2] - patch + 1)
    size = (patch, patch, images.shape[3])

    def cut(own: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(images[own], (row, column, 0), size).reshape(-1)

    return _standard(jax.vmap(cut)(which, rows, columns))


def random_convolutions(filters: jax.Array, images: jax.Array, patch: int = 8) -> jax.Array:
    """What filters say of images.

    Args:
        filters: [F, p p C].
        images: [N, H, W, C], normalized as the filters' were.
        patch: p, which is the stride as well; static.

    Returns:
        [N, 2 F]: mean and standard deviation over places.
    """
    # Half a patch further, a second set of places: twice as many, without a convolution.
    half = patch // 2
    rows = [patchify(images, patch), patchify(images[:, half:-half, half:-half], patch)]
    response = jax.nn.relu(jnp.concatenate(rows, axis=1) @ filters.T)  # [N, L, F]
    return jnp.concatenate([jnp.mean(response, axis=1), jnp.std(response, axis=1)], axis=-1)


def _standard(rows: jax.Array) -> jax.Array:
    centered = rows - jnp.mean(rows, axis=-1, keepdims=True)
    return centered / (jnp.linalg.norm(centered, axis=-1, keepdims=True) + EPSILON)
