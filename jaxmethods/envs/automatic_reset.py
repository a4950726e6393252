"""Vectorized environments whose ended episodes are begun anew, at the price of those that ended.

Mapped over environments, jumanji's `AutoResetWrapper` draws a first state for every one of them
in every step: the branch it takes for one environment becomes a selection. Here the environments
whose episode ended are gathered, a block at a time, in a loop that ends when none is left. Mapped
over seeds as well, all seeds' environments go through one such loop; the values are those of the
wrapper.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jumanji.env import Environment
from jumanji.types import TimeStep
from jumanji.wrappers import NEXT_OBS_KEY_IN_EXTRAS, VmapWrapper

BLOCKS = 16
"""A block is this part of the environments: of episodes of 16 steps and more, those that end in
the same step fill about one block."""

Restart = Callable[[jax.Array, Any, Any], tuple[Any, Any]]
"""(ended [R] bool, states [R, ...], observations [R, ...]) -> the same, begun anew where ended."""


class AutomaticReset(VmapWrapper[Any, Any, Any]):
    """`reset` over keys [R] and `step` over states and actions of R environments.

    See `rollout.vectorize`, which makes it.
    """

    def __init__(self, env: Environment[Any, Any, Any], next_obs_in_extras: bool = False) -> None:
        super().__init__(env)
        self.next_obs_in_extras = next_obs_in_extras
        self._restart = restarting(env.reset)
        self._keep_settings = getattr(env, "keep_settings", None)

    def reset(self, key: jax.Array) -> tuple[Any, TimeStep[Any]]:
        """Begins an episode from each of R keys."""
        state, timestep = super().reset(key)
        return state, self._with_next_obs(timestep)

    def step(self, state: Any, action: Any) -> tuple[Any, TimeStep[Any]]:
        """Takes one step in every environment and begins anew those whose episode it ended."""
        after, timestep = super().step(state, action)
        timestep = self._with_next_obs(timestep)
        ended: Any = timestep.last()
        after, observation = self._restart(ended, after, timestep.observation)
        if self._keep_settings is not None:
            after = jax.vmap(self._keep_settings)(after, state)
        return after, dataclasses.replace(timestep, observation=observation)

    def _with_next_obs(self, timestep: TimeStep[Any]) -> TimeStep[Any]:
        if not self.next_obs_in_extras:
            return timestep
        extras = {**(timestep.extras or {}), NEXT_OBS_KEY_IN_EXTRAS: timestep.observation}
        return dataclasses.replace(timestep, extras=extras)


def restarting(reset: Callable[[jax.Array], tuple[Any, TimeStep[Any]]]) -> Restart:
    """Makes the function that begins ended episodes anew, each from its own state's key."""

    def begin(key: jax.Array) -> tuple[Any, Any]:
        # As jumanji has it: the key that a state holds goes on with the episode.
        state, timestep = reset(jax.random.split(key)[0])
        return state, timestep.observation

    @jax.custom_batching.custom_vmap
    def restart(ended: Any, state: Any, observation: Any) -> tuple[Any, Any]:
        environments = ended.shape[0]
        block = -(-environments // BLOCKS)
        position = jnp.cumsum(ended)  # the p-th ended episode is the first one with position p
        count = position[-1]

        def unfinished(carry: tuple) -> jax.Array:
            return carry[0] < count

        def one_block(carry: tuple) -> tuple:
            done, current = carry
            # What a last block has no episode for begins its last one again, which changes nothing.
            wanted = jnp.minimum(done + 1 + jnp.arange(block), count)
            chosen = jnp.searchsorted(position, wanted)  # [block]
            fresh = jax.vmap(begin)(current[0].key[chosen])
            current = jax.tree.map(lambda old, new: old.at[chosen].set(new), current, fresh)
            return done + block, current

        start = (jnp.zeros_like(count), (state, observation))
        return jax.lax.while_loop(unfinished, one_block, start)[1]

    @restart.def_vmap
    def of_seeds(size: int, batched: Any, *args: Any) -> tuple[Any, Any]:
        # A mapped loop would go on for every seed until the last is done, and select each time.
        def fold(leaf: jax.Array, mapped: bool) -> jax.Array:
            if not mapped:
                leaf = jnp.broadcast_to(leaf, (size, *leaf.shape))
            return leaf.reshape(-1, *leaf.shape[2:])

        folded = jax.tree.map(fold, args, tuple(batched))
        begun = restart(*folded)
        unfolded = jax.tree.map(lambda leaf: leaf.reshape(size, -1, *leaf.shape[1:]), begun)
        return unfolded, jax.tree.map(lambda _: True, unfolded)

    return restart
