"""Random crops as matrix products, on the device: rows of an image are weighted, then columns.

y = M_rows x M_cols^T,      M [S, S]: bilinear weights of the S places that a crop is enlarged to
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def crop_maps(key: jax.Array, size: int, smallest: float) -> tuple[jax.Array, jax.Array]:
    """Bilinear maps that cut a random square out and enlarge it to the whole.

    Args:
        key: [] typed random key.
        size: pixels along a side; static.
        smallest: of the areas that are drawn, as a share.

    Returns:
        [2, size, size] of rows and columns, and [] the side as a share of the whole.
    """
    area_key, place_key = jax.random.split(key)
    side = jnp.sqrt(jax.random.uniform(area_key, minval=smallest, maxval=1.0))
    start = jax.random.uniform(place_key, (2, 1)) * (1 - side) * size
    centers = start + (jnp.arange(size) + 0.5) * side - 0.5  # [2, size]
    centers = jnp.clip(centers, 0, size - 1)
    distance = jnp.abs(centers[..., None] - jnp.arange(size))
    return jnp.maximum(1 - distance, 0), side
