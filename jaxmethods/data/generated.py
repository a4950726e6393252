"""Offline data made on the spot: a scripted controller, disturbed more and less.

Seven behaviors, equally many episodes of each: the controller's action plus N(0, sigma^2) with
sigma 0, 0.3, 0.6 and 1, and the controller's action replaced by a uniform one with probability
0.3, 0.6 and 1. A mixture of that kind is sub-optimal like replay data, and good behavior is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.data.offline import FlatDataset
from jaxmethods.envs.control.episodes import Transition, record_episodes

NOISE = (0.0, 0.3, 0.6, 1.0, 0.0, 0.0, 0.0)
"""Standard deviation added by each behavior."""
RANDOM = (0.0, 0.0, 0.0, 0.0, 0.3, 0.6, 1.0)
"""Probability with which each behavior takes a uniform action."""


QUALITIES: dict[str, tuple[int, ...]] = {
    "mixed": tuple(range(len(NOISE))),
    "expert": (0, 1),
    "medium": (2, 3, 4),
    "medium_expert": (0, 1, 2, 4),
    "random": (6,),
}
"""Name of a mixture to the behaviors in it."""


def mixed_quality(
    env: Any,
    controller: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    episodes: int,
    quality: str = "mixed",
) -> FlatDataset:
    """Plays `episodes` episodes of each behavior, shuffled and laid out flat as in D4RL.

    Args:
        env: a control environment that never terminates (see `record_episodes`).
        controller: observations [..., S] -> actions [..., A] in [-1, 1].
        key: [] typed random key; the same key gives the same data.
        episodes: of each behavior.
        quality: one of `QUALITIES`.

    Returns:
        episodes x behaviors x `env.time_limit` rows on the host, in float32; flags are bool.

    Raises:
        KeyError: an unknown `quality`.
    """
    behaviors = jnp.array(QUALITIES[quality])
    play_key, order_key = jax.random.split(key)

    def one(key: jax.Array, noise: jax.Array, chance: jax.Array) -> Transition:
        def act(key: jax.Array, observation: jax.Array) -> jax.Array:
            return disturbed(key, controller(observation), noise, chance)

        return record_episodes(env, act, key, episodes)

    keys = jax.random.split(play_key, len(NOISE))[behaviors]
    noise, chance = jnp.array(NOISE)[behaviors], jnp.array(RANDOM)[behaviors]
    taken = jax.jit(jax.vmap(one))(keys, noise, chance)
    order = np.asarray(jax.random.permutation(order_key, len(behaviors) * episodes))

    def flatten(leaf: jax.Array) -> np.ndarray:
        leaf = leaf if leaf.dtype == bool else leaf.astype(jnp.float32)
        whole = np.asarray(leaf).reshape(len(order), env.time_limit, *leaf.shape[3:])
        return whole[order].reshape(-1, *leaf.shape[3:])

    flat = jax.tree.map(flatten, taken)
    return FlatDataset(
        flat.observation,
        flat.action,
        flat.reward,
        flat.terminal,
        flat.timeout,
        flat.next_observation,
    )


def disturbed(key: jax.Array, action: jax.Array, noise: jax.Array, chance: jax.Array) -> jax.Array:
    """Actions with noise, or in their place uniform ones, within [-1, 1].

    Args:
        key: [] typed random key.
        action: [E, A].
        noise: [] standard deviation.
        chance: [] probability that an episode's action is replaced by a uniform one.

    Returns:
        [E, A].
    """
    noise_key, uniform_key, chance_key = jax.random.split(key, 3)
    noisy = action + noise * jax.random.normal(noise_key, action.shape)
    uniform = jax.random.uniform(uniform_key, action.shape, minval=-1.0, maxval=1.0)
    replaced = jax.random.uniform(chance_key, (len(action), 1)) < chance
    return jnp.clip(jnp.where(replaced, uniform, noisy), -1.0, 1.0)
