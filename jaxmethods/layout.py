"""How leaves of a state or a batch are split over a mesh, and which of them have an axis of seeds.

Both are data: regular expressions that are searched in a leaf's path, the names on the way to it
with slashes between them ("levels/lower/params/encoder/kernel").
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax

Axes: TypeAlias = str | tuple[str, ...] | None
"""Mesh axis ("data", "fsdp", "tensor") that an axis of an array is split over; or several, of which
as many of the first are used as divide its size; or none."""


class Rule(NamedTuple):
    """How the leaves that a pattern finds are split over the devices of a mesh."""

    pattern: str
    """Regular expression, searched in a leaf's path."""
    spec: tuple[Axes, ...]
    """The mesh axes over which each leading axis of one seed's leaf is split."""


class Layout(NamedTuple):
    """Where a stage's arrays live. What no rule names is replicated."""

    state: Sequence[Rule] = ()
    """The first rule that finds a leaf splits it."""
    batch: Sequence[Rule] = ()
    """The same for the batch. Where seeds are split over `data`, so is their axis in the batch, and
    what all seeds share is not."""
    per_seed: Sequence[str] = ()
    """Patterns of the leaves of the batch that have a leading axis of seeds, as results of earlier
    stages have; all seeds share the others."""


def path_name(path: Any) -> str:
    """A leaf's path as patterns see it, "stack/encoder/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def seed_axes(batch: Any, per_seed: Sequence[str]) -> Any:
    """`jax.vmap`'s `in_axes` for a batch: 0 for each leaf that has an axis of seeds, else None.

    Raises:
        ValueError: a pattern finds no leaf, which is a misspelled name.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(batch)]
    for pattern in per_seed:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(f"per_seed: {pattern!r} finds none of the leaves {names}")

    def axis(path: Any, leaf: Any) -> int | None:
        del leaf
        name = path_name(path)
        return 0 if any(re.search(pattern, name) for pattern in per_seed) else None

    return jax.tree_util.tree_map_with_path(axis, batch)
