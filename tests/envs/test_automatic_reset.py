"""Only ended episodes are begun anew, with the values of jumanji's wrapper, for many seeds too."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jumanji.wrappers import AutoResetWrapper, VmapWrapper

from jaxmethods import envs
from tests.programs import FUSED

CASES = {
    "predator_prey": {"dim": 3, "time_limit": 5},
    "traffic_junction": {"add_rate": 0.5, "time_limit": 5},
    "connector": {"grid_size": 4, "n_agents": 3, "time_limit": 6},
    "cleaner": {"dim": 3, "n_agents": 2, "time_limit": 6},
    "level_based_foraging": {"grid_size": 5, "n_food": 1, "time_limit": 7},
    "robot_warehouse": {
        **{"shelf_rows": 1, "column_height": 1, "request_queue_size": 2},
        "time_limit": 7,
    },
    "search_and_rescue": {"n_targets": 3, "n_rays": 5, "time_limit": 6},
}
SEEDS, ENVIRONMENTS, STEPS = 2, 19, 20
# Of those that compile for long, two programs each, one is quick: its agents are adapted.
SLOW = {"cleaner", "connector", "level_based_foraging", "robot_warehouse", "search_and_rescue"}


def with_slow(names):
    return [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in names]


def numbers(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def played(env, vector, key):
    """State, time step, key and trajectory of a roll-out that takes unmasked actions at random."""

    def policy(key, observation):
        mask = observation.action_mask
        drawn = jax.random.uniform(key, mask.shape)
        return drawn if env.continuous else jnp.argmax(jnp.where(mask, drawn, -1.0), -1), ()

    begun = vector.reset(jax.random.split(key, ENVIRONMENTS))
    return envs.rollout(vector, policy, *begun, key, STEPS)


@pytest.mark.parametrize("name", with_slow(CASES))
def test_roll_outs_of_several_seeds_are_bit_for_bit_those_of_the_published_wrapper(name):
    env = envs.make(name, **CASES[name])
    keys = jax.random.split(jax.random.key(3), SEEDS)
    options = FUSED if env.continuous else None  # sums of floats, rounded alike in both
    ours, published = (
        jax.jit(jax.vmap(partial(played, env, vector)), compiler_options=options)(keys)
        for vector in (
            envs.vectorize(env, next_obs_in_extras=True),
            VmapWrapper(AutoResetWrapper(env, next_obs_in_extras=True)),
        )
    )
    assert ours[-1].last.any(-1).sum() > SEEDS
    assert jax.tree.structure(ours) == jax.tree.structure(published)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(published), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(numbers(one), numbers(other))


@pytest.mark.parametrize(
    ("name", "environments"),
    [
        *(("predator_prey", number) for number in (1, 2, 17)),
        pytest.param("connector", 17, marks=pytest.mark.slow),
    ],
)
def test_one_environment_and_numbers_that_no_block_divides(name, environments):
    """All episodes end in the same step, several blocks of them."""
    env = envs.make(name, **CASES[name] | {"time_limit": 1})
    vector = envs.vectorize(env)
    state, _ = jax.jit(vector.reset)(jax.random.split(jax.random.key(0), environments))
    idle = jnp.zeros((environments, env.num_agents), jnp.int32)
    after, timestep = jax.jit(vector.step)(state, idle)
    reached, _ = jax.jit(jax.vmap(env.step))(state, idle)
    keys = jax.vmap(lambda key: jax.random.split(key)[0])(reached.key)
    fresh, first = jax.jit(jax.vmap(env.reset))(keys)
    assert timestep.last().all()
    for one, other in zip(
        jax.tree.leaves((after, timestep.observation)),
        jax.tree.leaves((fresh, first.observation)),
        strict=True,
    ):
        np.testing.assert_array_equal(numbers(one), numbers(other))


class Counted(envs.PredatorPrey):
    """Reports every first state that is drawn."""

    drawn = 0

    def reset(self, key):
        jax.debug.callback(self.count, jax.random.key_data(key))  # once for each of mapped keys
        return super().reset(key)

    def count(self, key):
        self.drawn += 1


@pytest.mark.parametrize("seeds", [1, 3])
def test_no_first_state_is_drawn_for_an_episode_that_goes_on(seeds):
    """Of 32 environments of each seed, blocks of at most a sixteenth of them are begun anew."""
    env = Counted(n_predators=2, dim=4, time_limit=3)
    vector = envs.vectorize(env)
    keys = jax.random.split(jax.random.key(0), (seeds, 32))
    state, _ = jax.jit(jax.vmap(vector.reset))(keys)
    steps = jnp.broadcast_to(jnp.where(jnp.arange(32) == 5, 2, 0), (seeds, 32))
    state = state._replace(step_count=steps, reached=jnp.zeros_like(state.reached))
    step = jax.jit(jax.vmap(vector.step))
    stay = jnp.full((seeds, 32, 2), 4)
    drawn = []
    for _ in range(3):
        jax.effects_barrier()
        before = env.drawn
        state, timestep = jax.block_until_ready(step(state, stay))
        jax.effects_barrier()
        drawn.append((int(timestep.last().sum()), env.drawn - before))
    ended = [count for count, _ in drawn]
    assert ended == [seeds, 0, 31 * seeds]
    block = 2 * seeds
    assert [number for _, number in drawn] == [block, 0, 32 * seeds]
