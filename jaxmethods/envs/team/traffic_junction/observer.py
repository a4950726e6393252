"""What the cars of Traffic Junction see."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.envs.team import grid
from jaxmethods.envs.team.traffic_junction.roads import Roads
from jaxmethods.envs.team.traffic_junction.types import State

VOCABULARIES = ("bool", "scalar")


def observation_size(roads: Roads, vision: int, vocabulary: str) -> int:
    """D: 2 + (2v+1)^2 (car_class + 1) for "bool", 4 + (2v+1)^2 2 for "scalar"."""
    window = (2 * vision + 1) ** 2
    return 2 + window * (roads.car_class + 1) if vocabulary == "bool" else 4 + 2 * window


def agents_view(state: State, roads: Roads, vision: int, vocabulary: str) -> jax.Array:
    """What each car sees; all 0 while it is outside.

    First the car's last action and route / (npath - 1), with the scalar vocabulary also row / (side
    - 1) and column / (side - 1); then the window around it. A cell of the window is its class
    one-hot plus, at `roads.car_class`, the number of cars ("bool"), or whether it is road and the
    number of cars ("scalar"). Cars outside count as standing at (0, 0).

    Args:
        state: where the cars are.
        roads: the map.
        vision: v, cells seen to each side.
        vocabulary: "bool" or "scalar".

    Returns:
        [n, D] float32.
    """
    header = [state.last_action, state.route / (len(roads.lengths) - 1)]
    if vocabulary == "scalar":
        header += list(state.location.T / (roads.side - 1))
    rows, columns = grid.window_cells(state.location, vision)
    cars = grid.window_counts(rows, columns, state.location)
    # The padding makes every cell of every window a valid index.
    number = (rows + vision) * (roads.side + 2 * vision) + columns + vision
    classes = jnp.asarray(roads.classes(vision)).ravel()[number]
    if vocabulary == "bool":
        window = grid.encode_windows(classes, {roads.car_class: cars}, roads.car_class + 1)
    else:
        road = jnp.asarray(roads.is_road(vision)).ravel()[number]
        # Class 2 has no channel: cells off the road are empty.
        window = grid.encode_windows(jnp.where(road, 0, 2), {1: cars}, channels=2)
    # Padding and selecting is one fused pass; concatenating took twice as long on CPU.
    view = jnp.pad(window, ((0, 0), (len(header), 0))).astype(jnp.float32)
    for position, values in enumerate(header):
        view = jnp.where(np.arange(view.shape[1]) == position, values[:, None], view)
    return jnp.where(state.alive[:, None], view, 0.0)
