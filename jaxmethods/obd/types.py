"""What goes into a distillation and what comes out of it; every state is normalized.

S: state dimensions, A: action dimensions, L: rows of the offline data, N: synthetic pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxmethods.offline_rl.types import Norm, OfflineData, Teacher


class SynSet(NamedTuple):
    """The synthetic behavioral data: the variable that is optimized."""

    states: jax.Array
    """[N, S] normalized."""
    actions: jax.Array
    """[N, A]; may leave [-1, 1]."""


class Source(NamedTuple):
    """The batch of a distillation: what `Method.init` and `Method.step` are given."""

    data: OfflineData
    norm: Norm
    """The normalization of `data`."""
    teacher: Teacher | None = None
    """None is enough for the objective `dbc`."""
    init_pool: Any = None
    """Initial students with a leading axis to pick from (see `method.init_pool`); None: fresh
    ones."""
