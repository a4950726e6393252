"""The Lanczos recurrence on pytrees with full reorthogonalization.

    A V_m = V_m T_m + beta_m v_{m+1} e_m^T,    V_m^T V_m = I,

(Lanczos 1950; Paige 1972 for what rounding does to it.) Every new vector is made orthogonal to all
before it by two passes of Gram-Schmidt, so there are no ghost copies of eigenvalues. The recurrence
has broken down when the rest of a product is at most sqrt(eps) of the largest entry of T: an
absolute threshold fails, since rounding in a small beta grows geometrically afterwards. It then
stops, or goes on with a random vector orthogonal to all others, which finds repeated eigenvalues.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.interpret import trees
from jaxmethods.interpret.curvature.operators import Operator
from jaxmethods.interpret.trees import Vector
from jaxmethods.numerics.linalg import in_turn

JOINED = 2**14
"""Entries up to which a vector's leaves are joined: small ones cost a product's call each."""


class Tridiagonal(NamedTuple):
    """T_m and the orthonormal vectors that belong to it."""

    alpha: jax.Array
    """[m], the diagonal; 0 after a breakdown without restart."""
    beta: jax.Array
    """[m]: beta[j] couples vectors j and j + 1; the last one is that of the rest."""
    basis: Vector
    """Stacked vectors [m, ...]; zero where there is none."""
    steps: jax.Array
    """How many vectors there are, int32 []; they come first."""


class Ritz(NamedTuple):
    """Eigenpairs of T_m, ascending; what belongs to no vector comes last."""

    values: jax.Array
    """[m]."""
    vectors: jax.Array
    """[m, m], columns."""
    there: jax.Array
    """bool [m]."""


def lanczos(
    operator: Operator, start: Vector, steps: int, key: jax.Array | None = None
) -> Tridiagonal:
    """m steps of the recurrence.

    Args:
        operator: A, symmetric.
        start: any vector but zero; it is normalized.
        steps: m; at most P make sense.
        key: go on after a breakdown with random vectors from this key; None: stop there.

    Returns:
        T_m, its basis and the number of vectors found.

    Raises:
        ValueError: `steps` is less than one.
    """
    return recurrence(operator.product(), start, steps, key)


def recurrence(
    product: Any, start: Vector, steps: int, key: jax.Array | None = None
) -> Tridiagonal:
    """`lanczos` of a prepared product, for programs that share it between starts.

    Args:
        product: v -> A v.
        start: any vector but zero; it is normalized.
        steps: m.
        key: of restarts after a breakdown; None: stop there.

    Returns:
        T_m, its basis and the number of vectors found.
    """
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    kind = trees.dtype(start)
    leaves = jax.tree.leaves(start)
    if len(leaves) > 1 and trees.size(start) <= JOINED and all(x.dtype == kind for x in leaves):

        def joined(flat: jax.Array) -> jax.Array:
            return trees.ravel(product(trees.unravel(flat, start)))

        found = recurrence(joined, trees.ravel(start), steps, key)
        basis = jax.vmap(lambda flat: trees.unravel(flat, start))(found.basis)
        return found._replace(basis=basis)
    relative = jnp.sqrt(jnp.finfo(kind).eps)

    def step(j: jax.Array, carry: tuple) -> tuple:
        basis, alpha, beta, vector, largest = carry
        image = product(vector)
        diagonal = trees.vdot(vector, image)
        rest = trees.orthogonalize(image, basis)
        length = trees.norm(rest)
        largest = jnp.maximum(largest, jnp.maximum(jnp.abs(diagonal), length))
        broke = length <= relative * largest
        following = _normalized(rest, length, ~broke)
        if key is not None:
            own = jax.random.fold_in(key, j)
            following = jax.lax.cond(
                broke, lambda: _orthogonal(own, basis, start, relative), lambda: following
            )
        beta = beta.at[j].set(jnp.where(broke, 0, length))
        # What is written depends on everything that reads the basis: else XLA would copy it.
        place, last = jnp.minimum(j + 1, steps - 1), j + 1 == steps
        kept = jax.tree.map(lambda old, new: jnp.where(last, old, new), vector, following)
        basis = jax.tree.map(lambda rows, own: rows.at[place].set(own), basis, kept)
        return basis, alpha.at[j].set(diagonal), beta, following, largest

    norm = trees.norm(start)
    first = _normalized(start, norm, norm > 0)
    empty = trees.zeros(start, (steps,))
    carry = (
        jax.tree.map(lambda rows, own: rows.at[0].set(own), empty, first),
        jnp.zeros(steps, kind),
        jnp.zeros(steps, kind),
        first,
        jnp.zeros((), kind),
    )
    basis, alpha, beta, _, _ = jax.lax.fori_loop(0, steps, step, carry)
    squares = jax.tree.map(lambda rows: jnp.sum(rows**2, tuple(range(1, rows.ndim))), basis)
    steps_done = jnp.sum(trees.total(squares) > 0.5, dtype=jnp.int32)
    return Tridiagonal(alpha, beta, basis, steps_done)


def _normalized(vector: Vector, length: jax.Array, there: jax.Array) -> Vector:
    """The vector over its length, or zero."""
    factor = jnp.where(there, 1 / jnp.where(there, length, 1), 0)
    return jax.tree.map(lambda leaf: jnp.where(there, factor * leaf, 0).astype(leaf.dtype), vector)


def _orthogonal(key: jax.Array, basis: Vector, like: Vector, relative: jax.Array) -> Vector:
    """A random unit vector orthogonal to the basis, or zero where the basis is complete."""
    drawn = trees.random_like(key, like, "normal")  # few signs are often those of the start again
    before = trees.norm(drawn)
    rest = trees.orthogonalize(drawn, basis)
    length = trees.norm(rest)
    return _normalized(rest, length, length > relative * before)


def ritz(tridiagonal: Tridiagonal) -> Ritz:
    """Eigenpairs of T_m.

    Rows without a vector get an eigenvalue beyond all others, so that their eigenvectors don't mix
    with those of true zero eigenvalues.
    """
    alpha, beta = tridiagonal.alpha, tridiagonal.beta
    there = jnp.arange(alpha.shape[-1]) < tridiagonal.steps
    largest = jnp.maximum(jnp.max(jnp.abs(alpha)), jnp.max(jnp.abs(beta)))
    beyond = jnp.where(largest > 0, 4 * largest, 1)
    coupled = jnp.where(there[1:], beta[:-1], 0)
    matrix = jnp.diag(jnp.where(there, alpha, beyond))
    matrix = matrix + jnp.diag(coupled, 1) + jnp.diag(coupled, -1)
    values, vectors = in_turn(jnp.linalg.eigh, matrix)
    return Ritz(values, vectors, there)
