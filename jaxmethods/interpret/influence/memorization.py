"""Memorization: how much likelier a learner is right on an example it has seen.

    mem(i) = P[correct on i | i in S] - P[correct on i | i not in S]

over training sets S (Feldman, Zhang, "What neural networks memorize and why", 2020). All subsets
are trained in one vmapped program; the same models serve membership inference (`privacy.lira`),
TRAK's score and stability. A learner takes weights of all examples, or the places of its members:
halves of one size, of which it computes nothing but its own examples, take less than half the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.interpret.problem import Estimate
from jaxmethods.numerics.compiled import compiled

Train = Callable[[jax.Array, jax.Array], Any]
"""(key, weights [N] of the examples, or places [n]) -> a trained model, any pytree; pure."""


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
    return _train_each(train, key, subsets.astype(jnp.float32), together)


def complementary_halves(key: jax.Array, models: int, examples: int) -> jax.Array:
    """Places [M, N // 2] of random halves in pairs that share no example.

    Args:
        key: of the halves.
        models: M; for an even one, and an even N, every example is in half of the subsets.
        examples: N.

    Returns:
        int32 [M, N // 2]; `members_of` makes subsets of them.
    """
    keys, half = jax.random.split(key, -(-models // 2)), examples // 2
    orders = jax.vmap(lambda key: jax.random.permutation(key, examples))(keys)  # [M / 2, N]
    pairs = orders[:, : 2 * half].reshape(-1, half)  # [M, N // 2], a pair side by side
    return pairs[:models].astype(jnp.int32)


def members_of(places: jax.Array, examples: int) -> jax.Array:
    """Subsets [M, N] bool of the places [M, n] of their members."""
    return jax.vmap(lambda own: jnp.zeros(examples, bool).at[own].set(True))(places)


def train_on_places(train: Train, key: jax.Array, places: jax.Array, together: int = 64) -> Any:
    """Models of subsets of one size, stacked.

    Args:
        train: of a key and the places [n] of its members, such as `inputs[places]` needs.
        key: split for the models.
        places: [M, n].
        together: models trained side by side.

    Returns:
        What `train` returns with a leading axis M.
    """
    return _train_each(train, key, places, together)


def _train_each(train: Train, key: jax.Array, given: jax.Array, together: int) -> Any:
    """One model for each row, `together` side by side, each with a key of its own."""
    keys = jax.random.split(key, len(given))
    return jax.lax.map(lambda x: train(*x), (keys, given), batch_size=min(together, len(given)))


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
    right, subsets = correct.astype(jnp.float32), subsets.astype(bool)
    seen, unseen = jnp.sum(subsets, axis=0), jnp.sum(~subsets, axis=0)
    within = jnp.sum(jnp.where(subsets, right, 0), axis=0) / seen
    without = jnp.sum(jnp.where(subsets, 0, right), axis=0) / unseen
    variance = within * (1 - within) / seen + without * (1 - without) / unseen
    return Estimate(within - without, jnp.sqrt(variance), jnp.asarray(len(subsets)))
