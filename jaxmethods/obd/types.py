"""What goes into a distillation and what comes out of it; every state is normalised.

S: state dimensions, A: action dimensions, L: rows of the offline data, N: synthetic pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxmethods.obd.policy import PolicyParams, QParams


class Norm(NamedTuple):
    """Statistics that normalise a state: x = (s - mean) / std."""

    mean: jax.Array
    """[S]"""
    std: jax.Array
    """[S]; the small number that guards the division is in it."""

    def apply(self, raw: jax.Array) -> jax.Array:
        """Raw simulator states [..., S] -> normalised ones."""
        return (raw - self.mean) / self.std

    def invert(self, states: jax.Array) -> jax.Array:
        """Normalised states [..., S] -> raw simulator states."""
        return states * self.std + self.mean


class OfflineData(NamedTuple):
    """The offline behaviour that is distilled."""

    states: jax.Array
    """[L, S] normalised."""
    actions: jax.Array
    """[L, A] in [-1, 1]."""
    density_weights: jax.Array | None = None
    """[L] weight of each state in the outer loss (see `density`); None: all 1."""


class SynSet(NamedTuple):
    """The synthetic behavioural data: the variable that is optimised."""

    states: jax.Array
    """[N, S] normalised."""
    actions: jax.Array
    """[N, A]; may leave [-1, 1]."""


class Teacher(NamedTuple):
    """A frozen near-expert policy with its two critics, in its own normalisation."""

    policy: PolicyParams
    q1: QParams
    """The critic that Av-PBC weighs with."""
    q2: QParams
    norm: Norm
    """The statistics of the states that policy and critics were trained on."""


class Source(NamedTuple):
    """The batch of a distillation: what `Method.init` and `Method.step` are given."""

    data: OfflineData
    norm: Norm
    """The normalisation of `data`."""
    teacher: Teacher | None = None
    """None is enough for the objective `dbc`."""
    init_pool: Any = None
    """Initial students with a leading axis to pick from (see `method.init_pool`); None: fresh
    ones."""


def teacher_states(teacher: Teacher, norm: Norm, states: jax.Array) -> jax.Array:
    """States [..., S] normalised by `norm`, as the teacher wants them.

    x_t = (x std + mean - mean_t) / std_t, the identity where the statistics coincide.
    """
    scale = norm.std / teacher.norm.std
    shift = (norm.mean - teacher.norm.mean) / teacher.norm.std
    return states * scale + shift
