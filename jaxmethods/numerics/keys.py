"""Random keys for one purpose each.

`jax.random.fold_in(key, n)` is the n-th of `jax.random.split(key, m)` for n < m: a key that is
split somewhere must not be folded with a small number elsewhere, nor split a second time.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import jax
import numpy as np

FAR = 1 << 31
"""Beyond the number of keys that anything is split into."""


def named(key: jax.Array, name: str) -> jax.Array:
    """The key [] of a purpose: of none of the key's splits, and of no other name."""
    return jax.random.fold_in(key, _number(name))


def each_named(key: jax.Array, names: Sequence[str]) -> jax.Array:
    """The keys [N] of N purposes, in one small program: the same as `named` gives for each."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, np.array([_number(n) for n in names]))


def _number(name: str) -> np.uint32:
    return np.uint32(zlib.crc32(name.encode()) | FAR)
