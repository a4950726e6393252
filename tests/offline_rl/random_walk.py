"""A small world whose best behavior is known, and random transitions in it.

A walker on [-1, 1] moves by 0.25 a and is paid 1 - |x'|: the best action from x is toward 0. The
data's actions are uniform, so that cloning them would stand still on average.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxmethods.data.offline import FlatDataset
from jaxmethods.offline_rl.transitions import Transitions, make_transitions
from jaxmethods.offline_rl.types import Norm

LENGTH = 8
NORM = Norm(jnp.zeros(1), jnp.full(1, 0.5))


def flat(episodes: int = 256, seed: int = 0) -> FlatDataset:
    draw = np.random.default_rng(seed)
    place = draw.uniform(-1, 1, episodes)
    columns = []
    for step in range(LENGTH):
        action = draw.uniform(-1, 1, episodes)
        after = np.clip(place + 0.25 * action, -1, 1)
        last = np.full(episodes, step == LENGTH - 1)
        columns.append((place, action, 1 - np.abs(after), np.zeros(episodes, bool), last, after))
        place = after
    states, actions, rewards, terminals, timeouts, following = (
        np.stack(column, 1).reshape(-1) for column in zip(*columns, strict=True)
    )
    as_rows = [np.float32(a)[:, None] for a in (states, actions, following)]
    return FlatDataset(as_rows[0], as_rows[1], np.float32(rewards), terminals, timeouts, as_rows[2])


def transitions(discount: float = 0.9) -> Transitions:
    return make_transitions(flat(), NORM, discount)
