"""Rademacher complexity: how well a class of functions follows random signs.

    R_n(F) = E_s sup_{f in F} (1/n) sum_i s_i f(x_i),      linear, |w| <= B:  B |sum_i s_i x_i| / n

(Bartlett, Mendelson 2002.) For networks the supremum isn't known: what training on random signs
reaches is a lower bound of it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxmethods.interpret.estimates import mean_of
from jaxmethods.interpret.problem import Estimate
from jaxmethods.numerics.precision import wide


def linear_correlations(inputs: jax.Array, signs: jax.Array, radius: float) -> jax.Array:
    """The supremum over |w| <= B for each draw [R] of signs [R, N] on inputs [N, d]."""
    sums = wide(signs) @ wide(inputs)
    return radius * jnp.linalg.norm(sums, axis=1) / len(inputs)


def linear_bound(inputs: jax.Array, radius: float) -> jax.Array:
    """B sqrt(sum |x_i|^2) / n, which the complexity never exceeds, []."""
    return radius * jnp.linalg.norm(wide(inputs)) / len(inputs)


def linear_rademacher(
    inputs: jax.Array, radius: float, key: jax.Array, draws: int = 256
) -> Estimate:
    """The complexity of linear functions in a ball.

    Args:
        inputs: [N, d].
        radius: B.
        key: of the signs.
        draws: how many sign vectors.

    Returns:
        The estimate [] with its error.
    """
    inputs = wide(inputs)  # minus one is 255 in bytes
    signs = jax.random.rademacher(key, (draws, len(inputs)), inputs.dtype)
    return mean_of(linear_correlations(inputs, signs, radius))


def trained_correlation(
    train: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    examples: int,
    draws: int = 16,
) -> Estimate:
    """What a learner reaches on random signs, all draws in one vmapped program.

    Args:
        train: (key, signs [N]) -> values f(x_i) [N] in [-1, 1] of the function it has found.
        key: of signs and training.
        examples: N.
        draws: how many sign vectors.

    Returns:
        A lower bound [] of the complexity in the mean, with its error; 1 is a learner that fits any
        labels.
    """

    def one(key: jax.Array) -> jax.Array:
        signs = jax.random.rademacher(jax.random.fold_in(key, 0), (examples,), jnp.float32)
        return jnp.mean(signs * train(jax.random.fold_in(key, 1), signs))

    return mean_of(jax.vmap(one)(jax.random.split(key, draws)))
