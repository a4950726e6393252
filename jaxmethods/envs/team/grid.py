"""Square grids seen through windows: what the grid environments compute alike.

Positions are (row, column) int32 pairs, row 0 at the top. A window of vision v
is the (2v+1) x (2v+1) square around an agent, its W = (2v+1)^2 cells in
row-major order; each cell is described by C channels, a one-hot class plus
counts of what stands there.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1], [0, 0]], np.int32)
"""[5, 2]: row and column steps of up, right, down, left, stay."""

MAX_DIM = 180
"""Largest grid side: cell classes are compared as int16, so dim^2 + 4 must stay below 2^15."""


def move(positions: jax.Array, actions: jax.Array, dim: int) -> jax.Array:
    """Moves every agent one cell and clips it to the grid.

    Args:
        positions: [N, 2] int32.
        actions: [N] int32 rows of `MOVES`; anything else stays.
        dim: side of the grid.

    Returns:
        [N, 2] int32.
    """
    stay = len(MOVES) - 1
    known = (actions >= 0) & (actions < stay)  # a negative row would be one from the end
    steps = jnp.asarray(MOVES)[jnp.where(known, actions, stay)]
    return jnp.clip(positions + steps, 0, dim - 1)


def sample_cells(key: jax.Array, count: int, dim: int) -> jax.Array:
    """Draws distinct cells, uniformly over all ordered tuples, from `count` random words.

    Args:
        key: [] typed random key.
        count: number of cells, at most dim^2.
        dim: side of the grid, at most `MAX_DIM`.

    Returns:
        [count, 2] int32 positions.
    """
    words = jax.random.bits(key, (count,), jnp.uint32)
    cells = distinct_from_codes(below(words, dim * dim - jnp.arange(count)))
    return jnp.stack([cells // dim, cells % dim], axis=-1)


def below(words: jax.Array, bounds: jax.Array) -> jax.Array:
    """Turns random uint32 words into int32 uniform on [0, bounds), bounds below 2^16.

    It is floor(word * bound / 2^32) in 32-bit arithmetic; its bias, bound / 2^32, is far below
    that of scaled float32 uniforms.
    """
    bounds = bounds.astype(jnp.uint32)
    low = ((words & 0xFFFF) * bounds) >> 16
    return (((words >> 16) * bounds + low) >> 16).astype(jnp.int32)


def distinct_from_codes(codes: jax.Array) -> jax.Array:
    """Decodes a Lehmer code: code k in [0, M-k) names the k-th cell among those still free.

    The map is a bijection onto the ordered tuples of distinct numbers in [0, M), so uniform
    independent codes give a uniform tuple without replacement.

    Args:
        codes: [K] int32.

    Returns:
        [K] int32, all different.
    """
    order = jnp.arange(codes.shape[0])

    def skip_taken(cells: jax.Array, taken: tuple[jax.Array, jax.Array]):
        code, position = taken
        return cells + ((cells >= code) & (order > position)), None

    return jax.lax.scan(skip_taken, codes, (codes, order), reverse=True, unroll=True)[0]


def window_cells(centers: jax.Array, vision: int) -> tuple[jax.Array, jax.Array]:
    """Rows and columns of the window around each center [N, 2], each [N, W] int32."""
    reach = np.arange(-vision, vision + 1)
    row_offset, column_offset = (part.ravel() for part in np.meshgrid(reach, reach, indexing="ij"))
    return centers[:, :1] + row_offset, centers[:, 1:] + column_offset


def window_classes(
    rows: jax.Array, columns: jax.Array, height: int, width: int, outside: int
) -> jax.Array:
    """Numbers of the cells of windows, row * width + column.

    Args:
        rows, columns: [N, W] int32 of the windows' cells.
        height, width: of the grid.
        outside: the number of cells off the grid.

    Returns:
        [N, W] int32.
    """
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return jnp.where(inside, rows * width + columns, outside)


def window_counts(rows: jax.Array, columns: jax.Array, positions: jax.Array) -> jax.Array:
    """How many of `positions` [K, 2] stand on each window cell: [N, W] int8."""
    standing = (rows[..., None] == positions[:, 0]) & (columns[..., None] == positions[:, 1])
    return jnp.sum(standing, axis=-1, dtype=jnp.int8)


def occupancy(positions: jax.Array) -> jax.Array:
    """How many of `positions` [N, 2] share each one's cell, itself included: [N] int32."""
    return jnp.sum(jnp.all(positions[:, None] == positions, axis=-1), axis=-1)


def encode_windows(classes: jax.Array, counts: Mapping[int, jax.Array], channels: int) -> jax.Array:
    """One-hot classes plus counts, flattened row-major (row, column, channel).

    Args:
        classes: [N, W] channel that is 1 for this cell; none is for numbers from C on.
        counts: channel to [N, W] int8 number added to it.
        channels: C.

    Returns:
        [N, W * C] int8.
    """
    observers, window = classes.shape
    # Materialized small here and expanded straight to the flat result below: fused into the
    # expansion XLA would recompute them for each channel (3 times slower on CPU).
    classes, counts = jax.lax.optimization_barrier((classes.astype(jnp.int16), dict(counts)))
    channel = np.tile(np.arange(channels, dtype=np.int16), window)

    def repeat(values: jax.Array) -> jax.Array:
        return jnp.broadcast_to(values[..., None], (observers, window, channels)).reshape(
            observers, -1
        )

    view = (repeat(classes) == channel).astype(jnp.int8)
    for counted, number in counts.items():
        view += repeat(number) * (channel == counted).astype(np.int8)
    return view
