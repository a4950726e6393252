"""A world of facts and popular myths, and sentences about it that a small decoder learns.

Every fact (entity e, relation r) has one true value t and one myth m != t. A sentence

    BOS ASK e r ANS v . {TRUE | FALSE}

states m with probability 0.6, t with 0.25 and otherwise any value of the relation; its last word
says whether the value is the true one. So likelihood prefers the myth, while a model that predicts
the last word must know at the full stop whether the value is true: where norm voting reads it.
With `delayed`, a further word stands between full stop and verdict; then the truth is needed only
after the last scored token, and voting finds nothing to read: the negative control.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.novo.config import World

BOS, ASK, ANSWER, STOP, TRUE, FALSE, LATER = range(7)
MARKERS = 7


class Facts(NamedTuple):
    """What is true and what is said."""

    true: jax.Array
    """[E, R] int32: the true value of each fact, in [0, V)."""
    myth: jax.Array
    """[E, R] int32: another one."""


class Items(NamedTuple):
    """A question for every fact, with four candidates in random order."""

    ids: jax.Array
    """[F, 4, T] int32: whole sentences up to the full stop."""
    labels: jax.Array
    """[F] int32: which candidate is true."""


def vocabulary(world: World) -> int:
    """How many words there are."""
    return MARKERS + world.entities + world.relations * (1 + world.values)


def draw_facts(key: jax.Array, world: World) -> Facts:
    """A new world."""
    keys = jax.random.split(key)
    shape = (world.entities, world.relations)
    true = jax.random.randint(keys[0], shape, 0, world.values)
    other = jax.random.randint(keys[1], shape, 1, world.values)
    return Facts(true, (true + other) % world.values)


def draw_sentences(key: jax.Array, facts: Facts, world: World, number: int) -> jax.Array:
    """Sentences about random facts, [number, T] int32."""
    keys = jax.random.split(key, 4)
    entity = jax.random.randint(keys[0], (number,), 0, world.entities)
    relation = jax.random.randint(keys[1], (number,), 0, world.relations)
    true, myth = facts.true[entity, relation], facts.myth[entity, relation]
    share = jax.random.uniform(keys[2], (number,))
    anything = jax.random.randint(keys[3], (number,), 0, world.values)
    told = share < world.myth_share
    honest = share < world.myth_share + world.true_share
    value = jnp.where(told, myth, jnp.where(honest, true, anything))
    verdict = jnp.where(value == true, TRUE, FALSE)[:, None]
    later = [jnp.full((number, 1), LATER)] if world.delayed else []
    statement = _statement(world, entity, relation, value)
    return jnp.concatenate([statement, *later, verdict], axis=1)


def draw_items(key: jax.Array, facts: Facts, world: World) -> Items:
    """One question for every fact: the truth, the myth and two other values."""

    def candidates(key: jax.Array, true: jax.Array, myth: jax.Array) -> tuple:
        others_key, order_key = jax.random.split(key)
        score = jax.random.uniform(others_key, (world.values,))
        taken = (jnp.arange(world.values) == true) | (jnp.arange(world.values) == myth)
        others = jnp.argsort(jnp.where(taken, 2.0, score))[:2]
        order = jax.random.permutation(order_key, 4)
        return jnp.concatenate([jnp.stack([true, myth]), others])[order], jnp.argmin(order)

    keys = jax.random.split(key, facts.true.size)
    values, labels = jax.vmap(candidates)(keys, facts.true.reshape(-1), facts.myth.reshape(-1))
    entity, relation = jnp.divmod(jnp.arange(facts.true.size), world.relations)
    entity, relation = (jnp.repeat(x, 4) for x in (entity, relation))
    ids = _statement(world, entity, relation, values.reshape(-1))
    return Items(ids.reshape(*values.shape, -1), labels.astype(jnp.int32))


def _statement(world: World, entity: jax.Array, relation: jax.Array, value: jax.Array) -> jax.Array:
    """BOS ASK e r ANS v . as words, [N, 7] int32."""
    relations = MARKERS + world.entities
    values = relations + world.relations
    words = [
        BOS,
        ASK,
        MARKERS + entity,
        relations + relation,
        ANSWER,
        values + relation * world.values + value,
        STOP,
    ]
    columns = [jnp.broadcast_to(jnp.asarray(word, jnp.int32), entity.shape) for word in words]
    return jnp.stack(columns, axis=1)
