"""Point mass, arm and linear systems: their equations, and controllers that master them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.data.generated import QUALITIES, mixed_quality
from jaxmethods.envs.control import arm, linear, point_mass
from jaxmethods.envs.control.episodes import CONTROLLERS, episode_returns, make_control
from jaxmethods.offline_rl.scores import REFERENCE


def zero():
    return jnp.zeros((), jnp.int32)


def test_a_puck_obeys_force_and_drag_and_stops_at_walls():
    env = point_mass.PointMass()
    state = point_mass.State(
        jnp.array([0.5, 1.99]),
        jnp.array([1.0, 2.0]),
        jnp.array([0.5, 1.0]),
        zero(),
        jax.random.key(0),
    )
    after, timestep = env.step(state, jnp.array([-0.5, 2.0]))
    speed = 1.0 + 0.1 * (-0.5 - 0.3)
    np.testing.assert_allclose(after.velocity, [speed, 0.0], rtol=1e-6)
    np.testing.assert_allclose(after.position, [0.5 + 0.1 * speed, 2.0], rtol=1e-6)
    np.testing.assert_allclose(timestep.reward, 1 / (1 + 4 * 0.99) - 0.01 * 1.25, rtol=1e-5)
    np.testing.assert_allclose(timestep.observation[4:], state.goal - after.position, rtol=1e-6)


def test_an_arm_ends_where_its_links_lead():
    ends = arm.joints(jnp.array([0.0, np.pi / 2, -np.pi / 2]))
    np.testing.assert_allclose(ends, [[0.5, 0.0], [0.5, 0.35], [0.75, 0.35]], atol=1e-6)


def test_torques_turn_the_tip_towards_the_target():
    """The controller's pull is the transposed Jacobian of the tip."""
    angles, target = jnp.array([0.3, -0.4, 0.9]), jnp.array([0.2, 0.9])
    state = arm.State(angles, jnp.zeros(3), target, zero(), jax.random.key(0))
    _, timestep = arm.Arm().step(state._replace(velocities=jnp.zeros(3)), jnp.zeros(3))
    jacobian = jax.jacobian(lambda a: arm.joints(a)[-1])(angles)
    pull = 6.0 * jacobian.T @ (target - arm.joints(angles)[-1])
    found = arm.reach(timestep.observation)
    np.testing.assert_allclose(found, jnp.clip(pull, -1.0, 1.0), atol=1e-5)


def test_a_linear_system_follows_its_matrices_and_is_the_same_for_the_same_numbers():
    env = make_control("linear", states=4, actions=2)
    state = linear.State(jnp.array([1.0, -1.0, 0.5, 0.0]), zero(), jax.random.key(0))
    after, timestep = env.step(state, jnp.array([0.5, -3.0]))
    expected = env.dynamics @ state.place + env.inputs @ jnp.array([0.5, -1.0])
    np.testing.assert_allclose(after.place, expected, rtol=1e-6)
    assert float(timestep.reward) == -2.25
    np.testing.assert_array_equal(
        env.dynamics, make_control("linear", states=4, actions=2).dynamics
    )
    assert np.any(env.dynamics != make_control("linear", states=4, actions=2, number=1).dynamics)


def test_the_regulator_solves_the_riccati_equation():
    env = make_control("linear", states=3, actions=1)
    gain = -np.asarray(linear.regulator(env)(1e-3 * jnp.eye(3))).T / 1e-3  # [A, S]
    a, b = np.asarray(env.dynamics, float), np.asarray(env.inputs, float)
    closed = a - b @ gain
    value = np.eye(3)
    for _ in range(2000):
        value = np.eye(3) + 0.1 * gain.T @ gain + closed.T @ value @ closed
    best = np.linalg.solve(0.1 * np.eye(1) + b.T @ value @ b, b.T @ value @ a)
    np.testing.assert_allclose(gain, best, rtol=1e-3)


@pytest.mark.parametrize("name", ["arm", "point_mass"])
def test_controllers_score_a_hundred(name):
    env = make_control(name)
    controller = CONTROLLERS[name](env)
    play = jax.jit(lambda key: episode_returns(env, lambda k, o: controller(o), key, 64))
    low, high = REFERENCE[name]
    score = 100 * (float(play(jax.random.key(1)).mean()) - low) / (high - low)
    assert 93 < score < 107


@pytest.mark.slow
def test_better_mixtures_are_better():
    env = make_control("point_mass", time_limit=30)
    controller = CONTROLLERS["point_mass"](env)
    means = {
        quality: mixed_quality(env, controller, jax.random.key(0), 4, quality).rewards.mean()
        for quality in ("random", "medium", "expert")
    }
    assert means["random"] < means["medium"] < means["expert"]
    whole = mixed_quality(env, controller, jax.random.key(0), 4)
    assert len(whole.rewards) == len(QUALITIES["mixed"]) * 4 * 30
