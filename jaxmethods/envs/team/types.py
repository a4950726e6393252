"""What every multi-agent environment of this library shows its agents."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Observation(NamedTuple):
    """One time step seen by a team of N agents with A actions each."""

    agents_view: jax.Array
    """[N, D], any numeric dtype: what each agent sees (int8 for small counts)."""
    action_mask: jax.Array
    """[N, A] bool: the actions each agent may take; True everywhere if actions are continuous."""
    step_count: jax.Array
    """[] int32: steps since the episode began."""


def one_more(count: jax.Array) -> jax.Array:
    """`count` + 1, but never beyond the largest int32: an episode without a limit may get there,
    and would go on counting from -2^31."""
    return count + (count < jnp.iinfo(jnp.int32).max)
