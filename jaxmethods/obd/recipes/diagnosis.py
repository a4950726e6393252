"""A student of a distilled set as a model that can be diagnosed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.obd.types import SynSet
from jaxmethods.offline_rl.policies import Policy
from jaxmethods.offline_rl.types import OfflineData
from jaxmethods.stages import Diagnosable

ROWS = 1024
"""Rows of the offline data that it is held against, spread over all of them."""


def diagnosable(policy: Policy, params: Any, syn: SynSet, data: OfflineData) -> Diagnosable:
    """A student on the pairs that it was trained on, and on real ones.

    Args:
        policy: its architecture.
        params: what it learned.
        syn: the distilled set.
        data: what the set was distilled from.

    Returns:
        Inputs are normalized states [N, S], outputs deterministic actions [N, A].
    """
    places = jnp.asarray(np.linspace(0, len(data.states) - 1, min(ROWS, len(data.states))), int)

    def apply(params: Any, states: jax.Array) -> jax.Array:
        return policy.mode(params, states)

    real = data.states[places], data.actions[places]
    title = "a student of a distilled set"
    return Diagnosable(title, apply, params, "squared_error", (syn.states, syn.actions), real)
