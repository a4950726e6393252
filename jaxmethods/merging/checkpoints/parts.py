"""What a static merge of checkpoints is given: one part of all of them at a time.

A part is a tensor, or a range of the entries of a large one where a merge doesn't look at the
others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax

Settings: TypeAlias = Mapping[str, Any]
"""Every parameter of a merge, and the seed of one that draws masks."""


class Part(NamedTuple):
    """Entries `start` to `stop` (in C order) of a tensor."""

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]
    """That the merge gets: the tensor's, or one axis."""


class Loaded(NamedTuple):
    """One part of all checkpoints, in device memory."""

    part: Part
    base: jax.Array
    """Shape of the part, in the base's type."""
    stack: jax.Array
    """[T, ...], in the experts' common type."""


MergePart: TypeAlias = Callable[[Loaded, Any, Settings], jax.Array]
"""(part of all checkpoints, coefficient [], [T] or None, settings) -> merged part."""


class Passes(Protocol):
    """Reads whole experts, part by part, as often as a merge needs."""

    @property
    def experts(self) -> int:
        """How many there are."""
        ...

    @property
    def entries(self) -> int:
        """How many of each expert are merged."""
        ...

    def read(self, wanted: Sequence[Part] | None = None) -> Iterator[tuple[Loaded, Any]]:
        """Every part, or those wanted, each with its coefficient."""
        ...

    def select(
        self, values: Callable[[Loaded], jax.Array], ranks: Sequence[int], of: int
    ) -> list[jax.Array]:
        """The values [T] of these 1-based ranks, among those of all parts.

        Args:
            values: part -> [T, ...], compared within an expert.
            of: how many such calls the whole merge makes, for the progress that is shown.
        """
        ...

    def write(self, part: Part, merged: jax.Array) -> None:
        """Takes a merged part; a later one takes its place."""
        ...


MergeInPasses: TypeAlias = Callable[[Passes, Settings], None]
"""Merges that compare entries of different tensors: reads and writes every part."""
