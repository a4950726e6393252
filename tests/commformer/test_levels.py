"""Which samples each level is trained on where some environments are held out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods import envs
from jaxmethods.commformer import config, method, schedule

SPLIT = config.GraphConfig(upper_data="split", unroll=1, unroll_rate=0.0, warmup_updates=100)
PPO = config.PPOConfig(environments=8, rollout=2)


def training():
    env = envs.make("predator_prey", n_predators=2, dim=2)
    return schedule.prepare(env, config.NetworkConfig(embed=4), SPLIT, PPO, 8)


def test_a_share_of_the_environments_is_held_out():
    held_out = method.held_out_samples(training())
    np.testing.assert_array_equal(held_out, np.tile(np.arange(8) >= 6, (2, 1)))


def test_the_network_gets_the_others_and_the_edges_those_held_out():
    targets = method.objectives.Minibatch(*[jnp.ones((3, 2))] * 4)
    held_out = jnp.array([True, False, True])
    samples = method.Experience(None, None, None, targets, None, held_out)
    for upper in (True, False):
        active = method.of_level(samples, upper).targets.active
        np.testing.assert_array_equal(active, np.tile((held_out == upper)[:, None], (1, 2)))


def test_the_unrolled_gradient_judges_on_what_is_held_out():
    """With a step of length 0 nothing of the other samples is left in it."""
    trained = training()
    levels = method.both_levels(trained)
    init = jax.jit(lambda key: method.init_state(trained, levels, key))
    state = init(jax.random.key(0))
    noise, key = jnp.zeros((2, 2)), jax.random.key(1)
    _, _, samples = jax.jit(lambda s: method.collect(trained, s, noise, key))(state)

    @jax.jit
    def gradient(changed):
        targets = samples.targets._replace(
            advantage=samples.targets.advantage + 3 * changed[:, None]
        )
        rest = (state.value_norm, noise, state.update, key)
        given = samples._replace(targets=targets)
        return method.unrolled_edge_gradient(trained, state.levels, given, rest)

    held_out = samples.held_out
    before = gradient(jnp.zeros(held_out.shape))
    np.testing.assert_array_equal(before, gradient(1.0 * ~held_out))
    assert (before != gradient(1.0 * held_out)).any()
