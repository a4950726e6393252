"""How much the choice of heads depends on the questions that chose them.

Heads' choices of candidates don't depend on the selection, so they are computed once; a selection
and the election after it are then sums and products of 0/1 matrices, mapped over a thousand draws
in one program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.novo.heads import (
    Choices,
    Heads,
    Rule,
    Voters,
    choices,
    correct_counts,
    count_votes,
    predict,
    select_heads,
)


class Questions(NamedTuple):
    """Scored and labeled questions."""

    norms: jax.Array
    """[n, C, HL]."""
    mask: jax.Array
    """[n, C] bool."""
    labels: jax.Array
    """[n] int."""


class Draws(NamedTuple):
    """One entry for each draw."""

    accuracy: jax.Array
    """[D]: on the judged questions."""
    heads: Heads
    """[D, HL] masks."""


def bootstrap(
    key: jax.Array,
    pool: Questions,
    judged: Questions | None = None,
    *,
    draws: int = 1000,
    samples: int = 30,
    q: float = 0.85,
    rule: Rule = "code",
    voters: Voters = "both",
) -> Draws:
    """Selections with `samples` questions drawn from a pool (each once), and their accuracy.

    Memory: about draws x Q x C floats for Q judged questions.

    Args:
        key: typed random key [].
        pool: questions that heads may be chosen with.
        judged: the questions that are judged; None: those of the pool that were not drawn.
        draws: number of selections, static.
        samples: questions of a selection.
        q: see `heads.select_heads`.
        rule: see `heads.select_heads`.
        voters: see `heads.select_heads`.

    Returns:
        The voters and the accuracy of every selection, with a leading axis of draws.
    """
    number = pool.labels.shape[0]
    if not 0 < samples <= (number if judged is not None else number - 1):
        raise ValueError(f"samples: expected fewer than the pool's {number}, got {samples}")
    chosen = choices(pool.norms, pool.mask)
    right = jnp.stack([c == pool.labels[:, None] for c in chosen]).astype(jnp.float32)
    others = pool if judged is None else judged
    of_others = chosen if judged is None else choices(judged.norms, judged.mask)

    def one(key: jax.Array) -> Draws:
        drawn = (jax.random.permutation(key, number) < samples).astype(jnp.float32)
        counts = jnp.einsum("n,knh->kh", drawn, right).astype(jnp.int32)  # [2, HL]
        heads = select_heads(counts, q, rule=rule, voters=voters)
        counted = 1 - drawn if judged is None else None
        return Draws(elect(of_others, others.mask, others.labels, heads, counted), heads)

    return jax.vmap(one)(jax.random.split(key, draws))


def elect(
    chosen: Choices,
    mask: jax.Array,
    labels: jax.Array,
    heads: Heads,
    counted: jax.Array | None = None,
) -> jax.Array:
    """Accuracy of one election for every question, from the heads' choices.

    Args:
        chosen: [n, HL], each head's choices.
        mask: [n, C] bool.
        labels: [n] int.
        heads: who votes.
        counted: [n] weights of the questions; default: all alike.

    Returns:
        [] in [0, 1].
    """
    _, predictions = jax.vmap(count_votes, (0, 0, None))(chosen, mask, heads)
    return jnp.average(predictions == labels, weights=counted)


def transfer(
    discovery: Mapping[str, Questions], judged: Mapping[str, Questions], q: float = 0.85
) -> dict[str, dict[str, float]]:
    """Accuracy on every judged set with the heads of every discovery set, by both names.

    Args:
        discovery: name -> questions that choose heads.
        judged: name -> questions that are answered.
        q: see `heads.select_heads`.

    Returns:
        Discovery name -> judged name -> accuracy.
    """
    table: dict[str, dict[str, float]] = {}
    for source, pool in discovery.items():
        heads = select_heads(correct_counts(*pool), q)
        table[source] = {
            name: float(
                jnp.mean(predict(questions.norms, questions.mask, heads) == questions.labels)
            )
            for name, questions in judged.items()
        }
    return table
