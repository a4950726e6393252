"""Memorization: how much likelier a learner is right on an example it has seen.

    mem(i) = P[correct on i | i in S] - P[correct on i | i not in S]

over training sets S (Feldman, Zhang, "What neural networks memorize and why", 2020). All subsets
are trained in one vmapped program; the same models serve membership inference (`privacy.lira`),
TRAK's score and stability.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.interpret.problem import Estimate
from jaxmethods.numerics.compiled import compiled

Train = Callable[[jax.Array, jax.Array], Any]
"""(key, weights [N] of the examples) -> a trained model, any pytree; pure."""


def half_subsets(key: jax.Array, models: int, examples: int) -> jax.Array:
    """Subsets [M, N] bool such that every example is in half of them (for even M)."""
    order = jax.random.uniform(key, (models, examples))
    rank = jnp.argsort(jnp.argsort(order, axis=0), axis=0)
    return rank < models // 2


def train_on_subsets(train: Train, key: jax.Array, subsets: jax.Array, together: int = 64) -> Any:
    """Models of all subsets, stacked.

    Args:
        train: of a key and weights [N], 1 for members and 0 for others.
        key: split for the models.
        subsets: [M, N] bool.
        together: models trained side by side.

    Returns:
        What `train` returns with a leading axis M.
    """
    keys = jax.random.split(key, len(subsets))
    weights = subsets.astype(jnp.float32)
    return jax.lax.map(lambda x: train(*x), (keys, weights), batch_size=min(together, len(subsets)))


@compiled()
def memorization(correct: jax.Array, subsets: jax.Array) -> Estimate:
    """Scores of every example.

    Args:
        correct: whether each model is right on each example, [M, N].
        subsets: membership [M, N] bool.

    Returns:
        [N] with errors of a difference of two proportions; NaN for an example that is always or
        never a member.
    """
    right = correct.astype(jnp.float32)
    seen, unseen = jnp.sum(subsets, axis=0), jnp.sum(~subsets, axis=0)
    within = jnp.sum(jnp.where(subsets, right, 0), axis=0) / seen
    without = jnp.sum(jnp.where(subsets, 0, right), axis=0) / unseen
    variance = within * (1 - within) / seen + without * (1 - without) / unseen
    return Estimate(within - without, jnp.sqrt(variance), jnp.asarray(len(subsets)))
