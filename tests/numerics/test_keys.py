"""A key for one purpose is no other purpose's key."""

from __future__ import annotations

import jax
import numpy as np

from jaxmethods.numerics.keys import each_named, named
from jaxmethods.training import loop
from tests.training import toy

PURPOSES = (
    *("data", "initial students", "students", "table", "evaluate", "questions", "random heads"),
)


def words(keys):
    return {tuple(row) for row in np.asarray(jax.random.key_data(keys)).reshape(-1, 2).tolist()}


def test_small_numbers_fold_into_the_keys_of_a_split():
    """Why names are used: `fold_in(key, 1)` is a key that the loop has split off."""
    key = jax.random.key(3)
    assert words(jax.random.fold_in(key, 1)) == words(jax.random.split(key)[1])


def test_named_keys_are_neither_split_keys_nor_each_other():
    key = jax.random.key(3)
    keys = [words(named(key, name)) for name in PURPOSES]
    together = set().union(*keys)
    assert len(together) == len(PURPOSES)
    assert not together & words(jax.random.split(key, 10_000))
    assert not together & words(key)
    assert words(jax.jit(lambda key: named(key, "data"))(key)) == words(named(key, "data"))
    together = jax.jit(lambda key: each_named(key, PURPOSES))(key)
    assert [words(one) for one in together] == keys


def test_no_purpose_takes_a_key_of_the_loop():
    config = toy.config()
    used = set().union(*(words(keys) for keys in loop.seed_keys(config)))
    root = jax.random.key(config.seed)
    for name in PURPOSES:
        purpose = named(root, name)
        assert not used & (words(purpose) | words(jax.random.split(purpose, 16)))
