"""The PyTorch side of the benchmarks does the work of the JAX side: equal numbers, equal weights.

Both are given the same parameters, observations, actions and graphs; tolerance 1e-4.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import envs
from jaxmethods.commformer import NetworkConfig, clean, objectives, policy, reference
from jaxmethods.commformer.network import CommFormer
from jaxmethods.commformer.recipes.torch_weights import params_from_torch

torch = pytest.importorskip("torch")
from benchmarks import torch_commformer as theirs  # noqa: E402

pytestmark = pytest.mark.slow  # of benchmarks, not of the library

AGENTS, DIM, BATCH = 4, 4, 6
GRAPH = np.array([[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0]], np.float32)
PRESETS = {"reference": reference(), "clean": clean()}


def assert_close(ours, other) -> None:
    np.testing.assert_allclose(np.asarray(ours), other.detach().numpy(), rtol=1e-4, atol=1e-4)


@pytest.fixture(params=PRESETS)
def config(request) -> NetworkConfig:
    sizes = {"embed": 16, "heads": 2, "blocks": 2}
    return PRESETS[request.param].network.model_copy(update=sizes)


@pytest.fixture
def both(config):
    """The same network twice, with a batch of its environment's observations and actions."""
    torch.manual_seed(0)
    env = theirs.PredatorPrey(BATCH, AGENTS, DIM, 1, "cpu")
    obs = env.observe()
    network = theirs.CommFormer(config, obs.shape[-1], AGENTS, env.num_actions).eval()
    with torch.no_grad():  # biases and norms start at constants, which would hide mistakes
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    params = params_from_torch(theirs.published_state(network), config)["network"]
    action = torch.randint(env.num_actions, (BATCH, AGENTS))
    return network, CommFormer(config, AGENTS, env.num_actions), params, obs, action


@pytest.mark.parametrize("graph", [GRAPH, 0.97 + 0.05 * GRAPH], ids=["exact", "raw"])
def test_values_representations_and_logits_are_equal(both, graph):
    network, module, params, obs, action = both
    ours = module.apply(params, jnp.asarray(obs.numpy()), jnp.asarray(graph), method="encode")
    their_value, their_rep = network.encode(obs, torch.from_numpy(graph))
    assert_close(ours.value, their_value)
    assert_close(ours.rep, their_rep)
    shifted = policy.shift_actions(jnp.asarray(action.numpy()), module.n_actions)
    logits = module.apply(params, shifted, ours.rep, jnp.asarray(graph), method="decode")
    assert_close(logits, network.logits(action, their_rep, torch.from_numpy(graph)))


def test_greedy_actions_and_log_probabilities_are_equal(both):
    network, module, params, obs, _ = both
    mask = np.ones((BATCH, AGENTS, module.n_actions), bool)
    mask[:, 1, 2:] = False
    ours = policy.act(
        module, params, jax.random.key(0), jnp.asarray(obs.numpy()), jnp.asarray(mask),
        jnp.asarray(GRAPH), greedy=True,
    )  # fmt: skip
    action, log_prob, value = network.act(
        obs, torch.from_numpy(mask), torch.from_numpy(GRAPH), greedy=True
    )
    np.testing.assert_array_equal(ours.action, action.numpy())
    assert_close(ours.log_prob, log_prob)
    assert_close(ours.value, value)


@pytest.mark.parametrize(("vision", "dim", "agents"), [(1, 4, 3), (0, 3, 2), (2, 6, 5)])
def test_observations_rewards_and_ends_are_equal(vision, dim, agents):
    torch.manual_seed(1)
    batched = theirs.PredatorPrey(16, agents, dim, vision, "cpu")
    env = envs.PredatorPrey(agents, dim=dim, vision=vision)
    step, reset = jax.jit(jax.vmap(env.step)), jax.jit(jax.vmap(env.reset_from))
    keys = jax.random.split(jax.random.key(0), 16)
    running = np.ones(16, bool)
    predators, prey = batched.positions.numpy()[:, :-1], batched.positions.numpy()[:, -1:]
    state, timestep = reset(jnp.asarray(predators), jnp.asarray(prey), keys)
    seen = batched.observe()
    for _ in range(60):
        view = np.asarray(timestep.observation.agents_view)
        np.testing.assert_array_equal(view[running], seen.numpy()[running])
        action = torch.randint(5, (16, agents))
        seen, reward, done = batched.step(action)
        state, timestep = step(state, jnp.asarray(action.numpy()))
        np.testing.assert_allclose(timestep.reward[running], reward.numpy()[running])
        np.testing.assert_array_equal(timestep.last()[running], done.numpy()[running])
        running &= ~done.numpy()  # once reset, the two draw different places
    assert not running.all()


def test_the_first_loss_and_its_gradient_norm_are_equal():
    """One PPO loss on a roll-out of the PyTorch side, without dropout, on the raw graph."""
    torch.manual_seed(2)
    network, graph, ppo = reference()
    network = network.model_copy(update={"embed": 16, "dropout": 0.0})
    ppo = ppo.model_copy(update={"environments": 4, "rollout": 8})
    env = theirs.PredatorPrey(4, AGENTS, DIM, 1, "cpu")
    training = theirs.Training(env, type(reference())(network, graph, ppo))
    experience = training.collect()
    params = params_from_torch(theirs.published_state(training.network), network)
    module = CommFormer(network, AGENTS, env.num_actions)
    data = [jnp.asarray(x.numpy()) for x in experience]
    obs, mask, action, log_prob, value, advantage, returns = data

    def loss(params):
        out = policy.evaluate_actions(
            module, params["network"], obs, action, mask, params["edges"], None
        )
        batch = objectives.PPOTargets(log_prob, value, advantage, returns)
        start = objectives.value_norm_init()
        return objectives.ppo_loss(out.log_prob, out.entropy, out.value, batch, start, ppo)[0]

    ours, gradient = jax.value_and_grad(loss)(params)
    their_loss = training.loss(experience)
    assert_close(ours, their_loss)
    their_loss.backward()
    assert_close(gradient["edges"], training.network.edges.grad)
    norm = torch.stack([p.grad.norm() for p in training.lower]).norm()
    squares = jax.tree.map(lambda g: jnp.sum(g**2), gradient["network"])
    assert_close(jnp.sqrt(sum(jax.tree.leaves(squares))), norm)
