r"""Where a token is, in space, among bands and in time: fixed sines and cosines.

    sincos(d, t) = [sin(t w), cos(t w)],     w_j = 10000^(-j / (d/2)),  j = 0 .. d/2 - 1

- plain (MAE, arXiv 2111.06377): [sincos(D/2, column), sincos(D/2, row)]; the first half carries the
  column, although the reference names it for the row;
- ground sampling distance (Scale-MAE, arXiv 2212.14532, eq. 1): indices times meters of a pixel,
  so a table for every sample; 1 m gives the plain table;
- groups of bands (SatMAE, arXiv 2207.08051, section 3.2): [plain(D - c), sincos(c, group)];
- dates (SatMAE, section 3.1): [plain(D - 3 c), sincos(c, year - 2002), sincos(c, month - 1),
  sincos(c, hour)];
- frames (Prithvi, arXiv 2310.18660): [sincos(6/16 D, column), sincos(6/16 D, row),
  sincos(4/16 D, frame)].

Tables that are the same for all samples are computed in float64 and rounded once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.models.geovit.resize import resize


def sincos(width: int, places: jax.Array | np.ndarray) -> jax.Array:
    """Sines, then cosines, of places at frequencies from 1 down to 1 / 10000.

    Args:
        width: d, even; static.
        places: t [...].

    Returns:
        [..., d]; in the type of the places, float32 at least.
    """
    places = jnp.asarray(places)
    places = places.astype(jnp.promote_types(places.dtype, jnp.float32))
    rates = jnp.asarray(_rates(width), places.dtype)
    angles = places[..., None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def plain(width: int, grid: int) -> np.ndarray:
    """The table [1 + g g, D] of a square grid, class token (zeros) first; float32."""
    return _with_class(_grid(width, np.arange(grid, dtype=float)))


def ground(width: int, grid: int, gsd: jax.Array) -> jax.Array:
    """Tables of grids whose pixels have a size on the ground.

    Args:
        width: D, a multiple of 4; static.
        grid: g patches along a side; static.
        gsd: [B] meters of a pixel.

    Returns:
        [B, 1 + g g, D], class token (zeros) first.
    """
    gsd = gsd.astype(jnp.promote_types(gsd.dtype, jnp.float32))  # whole meters may overflow
    places = jnp.arange(grid, dtype=gsd.dtype) * gsd[:, None]  # [B, g]
    half = sincos(width // 2, places)  # [B, g, D/2]
    shape = (len(gsd), grid, grid, width // 2)
    columns = jnp.broadcast_to(half[:, None], shape)
    rows = jnp.broadcast_to(half[:, :, None], shape)
    table = jnp.concatenate([columns, rows], axis=-1).reshape(len(gsd), grid * grid, width)
    return jnp.pad(table, ((0, 0), (1, 0), (0, 0)))


def groups(width: int, grid: int, number: int, channel_width: int) -> np.ndarray:
    """The table of several groups of bands, all patches of group 0 first.

    Args:
        width: D.
        grid: g patches along a side.
        number: G groups.
        channel_width: c entries that encode the group.

    Returns:
        [1 + G g g, D] float32; the class token's row, first, is that of a decoder: zeros and the
        code of a group G. SatMAE's encoder adds nothing to its class token.
    """
    space = _grid(width - channel_width, np.arange(grid, dtype=float))
    space = np.concatenate([np.zeros((1, width - channel_width)), np.tile(space, (number, 1))])
    codes = _numbers(channel_width, np.arange(number + 1.0))
    own = np.concatenate([codes[-1:], np.repeat(codes[:-1], grid * grid, axis=0)])
    return np.concatenate([space, own], axis=1).astype(np.float32)


def dates(width: int, grid: int, timestamps: jax.Array, date_width: int) -> jax.Array:
    """Tables of images of several dates, all patches of the first one first.

    Args:
        width: D; static.
        grid: g patches along a side; static.
        timestamps: [B, T, 3] year - 2002, month - 1, hour.
        date_width: c entries for each of the three; static.

    Returns:
        [B, 1 + T g g, D], class token (zeros) first.
    """
    number, frames = timestamps.shape[:2]
    space = jnp.asarray(_grid(width - 3 * date_width, np.arange(grid, dtype=float)), jnp.float32)
    when = encode_dates(timestamps, date_width)  # [B, T, 3 c]
    shape = (number, frames, grid * grid)
    table = jnp.concatenate(
        [
            jnp.broadcast_to(space, (*shape, space.shape[-1])),
            jnp.broadcast_to(when[:, :, None], (*shape, when.shape[-1])),
        ],
        axis=-1,
    ).reshape(number, frames * grid * grid, width)
    return jnp.pad(table, ((0, 0), (1, 0), (0, 0)))


def encode_dates(timestamps: jax.Array, date_width: int) -> jax.Array:
    """[..., 3 c]: the codes of year, month and hour of [..., 3] side by side."""
    codes = sincos(date_width, timestamps)  # [..., 3, c]
    return codes.reshape(*codes.shape[:-2], 3 * date_width)


def frames(width: int, grid: int, number: int) -> np.ndarray:
    """Prithvi's table [1 + T g g, D], class token (zeros) first; D is a multiple of 16."""
    side, depth = width // 16 * 6, width // 16 * 4
    space = _grid(2 * side, np.arange(grid, dtype=float))
    when = _numbers(depth, np.arange(float(number)))
    table = np.concatenate(
        [np.tile(space, (number, 1)), np.repeat(when, grid * grid, axis=0)], axis=1
    )
    return _with_class(table)


def frames_of(table: np.ndarray) -> int:
    """How many frames of square grids the rows [T g g, D] of Prithvi's table are.

    Four frames have as many rows as one frame of twice the side; but the first 12/16 of a row say
    where it is in its frame, so they come again in every frame. A table that was trained on doesn't
    repeat itself, and has the fewest frames.
    """
    space = table[:, : table.shape[1] // 16 * 12]

    def repeats(number: int) -> bool:
        every = space.reshape(number, -1, space.shape[1])
        return np.allclose(every, every[:1], atol=1e-5)

    rows = len(table)
    possible = [n for n in range(1, rows + 1) if rows % n == 0 and is_square(rows // n)]
    return max((number for number in possible if repeats(number)), default=possible[0])


def is_square(number: int) -> bool:
    """Whether a number is a whole number times itself."""
    return round(number**0.5) ** 2 == number


def resize_positions(table: jax.Array, grid: int, leading: int = 1) -> jax.Array:
    """Resizes a checkpoint's table to another grid (bicubic, as PyTorch's `interpolate`).

    Args:
        table: [leading + n n, D] of a square grid.
        grid: g patches along a side wanted; static.
        leading: rows before those of patches (class token), kept as they are; static.

    Returns:
        [leading + g g, D].

    Raises:
        ValueError: the table is of no square grid.
    """
    before = round((len(table) - leading) ** 0.5)
    if leading + before**2 != len(table):
        raise ValueError(
            f"table: expected {leading} rows and those of a square grid, got {len(table)} rows"
        )
    if before == grid:
        return table
    width = table.shape[-1]
    space = resize(table[leading:].reshape(before, before, width), (grid, grid), "bicubic")
    return jnp.concatenate([table[:leading], space.reshape(grid * grid, width)])


def _rates(width: int) -> np.ndarray:
    return 10000.0 ** (-np.arange(width // 2) / (width / 2))


def _numbers(width: int, places: np.ndarray) -> np.ndarray:
    angles = places[:, None] * _rates(width)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _grid(width: int, places: np.ndarray) -> np.ndarray:
    """[g g, D]: the column's code, then the row's, patch after patch."""
    half, grid = _numbers(width // 2, places), len(places)
    return np.concatenate([np.tile(half, (grid, 1)), np.repeat(half, grid, axis=0)], axis=1)


def _with_class(table: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((1, table.shape[1])), table]).astype(np.float32)
