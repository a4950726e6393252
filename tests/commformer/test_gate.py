"""The temporal gate: open it is not there, closed everybody is alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmethods import envs
from jaxmethods.commformer import experience, gate, method, objectives, policy, schedule
from jaxmethods.commformer.config import GateConfig, GraphConfig, NetworkConfig, PPOConfig
from jaxmethods.commformer.network import CommFormer
from tests.programs import normal, weights

B, N, D, A = 5, 4, 6, 3
GRAPH = jnp.array([[0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 1, 1], [1, 1, 0, 0]], jnp.float32)
OBS = normal(1, B, N, D)
ACTION = np.random.default_rng(2).integers(0, A, (B, N), np.int32)
ACT = jax.jit(policy.act, static_argnums=(0, 6))
JUDGE = jax.jit(policy.evaluate_actions, static_argnums=0)
MASK = jnp.ones((B, N, A), bool)
PLAIN = NetworkConfig(embed=8, heads=2)


def network_of(mode):
    return CommFormer(PLAIN.model_copy(update={"gate": GateConfig(mode=mode)}), N, A)


@pytest.fixture(scope="module")
def params():
    network = network_of("deterministic")
    return weights(lambda key: policy.init(network, key, OBS), scale=0.4)


def with_bias(params, bias):
    own = dict(params["params"])
    out = {"kernel": own["gate"]["out"]["kernel"], "bias": jnp.full((1,), bias)}
    own["gate"] = {**own["gate"], "out": out}
    return {"params": own}


def without_gate(params):
    return {"params": {name: p for name, p in params["params"].items() if name != "gate"}}


def judge(network, params, obs=OBS, noise=None):
    return JUDGE(network, params, obs, ACTION, MASK, GRAPH, gate_noise=noise)


@pytest.mark.slow
def test_open_gates_leave_the_network_as_it_is(params):
    gated = judge(network_of("deterministic"), with_bias(params, 1e4))
    plain = judge(CommFormer(PLAIN, N, A), without_gate(params))
    assert np.all(gated.gate.open == 1)
    for name in ("log_prob", "entropy", "value"):
        np.testing.assert_allclose(getattr(gated, name), getattr(plain, name), rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_closed_gates_leave_every_agent_alone_with_what_it_sees(params):
    network, closed = network_of("deterministic"), with_bias(params, -1e4)

    def outputs(obs):  # the actions that were taken are given
        out = judge(network, closed, obs[None].repeat(B, 0))
        return jnp.stack([out.log_prob[0], out.value[0]], -1)

    jacobian = np.abs(jax.jit(jax.jacrev(outputs))(OBS[0])).max((1, 3))  # [N, N]
    others = ~np.eye(N, dtype=bool)
    assert np.all(jacobian[others] == 0)
    assert np.all(jacobian[~others] > 0)


def test_a_sampled_gate_decides_the_same_again_in_training(params):
    network = network_of("sampled")
    half = with_bias(params, 0.0)
    acted = ACT(network, half, jax.random.key(4), OBS, MASK, GRAPH, False)
    judged = JUDGE(network, half, OBS, acted.action, MASK, GRAPH, gate_noise=acted.gate_noise)
    assert 0 < acted.gate.open.mean() < 1
    np.testing.assert_array_equal(acted.gate.open, judged.gate.open)
    np.testing.assert_allclose(acted.log_prob, judged.log_prob, atol=1e-5)
    np.testing.assert_allclose(acted.value, judged.value, atol=1e-6)


def test_greedy_play_decides_by_the_threshold(params):
    acted = ACT(network_of("sampled"), params, jax.random.key(4), OBS, MASK, GRAPH, True)
    np.testing.assert_array_equal(acted.gate.open, acted.gate.probability > 0.5)


def test_gates_are_drawn_with_their_probability():
    logits = jnp.array([-2.0, 0.0, 1.0])
    noise = jax.random.logistic(jax.random.key(0), (40_000, 3))
    share = gate.decide(logits, noise).open.mean(0)
    np.testing.assert_allclose(share, jax.nn.sigmoid(logits), atol=0.01)


@settings(max_examples=30)
@given(st.floats(-4, 4, width=32), st.floats(-4, 4, width=32))
def test_a_decision_is_exact_and_has_the_gradient_of_its_sigmoid(logit, noise):
    value, slope = jax.value_and_grad(lambda z: gate.decide(z, noise).open)(jnp.float32(logit))
    assert value in (0.0, 1.0)
    p = jax.nn.sigmoid(jnp.float32(logit) + noise)
    np.testing.assert_allclose(slope, p * (1 - p), atol=1e-6)


def test_a_closed_agent_keeps_its_own_edge_only():
    is_open = jnp.array([[1.0, 0.0, 0.0, 1.0]])
    graph = gate.gated_graph(GRAPH, is_open)[0]
    np.testing.assert_array_equal(graph[jnp.array([0, 3])], GRAPH[jnp.array([0, 3])])
    np.testing.assert_array_equal(graph[1], [0, 0, 0, 0])
    np.testing.assert_array_equal(graph[2], [0, 0, 1, 0])


def test_traffic_counts_open_edges_between_different_agents():
    counted = gate.traffic(GRAPH, jnp.array([[1.0, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]]))
    assert counted.messages.tolist() == [8, 4, 0]
    np.testing.assert_allclose(counted.rate, [1, 4 / 9, 0])
    assert gate.traffic(jnp.zeros((N, N)), jnp.zeros((1, N))).rate == 1


def test_the_penalty_is_that_of_the_config():
    decision = gate.Gate(jnp.array([[1.0, 1.0, 0.0, 1.0]]), jnp.array([[0.9, 0.7, 0.2, 0.6]]))
    np.testing.assert_allclose(gate.penalty(decision, GateConfig(penalty=0.5)), 0.3)
    above = GateConfig(penalty=0.5, target=0.5)
    np.testing.assert_allclose(gate.penalty(decision, above), 0.125)
    assert gate.penalty(decision, GateConfig(penalty=0.5, target=0.9)) == 0


def test_the_penalty_begins_after_its_share_of_the_updates(monkeypatch):
    """Where everything else is worth 0, the loss is 2 sigmoid(zeta) from update 0.5 * 8 on."""
    zero = jnp.zeros((4, 3))
    decided = gate.Gate(jnp.ones((4, 3)), jnp.full((4, 3), 0.25))
    judged = policy.EvaluateOutput(zero, zero, zero, decided)
    monkeypatch.setattr(policy, "evaluate_actions", lambda *_: judged)
    env = envs.make("predator_prey", n_predators=3, dim=3)
    network = NetworkConfig(embed=8, gate=GateConfig(penalty=2.0, penalty_from=0.5))
    training = schedule.prepare(env, network, GraphConfig(), PPOConfig(), updates=8)
    samples = experience.Experience(None, None, None, objectives.PPOTargets(zero, zero, zero, zero))
    edges, noise = jnp.ones((3, 3)), jnp.zeros((3, 3))

    def loss(update):
        statistics, key = objectives.value_norm_init(), jax.random.key(0)
        given = (training, None, edges, samples, statistics, noise, update, key)
        return method.minibatch_loss(*given)[0]

    losses = [loss(update) for update in (0, 3, 4, 7)]
    np.testing.assert_allclose(losses, [0.0, 0.0, 0.5, 0.5], atol=1e-6)
