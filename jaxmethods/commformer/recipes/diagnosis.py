"""A trained team's policy as a model that can be diagnosed: what it sees, and what it then does."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.commformer import policy
from jaxmethods.commformer.schedule import CommFormerTraining
from jaxmethods.envs.rollout import rollout, vectorize
from jaxmethods.numerics.compiled import compiled_quickly
from jaxmethods.stages import Diagnosable

TEAMS, STEPS = 16, 24
"""Teams that play for the data, and how many steps each."""


def diagnosable(
    training: CommFormerTraining, params: Any, graph: jax.Array, key: jax.Array
) -> Diagnosable:
    """The policy on what it meets when it plays, with its own sampled actions for targets.

    Actions of agents before an agent are given, as in training, so that the loss of a team is
    minus the log-probability of its joint action over the number of agents.

    Args:
        training: the fixed facts of the training.
        params: the network's parameters.
        graph: [N, N] who hears whom.
        key: [] typed random key of play.

    Returns:
        Outputs are logits [M, N, A] (means of continuous actions); the held-out examples are
        another play.
    """
    network, env = training.network, vectorize(training.env)

    def apply(params: Any, inputs: dict[str, jax.Array]) -> jax.Array:
        tokens = policy.shift_actions(inputs["action"], network.n_actions, network.continuous)
        outputs = policy.decoded(network, params, inputs["view"], tokens, graph)
        if network.continuous:
            return outputs
        return jnp.where(inputs["mask"], outputs, policy.UNAVAILABLE)

    def act(key: jax.Array, observation: Any) -> tuple[jax.Array, None]:
        view, mask = observation.agents_view, observation.action_mask
        return policy.act(network, params, key, view, mask, graph).action, None

    @compiled_quickly()
    def play(key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        reset_key, act_key = jax.random.split(key)
        state, timestep = env.reset(jax.random.split(reset_key, TEAMS))
        trajectory = rollout(env, act, state, timestep, act_key, STEPS)[3]
        seen = trajectory.observation
        found = {"view": seen.agents_view, "mask": seen.action_mask, "action": trajectory.action}
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)  # [T R, ...]
        return flat | {"mask": flat["mask"].astype(bool)}, flat["action"]

    first, second = jax.random.split(key)
    loss = "squared_error" if network.continuous else "cross_entropy"
    return Diagnosable("the policy of a team", apply, params, loss, play(first), play(second))
