"""Offline data and what was learned from it; every state is normalized.

S: state dimensions, A: action dimensions, L: rows of the offline data.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from jaxmethods.offline_rl.policies import PolicyParams, QParams


class Norm(NamedTuple):
    """Statistics that normalize a state: x = (s - mean) / std."""

    mean: jax.Array
    """[S]"""
    std: jax.Array
    """[S]; the small number that guards the division is in it."""

    def apply(self, raw: jax.Array) -> jax.Array:
        """Raw simulator states [..., S] -> normalized ones."""
        return (raw - self.mean) / self.std

    def invert(self, states: jax.Array) -> jax.Array:
        """Normalized states [..., S] -> raw simulator states."""
        return states * self.std + self.mean


class OfflineData(NamedTuple):
    """The offline behavior that is distilled."""

    states: jax.Array
    """[L, S] normalized."""
    actions: jax.Array
    """[L, A] in [-1, 1]."""
    density_weights: jax.Array | None = None
    """[L] weight of each state in the outer loss (see `density`); None: all 1."""


class Teacher(NamedTuple):
    """A frozen near-expert policy with its two critics, in its own normalization."""

    policy: PolicyParams
    q1: QParams
    """The critic that Av-PBC weighs with."""
    q2: QParams
    norm: Norm
    """The statistics of the states that policy and critics were trained on."""


def teacher_states(teacher: Teacher, norm: Norm, states: jax.Array) -> jax.Array:
    """States [..., S] normalized by `norm`, as the teacher wants them.

    x_t = (x std + mean - mean_t) / std_t, the identity where the statistics coincide.
    """
    scale = norm.std / teacher.norm.std
    shift = (norm.mean - teacher.norm.mean) / teacher.norm.std
    return states * scale + shift
