"""Which samples each level is trained on where some environments are held out."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxmethods import envs
from jaxmethods.bilevel.alternating import AlternatingState
from jaxmethods.commformer import config, experience, method, schedule

RATE = 0.1
SPLIT = config.GraphConfig(upper_data="split", unroll=1, unroll_rate=RATE, warmup_updates=100)
PPO = config.PPOConfig(environments=8, rollout=2)


def training():
    env = envs.make("predator_prey", n_predators=2, dim=2)
    return schedule.prepare(env, config.NetworkConfig(embed=4), SPLIT, PPO, 8)


def test_a_share_of_the_environments_is_held_out():
    held_out = experience.held_out_samples(training())
    np.testing.assert_array_equal(held_out, np.tile(np.arange(8) >= 6, (2, 1)))


def test_the_network_gets_the_others_and_the_edges_those_held_out():
    targets = method.objectives.PPOTargets(*[jnp.ones((3, 2))] * 4)
    held_out = jnp.array([True, False, True])
    samples = experience.Experience(None, None, None, targets, None, held_out)
    for upper in (True, False):
        active = experience.of_level(samples, upper).targets.active
        np.testing.assert_array_equal(active, np.tile((held_out == upper)[:, None], (1, 2)))


def test_the_unrolled_gradient_judges_on_what_is_held_out(monkeypatch):
    """The step is that of the network's samples, here of loss (w - m u)^2 / 2 with a mean m."""

    def loss(training, lower, upper, samples):
        targets = samples.targets
        mean = jnp.sum(targets.advantage * targets.active) / jnp.sum(targets.active)
        return 0.5 * (lower - mean * upper) ** 2, None

    monkeypatch.setattr(method, "minibatch_loss", loss)
    ones = jnp.ones((4, 2))
    advantage = jnp.array([2.0, 5.0, 4.0, 7.0])[:, None] * ones
    targets = method.objectives.PPOTargets(ones, ones, advantage, ones)
    held_out = jnp.array([False, True, False, True])
    samples = experience.Experience(None, None, None, targets, None, held_out)
    w, u, own, judged = 0.5, 2.0, 3.0, 6.0
    levels = AlternatingState(jnp.float32(w), jnp.float32(u), None, None)
    stepped = w - RATE * (w - own * u)
    expected = (stepped - judged * u) * (RATE * own - judged)
    found = method.unrolled_edge_gradient(training(), levels, samples, ())
    np.testing.assert_allclose(found, expected, rtol=1e-5)
