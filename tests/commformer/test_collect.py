"""What a roll-out hands to training, against its definition entry by entry.

The scripted episodes hold every kind of end: terminated as a whole, cut by a time limit, and over
for one agent while the others go on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jumanji.types import StepType, TimeStep

from jaxmethods.commformer import config, experience, method, objectives, policy, schedule
from jaxmethods.commformer.evaluate import evaluate
from jaxmethods.envs import TeamEnvironment
from tests.programs import quick

N, R, T = 2, 6, 7
PPO = config.PPOConfig(environments=R, rollout=T, discount=0.9, gae_lambda=0.7)


class State(NamedTuple):
    key: Any
    count: Any
    kind: Any
    """0: terminates after three steps; 1: is cut after four, the second agent dies in step two."""


class Scripted(TeamEnvironment):
    """Ends at fixed times; rewards and views are those of a random table."""

    presets = {}  # noqa: RUF012
    episode_cap = 4

    def __init__(self) -> None:
        super().__init__(
            num_agents=N, num_actions=2, observation_size=3, view_bounds=(-9, 9),
            view_dtype=jnp.float32, time_limit=None, viewer=None,
        )  # fmt: skip

    def make_viewer(self) -> Any:
        raise NotImplementedError

    def reset(self, key):
        state = State(key, jnp.int32(0), jax.random.bernoulli(key).astype(jnp.int32))
        alive = jnp.ones(N, bool)
        return state, self._first(self.view(state), {"alive": alive})

    def view(self, state):
        place = jax.random.fold_in(jax.random.key(7), 10 * state.kind + state.count)
        return self._observation(jax.random.normal(place, (N, 3)), state.count)

    def step(self, state, action):
        state = state._replace(count=state.count + 1)
        cut, over = (state.kind == 1), (state.kind == 0) & (state.count == 3)
        alive = jnp.array([True, True]) & ~(cut & (state.count >= 2) & (jnp.arange(N) == 1))
        last = over | (state.count == 4)
        place = jax.random.fold_in(jax.random.key(8), 10 * state.kind + state.count)
        timestep = TimeStep(
            step_type=jnp.where(last, StepType.LAST, StepType.MID),
            reward=jnp.where(alive, jax.random.normal(place, (N,)), -1.0),
            discount=jnp.where(over | ~alive, 0.0, 1.0),
            observation=self.view(state),
            extras={"alive": alive},
        )
        return state, timestep


def collected(bootstrap):
    """The trajectory, the samples [T, R, N], and values of what was seen [T + 1] and reached."""
    ppo = PPO.model_copy(update={"bootstrap_truncated": bootstrap})
    network = config.NetworkConfig(model="ippo", embed=4)
    env = Scripted()
    training = schedule.prepare(env, network, config.GraphConfig(), ppo, 3)
    state = method.trainer(env, network, config.GraphConfig(), ppo, 3).init(jax.random.key(3), None)
    returns = jnp.array([-1.0, 3.0])
    value_norm = objectives.value_norm_update(objectives.value_norm_init(), returns)
    state = state._replace(value_norm=value_norm)

    @jax.jit
    def run(state):
        after, trajectory, samples = experience.collect(
            training, state, jnp.zeros((N, N)), jax.random.key(1)
        )
        targets = jax.tree.map(
            lambda leaf: jnp.swapaxes(leaf.reshape(R, T, N), 0, 1), samples.targets
        )

        def value(view):
            encoded = training.network.apply(
                state.levels.lower, view, jnp.ones((N, N)), method="encode"
            )
            return objectives.value_norm_denormalize(state.value_norm, encoded.value)

        seen = [*trajectory.observation.agents_view, after.timestep.observation.agents_view]
        values = jnp.stack([value(view) for view in seen])
        reached = trajectory.extras.get("next_obs")
        reached = None if reached is None else value(reached.agents_view.reshape(-1, N, 3))
        return trajectory, targets, values, reached

    trajectory, targets, values, reached = jax.device_get(run(state))
    return trajectory, targets, values, None if reached is None else reached.reshape(T, R, N)


def advantages_of(trajectory, values, reached):
    """A_t = delta_t + gamma lambda A_{t+1}, where nothing crosses the end of an agent's return."""
    found = np.zeros((T + 1, R, N))
    for t in reversed(range(T)):
        for r, n in np.ndindex(R, N):
            goes_on = bool(trajectory.discount[t, r, n])
            last = bool(trajectory.last[t, r])
            following = values[t + 1, r, n] if goes_on and not last else 0.0
            if goes_on and last and reached is not None:
                following = reached[t, r, n]
            found[t, r, n] = trajectory.reward[t, r, n] + 0.9 * following - values[t, r, n]
            if goes_on and not last:
                found[t, r, n] += 0.9 * 0.7 * found[t + 1, r, n]
    return found[:T]


@pytest.mark.parametrize("bootstrap", quick([True, False], True))
def test_targets_are_those_of_the_definition(bootstrap):
    trajectory, targets, values, reached = collected(bootstrap)
    terminated = trajectory.last & (trajectory.discount == 0).all(-1)
    cut = trajectory.last & (trajectory.discount[..., 0] == 1)
    assert terminated.any()
    assert cut.any()
    assert (trajectory.discount[..., 1] < trajectory.discount[..., 0]).any()
    assert (reached is not None) == bootstrap
    advantages = advantages_of(trajectory, values, reached)
    np.testing.assert_allclose(targets.returns, advantages + values[:T], atol=1e-5)
    # An agent takes part in a step if it was alive before it, at an episode's beginning always.
    alive = np.ones((T, R, N), bool)
    alive[1:] = trajectory.extras["alive"][:-1] | trajectory.last[:-1, :, None]
    np.testing.assert_array_equal(targets.active, alive)
    assert not alive.all()
    own = advantages[alive]
    np.testing.assert_allclose(
        targets.advantage[alive], (own - own.mean()) / (own.std() + 1e-5), atol=1e-4
    )


@pytest.mark.slow
def test_self_edges_carry_no_message_and_are_not_counted_as_used():
    env = Scripted()
    network = policy.make_network(config.NetworkConfig(embed=4), N, 2)
    view = env.reset(jax.random.key(0))[1].observation.agents_view
    params = jax.jit(policy.init, static_argnums=0)(network, jax.random.key(0), view[None])
    graph = jnp.array([[1.0, 1.0], [0.0, 1.0]])
    metrics = evaluate(env, network, params, graph, jax.random.key(1), 3, 4)
    assert metrics["edges_used"] == 1
    assert metrics["messages_per_step"] == 1
