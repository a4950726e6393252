"""TRAK: attribution by the model linearized in random projections of its gradients.

    score(z_i, z') = phi(z') (Phi^T Phi + r I)^-1 phi_i (1 - p_i)

with phi the gradient of the margin log p / (1 - p) of an example's label, projected to k dimensions
by random signs (Park et al., "TRAK: attributing model behavior at scale", 2023). Scores are to be
averaged over models. Projections are tangents along random directions, drawn anew from a key:
neither the [P, k] signs nor the [N, P] gradients exist.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.interpret import trees
from jaxmethods.interpret.problem import Problem, one_batch
from jaxmethods.numerics.compiled import compiled
from jaxmethods.numerics.predictions import labeled


class Projections(NamedTuple):
    """What TRAK keeps of N examples and one model."""

    gradients: jax.Array
    """[N, k], of the margins."""
    doubt: jax.Array
    """[N], 1 - p of the label."""


@compiled("dimension", "together")
def project(
    problem: Problem, key: jax.Array, dimension: int = 512, together: int = 16
) -> Projections:
    """Projected gradients of a model's margins on its examples.

    Args:
        problem: a classifier with logits [N, C] and labels [N]. Examples of weight 0, such as
            padding, are no training examples: their projections and doubts are 0.
        key: of the random directions, the same for training examples and queries.
        dimension: k.
        together: directions that are vectorized.

    Returns:
        [N, k] and [N].
    """
    joined = one_batch(problem)
    vector = joined.floats

    def margin(at: trees.Vector) -> jax.Array:
        return label_margin(joined.outputs(at, joined.data.inputs), joined.data.targets)

    value, tangents = jax.linearize(margin, vector)
    keys = jax.random.split(key, dimension)
    rows = jax.lax.map(
        lambda key: tangents(trees.random_like(key, vector)),
        keys,
        batch_size=min(together, dimension),
    )
    there = joined.weights(joined.data, value.dtype) > 0
    gradients = jnp.where(there[:, None], rows.T / dimension**0.5, 0)
    return Projections(gradients, jnp.where(there, jax.nn.sigmoid(-value), 0))


def label_margin(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """log p / (1 - p) of the label, [N], without forming p; NaN where it is no class, such as
    -1."""
    there = labeled(labels, logits.shape[1])
    own = jnp.take_along_axis(logits, jnp.where(there, labels, 0)[:, None], axis=1)[:, 0]
    others = jnp.where(jax.nn.one_hot(labels, logits.shape[1], dtype=bool), -jnp.inf, logits)
    return jnp.where(there, own - jax.nn.logsumexp(others, axis=1), jnp.nan)


def scores(train: Projections, queries: Projections, ridge: float = 0.3) -> jax.Array:
    """Attributions of one model.

    Args:
        train: of N examples.
        queries: of Q examples, projected with the same key.
        ridge: r, relative to the mean of Phi^T Phi's diagonal; needed unless k is far below N. To
            be chosen on queries that are held out of the training examples.

    Returns:
        [N, Q]; positive: the example raises the query's margin.
    """
    features = train.gradients
    gram = features.T @ features
    amount = ridge * jnp.mean(jnp.diag(gram))
    inverse = jnp.linalg.solve(gram + amount * jnp.eye(len(gram)), queries.gradients.T)
    return train.doubt[:, None] * (features @ inverse)


def linear_datamodel_score(
    attributions: jax.Array, subsets: jax.Array, outputs: jax.Array
) -> jax.Array:
    """Spearman correlation of predicted and actual outputs of models trained on subsets.

    Args:
        attributions: [N, Q].
        subsets: which examples each of S models was trained on, [S, N].
        outputs: margins of those models at the queries, [S, Q].

    Returns:
        [Q].
    """
    predicted = subsets.astype(attributions.dtype) @ attributions
    return jax.vmap(spearman, in_axes=1)(predicted, outputs)


def spearman(a: jax.Array, b: jax.Array) -> jax.Array:
    """Rank correlation of [n] and [n], ties with their mean rank, []."""
    ranks = [jax.scipy.stats.rankdata(x) for x in (a, b)]
    x, y = (rank - jnp.mean(rank) for rank in ranks)
    return jnp.sum(x * y) / jnp.sqrt(jnp.sum(x**2) * jnp.sum(y**2))
