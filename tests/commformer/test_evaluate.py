"""Greedy evaluation: a broken network or graph is never a success."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import envs
from jaxmethods.commformer import config, policy
from jaxmethods.commformer.evaluate import evaluate
from tests.programs import weights

EPISODES, CAP = 12, 6
ENV = envs.make("predator_prey", n_predators=1, dim=2, vision=0)
"""Half of all episodes are won by whoever always goes up or to the left."""


def network(model):
    settings = config.NetworkConfig(model=model, embed=4)
    return policy.make_network(settings, ENV.num_agents, ENV.num_actions)


@pytest.fixture(scope="module", params=["commformer", "ippo"])
def judged(request):
    """Jitted `evaluate`, and fresh parameters."""
    module = network(request.param)
    obs = jnp.zeros((1, 1, ENV.observation_size))
    params = jax.tree.map(jnp.asarray, weights(lambda key: policy.init(module, key, obs)))
    play = partial(evaluate, ENV, module, episodes=EPISODES, max_steps=CAP)
    return jax.jit(lambda p, graph: play(p, graph, jax.random.key(1))), params


def test_a_finite_network_has_finite_metrics(judged):
    play, params = judged
    assert all(np.isfinite(value) for value in play(params, jnp.ones((1, 1))).values())


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_any_broken_parameter_or_edge_is_a_failure_in_every_episode(judged, value):
    """Also one that actions don't depend on: the value's."""
    play, params = judged
    leaves, structure = jax.tree.flatten(params)
    wholes = [leaf.at[(0,) * leaf.ndim].set(value) for leaf in leaves]
    broken = [
        (jax.tree.unflatten(structure, [*leaves[:i], wholes[i], *leaves[i + 1 :]]), 1.0)
        for i in range(len(leaves))
    ]
    for parameters, edge in [*broken, (params, value)]:
        metrics = play(parameters, jnp.full((1, 1), edge))
        assert metrics["success_rate"] == 0
        assert metrics["episode_length"] == CAP
        assert np.isnan(metrics["episode_return"])
