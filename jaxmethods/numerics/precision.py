"""More precision than numbers are kept in.

Half precision is for storage: a float16 number ends at 65504, a bfloat16 counter at 256, and
neither has a LAPACK routine. `wide` makes sums, squares and factorizations float32 at least.

    two_sum(a, b) = (s, e) with s + e = a + b exactly,   two_product(a, b) = (p, e) with p + e = a b

are sums and products together with what rounding dropped of them (Knuth; Dekker). A pair of float32
numbers carries 48 bits: a running sum that is kept as one doesn't stop growing, and a difference of
two nearly equal ones is still right.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

BLOCK = 2**16
"""Values of one running sum."""


def wide(x: jax.Array) -> jax.Array:
    """An array in float32, or in its own type where that is wider."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def whole_part(share: float, number: int) -> int:
    """floor(share number). The slack is that of the product: 0.29 of 100 is 28.999... in binary.

    Args:
        share: from 0 to 1.
        number: of entries, steps or windows.

    Returns:
        The whole part.
    """
    return math.floor(share * number + 1e-9 + 4e-16 * number)


def spread_or_one(deviation: jax.Array, mean: jax.Array) -> jax.Array:
    """What features are divided by: their deviations, and 1 where they are rounding of a constant.

    The mean of equal numbers is off by their rounding, which division by itself would make 1, and
    any other value a million.

    Args:
        deviation: [D] standard deviations.
        mean: [D].

    Returns:
        [D], positive.
    """
    rounding = 32 * jnp.finfo(deviation.dtype).eps * jnp.abs(mean)
    return jnp.where(deviation > rounding, deviation, 1)


def power_of_two(largest: jax.Array, of_zero: float = 1) -> jax.Array:
    """The power of two next to half of a magnitude; 1 where that is not finite.

    Numbers over it are about 1 and the same in all of their bits, so that their squares and
    products are within what a type can hold whatever unit the numbers are in.

    Args:
        largest: absolute values, [...] floating.
        of_zero: what it is of 0.

    Returns:
        [...], without a gradient.
    """
    largest = jax.lax.stop_gradient(largest)
    unit = jax.lax.reduce_precision(largest / 2, jnp.finfo(largest.dtype).nexp, 0)
    return jnp.where(unit > 0, jnp.where(jnp.isfinite(unit), unit, 1), of_zero)


def in_own_unit(x: jax.Array) -> jax.Array:
    """An array over the `power_of_two` of its largest entry, in float32 at least.

    For what doesn't depend on a factor, such as cosines, ranks and shares.
    """
    x = wide(x)
    return x / power_of_two(jnp.max(jnp.abs(x), initial=0))


def sums_by_place(values: jax.Array, place: jax.Array, places: int) -> jax.Array:
    """Sums of the values at each place, in float32 at least.

    Block by block: one running sum of ones in float32 ends at 2^24, of bfloat16 at 256.

    Args:
        values: [N].
        place: [N] integers; what is at none of 0 to P - 1 is left out.
        places: P; static.

    Returns:
        [P].
    """
    values = wide(values)
    blocks = max(1, -(-len(values) // BLOCK))
    known = (place >= 0) & (place < places)
    own = place.astype(jnp.int32) + places * (jnp.arange(len(values)) // BLOCK)
    own = jnp.where(known, own, blocks * places)  # beyond all of them
    sums = jax.ops.segment_sum(values, own, blocks * places)
    return jnp.sum(sums.reshape(blocks, places), axis=0)


def two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a + b rounded, and the rest."""
    total = a + b
    taken = total - a
    return total, (a - (total - taken)) + (b - taken)


def two_product(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a b rounded, and the rest, unless it underflows."""
    product = a * b
    (a_high, a_low), (b_high, b_low) = halves(a), halves(b)
    # The products of halves are exact, whether or not they are fused with the sums.
    rest = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, rest


def halves(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two numbers of half as many bits whose sum is a."""
    info = jnp.finfo(a.dtype)
    # Not by Dekker's multiplication, which is wrong where a compiler fuses it with the sum.
    high = jax.lax.reduce_precision(a, info.nexp, (info.nmant + 1) // 2 - 1)
    return high, a - high
