"""Densities, entropies and tokens of actions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxmethods.commformer import policy
from jaxmethods.commformer.config import NetworkConfig
from tests.programs import normal, weights

N, A = 2, 3


@pytest.fixture(scope="module")
def judged():
    """Continuous actions [N, A] with what the network says of them, and its standard deviation."""
    network = policy.make_network(NetworkConfig(embed=4), N, A, continuous=True)
    obs = normal(0, 1, N, 5)
    params = weights(lambda key: policy.init(network, key, obs))
    params["params"]["log_std"] = jnp.array([-1.0, 0.0, 2.0])
    graph, mask = jnp.ones((N, N)), jnp.ones((1, N, A))
    act = jax.jit(policy.act, static_argnums=(0, 6))
    greedy = act(network, params, jax.random.key(2), obs, mask, graph, True).action
    # The second agent's mean depends on the first one's action, which stays the greedy one.
    action = greedy.at[0, 1].add(jnp.array([0.3, -0.1, 0.2]))
    out = jax.jit(policy.evaluate_actions, static_argnums=0)(
        network, params, obs, action, mask, graph
    )
    return action[0] - greedy[0], out, 0.5 / (1 + np.exp([1.0, 0.0, -2.0]))


def test_the_standard_deviation_is_half_the_sigmoid(judged):
    params = {"params": {"log_std": jnp.array([-1.0, 0.0, 2.0])}}
    np.testing.assert_allclose(policy.action_std(params), judged[2], rtol=1e-6)


def test_log_probabilities_are_those_of_a_normal_distribution(judged):
    distance, out, std = judged
    np.testing.assert_allclose(out.log_prob[0], stats.norm.logpdf(distance, scale=std), rtol=1e-4)


def test_the_entropy_is_that_of_a_normal_distribution(judged):
    _, out, std = judged
    expected = np.broadcast_to(stats.norm.entropy(scale=std), (N, A))
    np.testing.assert_allclose(out.entropy[0], expected, rtol=1e-5)


def test_every_agent_gets_the_action_before_its_own():
    """Row i is the one-hot of 1 + a_{i-1}; 0 is the beginning."""
    tokens = policy.shift_actions(jnp.array([0, 2, 1]), 3)
    np.testing.assert_array_equal(tokens, np.eye(4)[[0, 1, 3]])
