"""How many linear pieces a ReLU network has along a segment, exactly.

Along x(t) = a + t (b - a) every unit is linear in t between two breakpoints. Layer by layer: each
interval is cut where a unit of the layer crosses zero, found from its line and not by sampling.

    regions = breakpoints inside (0, 1) + 1

(Hanin, Rolnick, "Complexity of linear regions in deep networks", 2019.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ROUNDING = 1e-12
"""Shorter intervals than this are one point that two layers' units share."""


class Regions(NamedTuple):
    """Pieces of a network along a segment."""

    breakpoints: np.ndarray
    """Ends of the pieces, ascending from 0 to 1."""
    count: int
    """How many pieces there are."""


def linear_regions(
    layers: Sequence[tuple[np.ndarray, np.ndarray]], start: np.ndarray, end: np.ndarray
) -> Regions:
    """Breakpoints of a ReLU network between two inputs, on the host in float64.

    Args:
        layers: (W [in, out], b [out]) of every layer; ReLU behind all but the last.
        start: [in].
        end: [in].

    Returns:
        Ends of the pieces with 0 and 1 among them, and the number of pieces.

    Raises:
        ValueError: inputs that are not shaped as the first layer's.
    """
    start, end = np.asarray(start, float), np.asarray(end, float)
    if not start.shape == end.shape == (np.shape(layers[0][0])[0],):
        raise ValueError(
            f"start, end: expected ({np.shape(layers[0][0])[0]},), got {start.shape}, {end.shape}"
        )
    points = np.array([0.0, 1.0])
    for depth in range(1, len(layers)):
        points = np.unique(np.concatenate([points, _crossings(layers[:depth], points, start, end)]))
        points = points[np.concatenate([[True], np.diff(points) > ROUNDING])]
    return Regions(points, len(points) - 1)


def _crossings(layers: Sequence, points: np.ndarray, start: np.ndarray, end: np.ndarray) -> list:
    """Where units of the last of `layers` cross zero within intervals on which they are linear."""
    x = start + points[:, None] * (end - start)
    for i, (w, b) in enumerate(layers):
        x = (np.maximum(x, 0) if i else x) @ np.asarray(w, float) + np.asarray(b, float)
    left, right = x[:-1], x[1:]
    cut = left * right < 0
    share = left[cut] / (left - right)[cut]
    low, width = points[:-1], np.diff(points)
    row = np.nonzero(cut)[0]
    return list(low[row] + share * width[row])


def pattern_distance(patterns: jax.Array) -> jax.Array:
    """Mean share of units [N, U] bool that two different examples switch differently, []."""
    on = patterns.astype(jnp.float32)
    apart = jnp.sum(on, axis=1)[:, None] + jnp.sum(on, axis=1) - 2 * on @ on.T
    pairs = len(on) * (len(on) - 1)
    return jnp.sum(apart) / pairs / on.shape[1]
