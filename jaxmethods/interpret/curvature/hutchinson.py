"""Trace, diagonal and Frobenius norm of an operator from random probes.

    tr A = E v^T A v,    diag A = E v * A v,    |A|_F^2 = E |A v|^2

for independent entries of mean 0 and variance 1 (Hutchinson 1990; Bekas et al. 2007). With random
signs the trace's variance is 2 (|A|_F^2 - sum_i A_ii^2) a probe, the smallest there is. Hutch++
(Meyer et al. 2021) takes the trace of a sketched range exactly and probes only the rest, which
needs O(1 / error) products instead of O(1 / error^2).

Errors are those of the mean over probes. Nothing stops when two running means agree: a lucky draw
would. `tolerance` stops on the standard error.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.interpret import trees
from jaxmethods.interpret.curvature.operators import Operator, Product
from jaxmethods.interpret.estimates import mean_of
from jaxmethods.interpret.problem import Estimate
from jaxmethods.interpret.trees import Vector
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.precision import power_of_two


@compiled("probes", "together", "most")
def trace(
    operator: Operator,
    key: jax.Array,
    probes: int = 64,
    together: int = 8,
    tolerance: float = 0.0,
    most: int | None = None,
) -> Estimate:
    """tr A by Hutchinson's estimator.

    Args:
        operator: symmetric.
        key: of the probes.
        probes: how many random signs; in rounds of `together`.
        together: how many probes are vectorized; on one CPU core one at a time is fastest where a
            product is made of large matrix products already.
        tolerance: go on beyond `probes` until the standard error is at most this share of the
            estimate.
        most: where to stop at the latest; None: `probes`, whatever the error.

    Returns:
        The trace [] with its standard error.

    Raises:
        ValueError: fewer than two probes, which have no spread.
    """
    if probes < 2:
        raise ValueError(f"probes: expected at least 2, got {probes}")
    product = operator.product()
    each = min(together, probes)
    rounds, limit = -(-probes // each), -(-max(most or probes, probes) // each)
    kind = trees.dtype(operator.like)

    def sample(key: jax.Array) -> jax.Array:
        probe = trees.random_like(key, operator.like)
        return trees.vdot(probe, product(probe))

    def one_round(carry: tuple) -> tuple:
        """Chan's update of mean and squared deviations by a round of samples, in a unit of its own:
        squares of 1e-22 are 0."""
        index, unit, mean, squares = carry
        keys = jax.random.split(jax.random.fold_in(key, index), each)
        # Matrix products of a width of one are slower than those without it.
        drawn = jax.vmap(sample)(keys) if each > 1 else sample(keys[0])[None]
        # That of the first round that isn't 0; until then sums are 0 in any.
        unit = jnp.where(unit > 0, unit, power_of_two(jnp.max(jnp.abs(drawn)), of_zero=0))
        drawn = drawn / jnp.where(unit > 0, unit, 1)
        before, difference = (index * each).astype(kind), jnp.mean(drawn) - mean
        share = each / (before + each)
        squares = squares + jnp.sum((drawn - jnp.mean(drawn)) ** 2)
        return index + 1, unit, mean + share * difference, squares + before * share * difference**2

    def error(index: jax.Array, squares: jax.Array) -> jax.Array:
        count = (index * each).astype(kind)
        return jnp.sqrt(squares / (count - 1) / count)

    def unfinished(carry: tuple) -> jax.Array:
        index, _, mean, squares = carry
        wide = error(index, squares) > tolerance * jnp.abs(mean)
        return (index < rounds) | ((index < limit) & wide)

    start = jnp.int32(0), *(jnp.zeros((), kind) for _ in range(3))
    index, unit, mean, squares = jax.lax.while_loop(unfinished, one_round, start)
    return Estimate(unit * mean, unit * error(index, squares), index * each)


@compiled("products", "together")
def hutch_plus_plus(
    operator: Operator, key: jax.Array, products: int = 63, together: int = 8
) -> Estimate:
    """tr A: exact on a sketched range of the operator, probed on the rest.

    Args:
        operator: symmetric; the gain is large where few eigenvalues carry the trace.
        key: of sketch and probes.
        products: with the operator in all; a third each for sketch, range and rest.
        together: how many vectors are multiplied at a time.

    Returns:
        The trace [] with the standard error of the probed rest, given the sketch.

    Raises:
        ValueError: fewer than six products.
    """
    if products < 6:
        raise ValueError(f"products: expected at least 6, got {products}")
    each = products // 3
    width = min(each, operator.dimension)
    multiply = operator.product()
    sketch_keys = jax.random.split(jax.random.fold_in(key, 0), width)
    probe_keys = jax.random.split(jax.random.fold_in(key, 1), each)

    def sketch(key: jax.Array) -> Vector:
        return multiply(trees.random_like(key, operator.like))

    basis = orthonormalize(jax.lax.map(sketch, sketch_keys, batch_size=min(together, width)))
    inside = jnp.sum(_quadratic(multiply, basis, min(together, width)))

    def rest(key: jax.Array) -> jax.Array:
        probe = trees.orthogonalize(trees.random_like(key, operator.like), basis)
        return trees.vdot(probe, multiply(probe))

    outside = mean_of(jax.lax.map(rest, probe_keys, batch_size=min(together, each)))
    return outside._replace(value=inside + outside.value)


def _quadratic(product: Product, stack: Vector, together: int) -> jax.Array:
    """v^T A v of stacked vectors, [m]."""
    return jax.lax.map(lambda v: trees.vdot(v, product(v)), stack, batch_size=together)


def orthonormalize(stack: Vector) -> Vector:
    """An orthonormal basis of the span of stacked vectors; zero vectors for dependent ones."""
    count = jax.tree.leaves(stack)[0].shape[0]
    relative = jnp.sqrt(jnp.finfo(trees.dtype(stack)).eps)

    def step(j: jax.Array, basis: Vector) -> Vector:
        own = jax.tree.map(lambda rows: rows[j], stack)
        rest = trees.orthogonalize(own, basis)
        length = trees.norm(rest)
        there = length > relative * trees.norm(own)
        factor = jnp.where(there, 1 / jnp.where(there, length, 1), 0)
        unit = trees.scale(factor, rest)
        return jax.tree.map(lambda rows, own: rows.at[j].set(own), basis, unit)

    return jax.lax.fori_loop(0, count, step, trees.zeros(stack))


@compiled("probes")
def diagonal(operator: Operator, key: jax.Array, probes: int = 64) -> Estimate:
    """diag A with a standard error for every entry.

    Args:
        operator: symmetric.
        key: of the probes.
        probes: random signs; one after the other, since each is as large as the parameters.

    Returns:
        Vectors of values and errors; of a diagonal operator one probe is exact.
    """
    product = operator.product()

    def step(carry: tuple, own: tuple) -> tuple[tuple, None]:
        """Welford's update: a difference of means of squares would be all rounding."""
        number, key = own
        mean, squares = carry
        probe = trees.random_like(key, operator.like)
        sample = jax.tree.map(jnp.multiply, probe, product(probe))
        apart = jax.tree.map(jnp.subtract, sample, mean)
        mean = trees.axpy(1 / number, apart, mean)
        left = jax.tree.map(jnp.subtract, sample, mean)
        return (mean, trees.add(squares, jax.tree.map(jnp.multiply, apart, left))), None

    zero = trees.zeros(operator.like)
    numbers = jnp.arange(1, probes + 1, dtype=trees.dtype(operator.like))
    rows = (numbers, jax.random.split(key, probes))
    (mean, squares), _ = jax.lax.scan(step, (zero, zero), rows)

    def error(squares: jax.Array) -> jax.Array:
        if probes == 1:
            return jnp.full_like(squares, jnp.nan)
        return jnp.sqrt(squares / (probes - 1) / probes)

    return Estimate(mean, jax.tree.map(error, squares), jnp.asarray(probes))


@compiled("probes", "together")
def frobenius_squared(
    operator: Operator, key: jax.Array, probes: int = 64, together: int = 8
) -> Estimate:
    """|A|_F^2 = tr A^2.

    Args:
        operator: symmetric.
        key: of the probes.
        probes: random signs.
        together: how many are vectorized.

    Returns:
        The square [] with its standard error.
    """
    product = operator.product()

    def sample(key: jax.Array) -> jax.Array:
        image = product(trees.random_like(key, operator.like))
        return trees.vdot(image, image)

    keys = jax.random.split(key, probes)
    return mean_of(jax.lax.map(sample, keys, batch_size=min(together, probes)))
