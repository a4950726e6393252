"""Pendulum's physics, episodes' returns, generated data, and brax behind the same interface."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jumanji.types import StepType

from jaxmethods.data.generated import mixed_quality
from jaxmethods.envs.control.episodes import (
    CONTROL,
    episode_returns,
    make_control,
    record_episodes,
)
from jaxmethods.envs.control.pendulum import Pendulum, State, swing_up


def at(angle: float, velocity: float = 0.0) -> State:
    zero = jnp.zeros((), jnp.int32)
    return State(jnp.float32(angle), jnp.float32(velocity), zero, jax.random.key(0))


@pytest.mark.parametrize("name", CONTROL)
def test_it_can_be_made_inside_of_jit(name):
    lowest = jax.jit(lambda: jnp.asarray(make_control(name).action_spec.minimum))()
    np.testing.assert_array_equal(lowest, make_control(name).action_spec.minimum)


def test_upright_at_rest_is_paid_one_and_hanging_almost_nothing():
    env = Pendulum()
    assert float(env.step(at(0.0), jnp.zeros(1))[1].reward) == 1.0
    reward = float(env.step(at(-np.pi), jnp.zeros(1))[1].reward)
    np.testing.assert_allclose(reward, 1 - np.pi**2 / (np.pi**2 + 6.4 + 0.004), rtol=1e-5)


def test_one_step_is_that_of_the_equations():
    after, _ = Pendulum().step(at(0.5, 1.0), jnp.array([0.25]))
    velocity = 1.0 + 0.05 * (15 * np.sin(0.5) + 3 * 0.5)
    np.testing.assert_allclose(after.velocity, velocity, rtol=1e-5)
    np.testing.assert_allclose(after.angle, 0.5 + 0.05 * velocity, rtol=1e-5)


def test_full_torque_cannot_lift_the_rod_past_the_side():
    """15 sin(angle) exceeds 3 * 2 N m beyond sin(angle) = 0.4."""
    after, _ = Pendulum().step(at(np.pi / 2), jnp.array([-1.0]))
    assert float(after.velocity) > 0.0


def test_returns_add_up_the_rewards_of_whole_episodes():
    env = make_control("pendulum", time_limit=7)

    def act(key, observation):
        return swing_up(observation)

    taken = record_episodes(env, act, jax.random.key(1), 3)
    assert taken.reward.shape == (3, 7)
    np.testing.assert_array_equal(taken.timeout, [[False] * 6 + [True]] * 3)
    np.testing.assert_allclose(
        episode_returns(env, act, jax.random.key(1), 3), taken.reward.sum(1), rtol=1e-5
    )


def test_the_controller_swings_up_from_anywhere():
    env = make_control("pendulum")
    returns = jax.jit(lambda key: episode_returns(env, lambda k, o: swing_up(o), key, 64))(
        jax.random.key(0)
    )
    assert float(returns.min()) > 165


def test_generated_data_are_whole_episodes_of_every_quality_and_reproducible():
    env = make_control("pendulum", time_limit=20)
    flat = mixed_quality(env, swing_up, jax.random.key(0), 2)
    assert len(flat.rewards) == 7 * 2 * 20
    np.testing.assert_array_equal(np.flatnonzero(flat.timeouts), np.arange(19, 280, 20))
    assert not flat.terminals.any()
    inside = ~flat.timeouts[:-1]
    np.testing.assert_array_equal(
        flat.next_observations[:-1][inside], flat.observations[1:][inside]
    )
    again = mixed_quality(env, swing_up, jax.random.key(0), 2)
    np.testing.assert_array_equal(flat.actions, again.actions)


class Balance(Pendulum):
    """Pays 1 a step until the velocity leaves bounds, which NaN never does."""

    def step(self, state, action):
        after, timestep = super().step(state, action)
        fallen = jnp.abs(after.velocity) > 7.0
        step_type = jnp.where(fallen, StepType.LAST, timestep.step_type)
        return after, timestep.replace(step_type=step_type, reward=jnp.ones(()))


def test_an_action_that_is_not_finite_fails_its_episode_and_no_other():
    env = Balance(time_limit=5)

    def act(key, observation):
        bad = jnp.array([0.0, jnp.nan, jnp.inf, -jnp.inf])
        return bad[:, None]

    returns = jax.jit(lambda key: episode_returns(env, act, key, 4))(jax.random.key(0))
    np.testing.assert_array_equal(returns, [5.0, np.nan, np.nan, np.nan])


@pytest.mark.parametrize("broken", ["observation", "reward"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_a_simulator_makes_of_an_episode_must_be_finite(broken, value):
    class Breaks(Balance):
        def step(self, state, action):
            after, timestep = super().step(state, action)
            whole = getattr(timestep, broken)
            wrong = jnp.where(after.step_count == 2, value, whole)
            return after, timestep.replace(**{broken: wrong})

    def act(key, observation):
        return jnp.zeros((len(observation), 1))

    for env, expected in ((Breaks(time_limit=4), np.nan), (Breaks(time_limit=1), 1.0)):
        play = jax.jit(partial(episode_returns, env, act, episodes=2))
        np.testing.assert_array_equal(play(jax.random.key(0)), [expected] * 2)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("pendulm", {}, "did you mean 'pendulum'"),
        ("pendulum", {"time_limits": 3}, "did you mean 'time_limit'"),
        ("pendulum", {"time_limit": 0}, "time_limit must be an integer >= 1"),
    ],
)
def test_wrong_names_and_values_are_refused_in_one_line(name, arguments, expected):
    with pytest.raises(ValueError, match=expected):
        make_control(name, **arguments)


@pytest.mark.slow
def test_brax_counts_steps_and_pays_its_own_rewards_but_none_to_nan():
    """An inverted pendulum is paid 1 a step and doesn't fall within 3.

    Comparisons with NaN are false, so that brax never says of one of NaN that it fell.
    """
    pytest.importorskip("brax")
    from jaxmethods.envs.adapters.brax_control import BraxControl

    env = BraxControl("inverted_pendulum", time_limit=3, backend="spring")

    def act(key, observation):
        return jnp.array([[0.0], [jnp.nan], [0.0]])

    returns = jax.jit(lambda key: episode_returns(env, act, key, 3))(jax.random.key(0))
    np.testing.assert_allclose(returns, [3.0, np.nan, 3.0])
    with pytest.raises(ValueError, match=r"inverted_pendulum: .*'timelimit'"):
        make_control("brax:inverted_pendulum", timelimit=3)
