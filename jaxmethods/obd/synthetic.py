"""Where the synthetic pairs start: rows of the data, noise, or rows that the critic likes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmethods.numerics.sampling import distinct_rows
from jaxmethods.obd.config import OBDConfig
from jaxmethods.obd.types import Source, SynSet
from jaxmethods.offline_rl.policies import q_value
from jaxmethods.offline_rl.types import Teacher, teacher_states

BLOCK = 4096
"""Rows that are compared with all centers at once."""


def init_syn(key: jax.Array, source: Source, config: OBDConfig) -> SynSet:
    """The initial synthetic set of `config.syn_init`.

    Raises:
        ValueError: fewer rows than pairs; an initialization by q without a teacher.
    """
    data, count = source.data, config.n_syn
    if config.syn_init == "noise":
        return _noise(key, source, count)
    if config.syn_init == "data":
        rows = distinct_rows(key, len(data.states), count)
        return SynSet(data.states[rows], data.actions[rows])
    if source.teacher is None:
        raise ValueError(f"syn_init: {config.syn_init!r} needs a teacher, got none")
    q = _values(source.teacher, source)
    if config.syn_init == "top_q":
        rows = jax.lax.top_k(q, count)[1]
    else:
        rows = best_of_clusters(key, data.states, q, count)
    return SynSet(data.states[rows], data.actions[rows])


def best_of_clusters(key: jax.Array, states: jax.Array, score: jax.Array, count: int) -> jax.Array:
    """The best row of each cluster of states.

    One iteration of k-means from random rows: assign, move the centers, assign again. A cluster
    that came out empty is represented by the row it started from.

    Args:
        key: [] typed random key.
        states: [L, S].
        score: [L], of which a cluster's largest is its best.
        count: of clusters, static.

    Returns:
        [count] int32 numbers of rows.
    """
    start = distinct_rows(key, len(states), count).astype(jnp.int32)
    cluster = _nearest(states, states[start])
    sums = jax.ops.segment_sum(states, cluster, count)
    sizes = jax.ops.segment_sum(jnp.ones(len(states), states.dtype), cluster, count)[:, None]
    centers = jnp.where(sizes > 0, sums / jnp.maximum(sizes, 1), states[start])
    cluster = _nearest(states, centers)
    best = jax.ops.segment_max(score, cluster, count)
    numbers = jnp.arange(len(states), dtype=jnp.int32)
    rows = jax.ops.segment_max(jnp.where(score >= best[cluster], numbers, -1), cluster, count)
    return jnp.where(rows >= 0, rows, start)


def _noise(key: jax.Array, source: Source, count: int) -> SynSet:
    state_key, action_key = jax.random.split(key)
    data = source.data
    states = jax.random.normal(state_key, (count, data.states.shape[1]), data.states.dtype)
    shape = (count, data.actions.shape[1])
    actions = jax.random.uniform(action_key, shape, data.actions.dtype, minval=-1.0)
    return SynSet(states, actions)


def _values(teacher: Teacher, source: Source) -> jax.Array:
    """q1 of every row of the data, [L]."""

    def one(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        return q_value(teacher.q1, teacher_states(teacher, source.norm, row[0]), row[1])

    values = jax.lax.map(one, (source.data.states, source.data.actions), batch_size=BLOCK)
    return jnp.where(jnp.isnan(values), -jnp.inf, values)  # top_k takes NaN for the largest


def _nearest(states: jax.Array, centers: jax.Array) -> jax.Array:
    """The nearest of [N, S] centers to each state, [L] int32."""
    squares = jnp.square(centers).sum(-1)

    def one(state: jax.Array) -> jax.Array:
        return jnp.argmin(squares - 2.0 * centers @ state).astype(jnp.int32)

    return jax.lax.map(one, states, batch_size=BLOCK)
