"""What every environment of the registry promises."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jumanji.types import StepType

from jaxmethods import envs
from tests.programs import quick

VARIANTS = {
    "predator_prey": {
        **{"dim": 3, "n_prey": 2, "mode": "cooperative", "prey_communicate": True},
        **{"stay": False, "time_limit": 3},
    },
    "predator_capture_prey": {"dim": 3, "n_capture": 2, "time_limit": 3},
    "traffic_junction": {"add_rate": 0.5, "time_limit": 3},
    "traffic_junction-scalar": {"difficulty": "medium", "dim": 8, "vocabulary": "scalar"},
}
LIMITED = [name for name, arguments in VARIANTS.items() if "time_limit" in arguments]
ADAPTED = {
    "robot_warehouse": {"shelf_rows": 1, "column_height": 1, "request_queue_size": 2},
    "level_based_foraging": {"grid_size": 5, "n_food": 1},
    "connector": {"grid_size": 3, "n_agents": 2},
    "cleaner": {"dim": 3, "n_agents": 2, "vision": 1},
    "search_and_rescue": {"n_targets": 3, "n_rays": 5},
    "smax": {},
}
"""Adapters of published environments, which branch and scatter as they like."""
VARIANTS |= ADAPTED


@pytest.fixture(scope="module", params=quick(VARIANTS, *(VARIANTS.keys() - ADAPTED), "connector"))
def env(request):
    return build(request.param)


def build(variant):
    if variant == "smax":
        pytest.importorskip("jaxmarl")
    return envs.make(variant.split("-")[0], **VARIANTS[variant])


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_can_be_made_inside_of_jit(variant):
    longest = jax.jit(lambda: jnp.asarray(build(variant).observation_spec.step_count.maximum))()
    assert longest == build(variant).observation_spec.step_count.maximum


def test_specs_describe_steps_that_compile_once_and_do_not_branch(env):
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(env.step, n=1))
    state, first = jax.jit(env.reset)(jax.random.key(0))
    action = env.action_spec.generate_value()
    env.action_spec.validate(action)
    after, second = step(state, action)
    _, third = step(after, action + 1)
    for timestep in (first, second, third):
        env.observation_spec.validate(timestep.observation)
        env.reward_spec.validate(timestep.reward)
        env.discount_spec.validate(timestep.discount)
    chex.assert_trees_all_equal_shapes_and_dtypes(first, second)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert first.observation.agents_view.shape == (env.num_agents, env.observation_size)
    assert first.observation.action_mask.shape == (env.num_agents, env.num_actions)
    assert first.step_type == StepType.FIRST
    assert first.extras["success"].shape == ()
    program = str(jax.make_jaxpr(env.step)(state, action))
    adapted = isinstance(env, envs.adapters.Adapted | envs.Smax)
    forbidden = ("callback",) if adapted else ("cond", "while", "scatter", "callback")
    assert not any(f" {name}[" in program for name in forbidden)


@pytest.mark.parametrize("variant", LIMITED)
def test_the_time_limit_truncates_and_automatic_reset_starts_anew(variant):
    env = build(variant)
    vector = envs.vectorize(env)
    state, timestep = jax.jit(vector.reset)(jax.random.split(jax.random.key(0), 8))
    step, stay = jax.jit(vector.step), jnp.full((8, env.num_agents), env.num_actions - 1)
    begun = state
    for count in (1, 2, 0):
        state, timestep = step(state, stay)
        np.testing.assert_array_equal(timestep.last(), count == 0)
        np.testing.assert_array_equal(timestep.discount, 1.0)
        np.testing.assert_array_equal(timestep.observation.step_count, count)
    assert np.all(jax.random.key_data(state.key) != jax.random.key_data(begun.key))


def test_viewers_are_built_when_something_is_drawn(env):
    fresh = type(env)()
    fresh.close()
    assert "viewer" not in vars(fresh)


def test_the_batched_reset_equals_one_environment_at_a_time():
    env, keys = envs.make("predator_capture_prey"), jax.random.split(jax.random.key(0), 1000)
    together = jax.jit(jax.vmap(env.reset))(keys)
    chex.assert_trees_all_equal(jax.jit(partial(jax.lax.map, env.reset))(keys), together)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(envs.make, "predator_pray"), "did you mean 'predator_prey'"),
        (partial(envs.make, "predator_prey", visions=1), "argument 'visions' .*'vision'"),
        (partial(envs.make, "traffic_junction", preset="heavy"), "preset must be one of .*'heavy'"),
        (partial(envs.make, "predator_prey", dim=0), "dim must be"),
    ],
)
def test_the_registry_names_the_nearest_right_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_registry_passes_presets_and_arguments_on():
    env = envs.make("predator_prey", preset="medium", vision=2)
    assert (env.n_predators, env.dim, env.vision) == (5, 10, 2)


@pytest.mark.parametrize("name", envs.ENVIRONMENTS)
def test_every_preset_can_be_built(name):
    if name == "smax":
        pytest.importorskip("jaxmarl")
    for preset in envs.ENVIRONMENTS[name].presets:
        env = envs.make(name, preset=preset)
        if name in ADAPTED:
            assert env.time_limit == env.episode_cap
        else:
            assert env.time_limit is None
            assert env.episode_cap in (20, 40, 80)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in envs.ENVIRONMENTS if name != "smax"])
def test_steps_of_an_endless_episode_are_counted_up_to_the_largest_int32(name):
    """A count that went on from -2^31 would be no observation."""
    env = envs.make(name, **VARIANTS.get(name, {}) | {"time_limit": None})
    state, _ = jax.jit(env.reset)(jax.random.key(0))
    largest = np.iinfo(np.int32).max
    state = state._replace(step_count=jnp.int32(largest - 1))
    step = jax.jit(env.step)
    for _ in range(2):
        state, timestep = step(state, env.action_spec.generate_value())
        assert timestep.observation.step_count == largest
        env.observation_spec.validate(timestep.observation)
