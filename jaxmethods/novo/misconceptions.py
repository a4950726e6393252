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

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
    """Sentences about random facts, as the model is trained on.

    Args:
        key: [] typed random key.
        facts: true values and myths.
        world: sizes and shares; static.
        number: of sentences, static.

    Returns:
        [number, T] int32 tokens.
    """
    keys = jax.random.split(key, 4)
    entity = jax.random.randint(keys[0], (number,), 0, world.entities)
    relation = jax.random.randint(keys[1], (number,), 0, world.relations)
    true, myth = facts.true[entity, relation], facts.myth[entity, relation]
    share = jax.random.uniform(keys[2], (number,))
    anything = jax.random.randint(keys[3], (number,), 0, world.values)
    popular = share < world.myth_share
    honest = share < world.myth_share + world.true_share
    value = jnp.where(popular, myth, jnp.where(honest, true, anything))
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
    # [F, 4], [F]
    values, labels = jax.vmap(candidates)(keys, facts.true.reshape(-1), facts.myth.reshape(-1))
    entity, relation = jnp.divmod(jnp.arange(facts.true.size), world.relations)
    entity, relation = (jnp.repeat(x, 4) for x in (entity, relation))
    ids = _statement(world, entity, relation, values.reshape(-1))  # [F 4, T]
    return Items(ids.reshape(*values.shape, -1), labels.astype(jnp.int32))  # [F, 4, T]


def words(world: World) -> list[str]:
    """The word of every token id, as questions in words and a tokenizer write it."""
    relations = range(world.relations)
    return [
        *("<s>", "ask", "answer", ".", "true", "false", "later"),
        *(f"entity{number}" for number in range(world.entities)),
        *(f"relation{number}" for number in relations),
        *(f"value{r}x{number}" for r in relations for number in range(world.values)),
    ]


def questions_in_words(items: Items, world: World) -> list[dict[str, Any]]:
    """The items as rows of a question file: the prompt, and its candidates without full stop."""
    known, rows = words(world), []
    for ids, label in zip(np.asarray(items.ids), np.asarray(items.labels), strict=True):
        said = [[known[word] for word in candidate] for candidate in ids]
        question, choices = " ".join(said[0][1:5]), [one[5] for one in said]
        rows.append({"question": question, "choices": choices, "label": int(label)})
    return rows


def tokenizer_of(world: World) -> dict[str, Any]:
    """A `tokenizer.json` (package `tokenizers`) that writes such questions as the world's ids."""
    known = words(world)
    begin = {"id": known[BOS], "ids": [BOS], "tokens": [known[BOS]]}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": BOS, "content": known[BOS], "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},  # apart: words and punctuation
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": known[BOS], "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {known[BOS]: begin},
        },
        "decoder": None,
        "truncation": None,
        "padding": None,
        # Words that are not of this world are an error: the unknown word is not in the vocabulary.
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(known)},
            "unk_token": "<unknown>",
        },
    }


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
