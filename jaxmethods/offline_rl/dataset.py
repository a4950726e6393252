"""From a dataset file to what is distilled: D4RL's rows, normalized, on the device."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxmethods.data.offline import FlatDataset, Rows, q_learning_rows, read_offline
from jaxmethods.offline_rl.types import Norm, OfflineData

STATE_EPS = 1e-3
"""Added to the standard deviation of every state dimension."""


def load_offline(path: Path | str) -> tuple[OfflineData, Norm]:
    """Reads an npz, D4RL or Minari file and normalizes its states.

    Args:
        path: the file, or a folder of Minari.

    Returns:
        The rows, float32, and the statistics that normalize their states.

    Raises:
        DataError: see `jaxmethods.data.offline.read_offline`.
    """
    return offline_data(read_offline(path))


def offline_data(flat: FlatDataset) -> tuple[OfflineData, Norm]:
    """The rows of D4RL's q-learning protocol, normalized by their own statistics.

    Args:
        flat: a dataset as it was read.

    Returns:
        The rows, float32, and the statistics that normalize their states.
    """
    rows = q_learning_rows(flat)
    norm = norm_of(rows)
    states = norm.apply(jnp.asarray(rows.observations))
    return OfflineData(states, jnp.asarray(rows.actions)), norm


def norm_of(rows: Rows, eps: float = STATE_EPS) -> Norm:
    """Mean and population standard deviation of the observations; `eps` is added to the latter."""
    # Summed in float64: a million float32 terms lose digits.
    mean = rows.observations.mean(0, dtype=np.float64)
    std = rows.observations.std(0, dtype=np.float64) + eps
    return Norm(jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))
