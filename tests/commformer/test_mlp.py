"""IPPO and MAPPO: who sees what."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.commformer import policy
from jaxmethods.commformer.config import NetworkConfig
from tests.programs import normal, weights

N, D, A = 3, 4, 2


def outputs(model):
    """Logits [N, A] and values [N] as a function of one team's observations [N, D]."""
    network = policy.make_network(NetworkConfig(model=model, embed=8), N, A)
    obs = normal(0, N, D)
    params = weights(lambda key: policy.init(network, key, obs[None]), scale=1.0)

    def run(obs):
        logits, values = network.apply(params, obs[None], jnp.zeros(()), jnp.ones((N, N)))
        return logits[0], values[0]

    return run, obs


@pytest.mark.parametrize(("model", "seen"), [("ippo", np.eye(N)), ("mappo", np.ones((N, N)))])
def test_actors_see_their_own_view_and_critics_their_own_or_everybodys(model, seen):
    run, obs = outputs(model)
    of_logits, of_values = jax.jit(jax.jacobian(run))(obs)
    np.testing.assert_array_equal((of_logits != 0).any((1, 3)), np.eye(N))
    np.testing.assert_array_equal((of_values != 0).any(2), seen)


@pytest.mark.parametrize("model", ["ippo", "mappo"])
def test_agents_that_see_the_same_may_act_differently(model):
    """They know their index."""
    run, obs = outputs(model)
    logits, _ = run(jnp.broadcast_to(obs[0], obs.shape))
    assert (np.ptp(logits, axis=0) > 1e-3).all()


def test_mappos_critic_depends_on_the_order_of_agents():
    run, obs = outputs("mappo")
    assert np.abs(run(obs)[1] - run(obs[::-1])[1]).max() > 1e-3
