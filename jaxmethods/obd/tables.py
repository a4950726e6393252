"""The paper's cross tables (section 5.3): one set, students of other architectures or optimizers.

All students of a table are trained in one program for 500 steps. The published code re-creates its
optimizer at every step, so that its rows for other optimizers are plain SGD; here each is what it
is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax

from jaxmethods.obd.config import StudentConfig
from jaxmethods.obd.students import OPTIMIZERS, cross_optimizers
from jaxmethods.obd.types import SynSet
from jaxmethods.obd.zoo import ARCHITECTURES, cross_architectures, plain

Students = Iterator[tuple[str, Any, StudentConfig]]
"""Row's name, parameters [K, ...] and the architecture that they are of."""


def architectures(key: jax.Array, syn: SynSet, n_students: int) -> Students:
    """Students of every architecture, trained with SGD (0.1)."""
    train = jax.jit(lambda key, syn: cross_architectures(key, syn, n_students=n_students))
    trained = train(key, syn)
    for row, (name, architecture) in enumerate(ARCHITECTURES.items()):
        own = jax.tree.map(lambda leaf, row=row: leaf[row], trained)
        student = StudentConfig(n_layers=architecture.n_layers, residual=architecture.residual)
        yield name, plain(own, architecture), student


def optimizers(key: jax.Array, syn: SynSet, n_students: int) -> Students:
    """Students of the 4-layer policy under every optimizer."""
    every = tuple(OPTIMIZERS.values())
    train = jax.jit(lambda key, syn: cross_optimizers(key, syn, every, n_students=n_students))
    trained = train(key, syn)
    for row, name in enumerate(OPTIMIZERS):
        yield name, jax.tree.map(lambda leaf, row=row: leaf[row], trained), StudentConfig()


TABLES: dict[str, Callable[[jax.Array, SynSet, int], Students]] = {
    "architectures": architectures,
    "optimizers": optimizers,
}
