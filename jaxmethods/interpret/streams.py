"""Data that stays on the host: microbatches are fetched inside the compiled program, one at a time.

    stream = stream_of(lambda k: Data(inputs[k], targets[k]), batches=1000)
    problem = make_problem(apply, cross_entropy, params, stream)

`fetch` is called anew in every pass over the data (every product), with k = 0 to batches - 1 in
order, so that it can read from a memory-mapped file or go on with an iterator: `from_iterator`
begins a new one at every k = 0. Microbatches have one shape; the last one is padded with weight 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@jax.tree_util.register_static
@dataclass(frozen=True)
class Stream:
    """Where microbatches come from; made by `stream_of`. Keep one object: another is a program."""

    fetch: Callable[[int], Any]
    """k -> `Data` of numpy arrays."""
    batches: int
    leaves: tuple[jax.ShapeDtypeStruct, ...]
    structure: Any

    def at(self, k: jax.Array) -> Any:
        """Microbatch k, inside a traced function."""

        def host(k: Any) -> list[np.ndarray]:
            found = jax.tree.leaves(self.fetch(int(k)))
            return [np.asarray(x, s.dtype) for x, s in zip(found, self.leaves, strict=True)]

        leaves = jax.pure_callback(host, list(self.leaves), k, vmap_method="sequential")
        return jax.tree.unflatten(self.structure, leaves)

    @property
    def like(self) -> Any:
        """Shapes and types of a microbatch."""
        return jax.tree.unflatten(self.structure, list(self.leaves))


def stream_of(fetch: Callable[[int], Any], batches: int) -> Stream:
    """Data that is fetched microbatch by microbatch.

    Args:
        fetch: k -> `Data` of numpy arrays [B, ...], all of the shapes of the first one, which is
            looked at.
        batches: how many there are.

    Returns:
        What `make_problem` takes in place of data.

    Raises:
        ValueError: no microbatch.
    """
    if batches < 1:
        raise ValueError(f"batches: expected at least 1, got {batches}")
    leaves, structure = jax.tree.flatten(fetch(0))
    shapes = tuple(
        jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(np.asarray(x).dtype))
        for x in leaves
    )
    return Stream(fetch, batches, shapes, structure)


def from_iterator(begin: Callable[[], Iterable[Any]], batches: int) -> Stream:
    """Data of an iterator that is begun anew for every pass.

    Args:
        begin: () -> an iterable of `Data` of numpy arrays, always the same ones.
        batches: how many are taken of each.

    Returns:
        What `make_problem` takes in place of data.
    """
    running: list[Iterator[Any]] = []

    def fetch(k: int) -> Any:
        if k == 0:
            running[:] = [iter(begin())]
        return next(running[0])

    return stream_of(fetch, batches)
