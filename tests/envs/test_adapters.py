"""Adapted environments show, pay and end what the environments that they wrap do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jumanji.environments.routing import cleaner, connector, lbf, robot_warehouse
from jumanji.environments.routing.cleaner.generator import RandomGenerator as Mazes
from jumanji.environments.routing.connector.generator import RandomWalkGenerator as Boards
from jumanji.environments.routing.lbf.generator import RandomGenerator as Fields
from jumanji.environments.routing.lbf.types import Agent, Food
from jumanji.environments.routing.robot_warehouse.constants import _SHELVES as SHELVES
from jumanji.environments.routing.robot_warehouse.generator import RandomGenerator as Warehouses
from jumanji.environments.swarms import search_and_rescue
from jumanji.environments.swarms.common.types import AgentState
from jumanji.environments.swarms.search_and_rescue.generator import RandomGenerator as Squares
from jumanji.environments.swarms.search_and_rescue.observations import AgentAndTargetObservationFn
from jumanji.environments.swarms.search_and_rescue.types import TargetState
from PIL import Image

from jaxmethods import envs
from jaxmethods.envs.adapters import State
from jaxmethods.errors import MissingExtraError

STEPS, EPISODES, LIMIT = 10, 6, 9


def rays(count, contact):
    return AgentAndTargetObservationFn(count, 0.4, 0.3, 0.4, contact, 1.0)


class Case(NamedTuple):
    """An adapted environment, what builds it by hand, and what agents see of the latter."""

    name: str
    arguments: dict[str, Any]
    published: Callable[[], Any]
    view: Any


def given(state, observation, arguments):
    """The published view."""
    del state, arguments
    return observation.agents_view


def connector_view(state, observation, arguments):
    """The five channels, cell by cell."""
    del observation
    size, crop = arguments["grid_size"], arguments.get("crop")
    views = []
    for agent, (row, column) in enumerate(state.agents.position):
        rows = range(size) if crop is None else range(row - crop, row + crop + 1)
        columns = range(size) if crop is None else range(column - crop, column + crop + 1)
        view = []
        for y in rows:
            for x in columns:
                inside = 0 <= y < size and 0 <= x < size
                number = state.grid[y, x] if inside else 1
                head, target = 2 + 3 * agent, 3 + 3 * agent
                others = number if number not in (head, target) else 0
                is_head, is_target = others % 3 == 2, others > 0 and others % 3 == 0
                view += [is_head, is_target, number % 3 == 1, number == head, number == target]
        views.append(view)
    return np.array(views)


def cleaner_view(state, observation, arguments):
    """The window, cell by cell; 0 is dirty and 2 a wall."""
    del observation
    dim, vision = arguments["dim"], arguments["vision"]
    places = state.agents_locations.tolist()
    views = []
    for row, column in places:
        view = []
        for y in range(row - vision, row + vision + 1):
            for x in range(column - vision, column + vision + 1):
                tile = state.grid[y, x] if 0 <= y < dim and 0 <= x < dim else 2
                view += [tile == 0, tile == 2, places.count([y, x])]
        views.append([*view, row / dim, column / dim])
    return np.array(views, np.float32)


def search_view(state, observation, arguments):
    """Rays, position, what is left."""
    del state, arguments
    flat = observation.searcher_views.reshape(len(observation.positions), -1)
    left = np.full((len(flat), 1), observation.targets_remaining)
    return np.concatenate([flat, observation.positions, left], axis=1)


CASES = {
    "robot_warehouse": Case(
        "robot_warehouse",
        {
            **{"shelf_rows": 1, "shelf_columns": 3, "column_height": 1, "n_agents": 3},
            **{"request_queue_size": 2, "time_limit": LIMIT},
        },
        lambda: robot_warehouse.RobotWarehouse(Warehouses(1, 3, 1, 3, 1, 2), time_limit=LIMIT),
        given,
    ),
    "level_based_foraging": Case(
        "level_based_foraging",
        {
            **{"grid_size": 5, "fov": 2, "n_food": 1, "force_coop": False},
            **{"reward": "individual", "time_limit": LIMIT},
        },
        lambda: lbf.LevelBasedForaging(Fields(5, 2, 1, 2, 2), time_limit=LIMIT),
        given,
    ),
    "connector": Case(
        "connector",
        {"grid_size": 4, "n_agents": 3, "crop": 1, "time_limit": LIMIT},
        lambda: connector.Connector(Boards(4, 3), time_limit=LIMIT),
        connector_view,
    ),
    "connector-whole": Case(
        "connector",
        {"grid_size": 3, "n_agents": 2, "reward": "individual", "time_limit": LIMIT},
        lambda: connector.Connector(Boards(3, 2), time_limit=LIMIT),
        connector_view,
    ),
    "cleaner": Case(
        "cleaner",
        {"dim": 3, "n_agents": 2, "vision": 1, "time_limit": LIMIT},
        lambda: cleaner.Cleaner(Mazes(3, 3, 2), time_limit=LIMIT),
        cleaner_view,
    ),
    "search_and_rescue": Case(
        "search_and_rescue",
        {
            **{"n_searchers": 2, "n_targets": 3, "n_rays": 5, "target_range": 0.3},
            **{"contact_range": 0.3, "reward": "individual", "time_limit": LIMIT},
        },
        lambda: search_and_rescue.SearchAndRescue(
            0.3, time_limit=LIMIT, generator=Squares(2, 3), observation=rays(5, 0.3)
        ),
        search_view,
    ),
}


def random_actions(env, key, mask):
    """[..., N] of the unmasked actions, or [..., N, A] beyond [-1, 1] on both sides."""
    if env.continuous:
        return jax.random.uniform(key, mask.shape, minval=-3.0, maxval=3.0)
    return jnp.argmax(jnp.where(mask, jax.random.uniform(key, mask.shape), -1.0), axis=-1)


class Played(NamedTuple):
    """T steps of E episodes, [E, T, ...], taken in both environments from the same states."""

    env: Any
    case: Case
    states: Any
    timesteps: Any
    published_states: Any
    published: Callable[[], Any]


@pytest.fixture(scope="module", params=CASES)
def played(request):
    """Random play by the mask, beyond the end of the episode and the time limit."""
    case = CASES[request.param]
    env, published_env = envs.make(case.name, **case.arguments), case.published()

    def play(key):
        def step(carry, key):
            state, mask = carry
            action = random_actions(env, key, mask)
            after, timestep = env.step(state, action)
            published = published_env.step(state.wrapped, action)
            taken = (after, timestep, *published)
            return (after, timestep.observation.action_mask), jax.tree.map(numbers, taken)

        state, timestep = env.reset(key)
        carry = (state, timestep.observation.action_mask)
        return jax.lax.scan(step, carry, jax.random.split(key, STEPS))[1]

    outcome = jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(0), EPISODES))
    return Played(env, case, *jax.tree.map(np.asarray, outcome))


def numbers(leaf):
    """Keys as numbers, anything else as it is."""
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def at(tree, episode, step):
    return jax.tree.map(lambda leaf: leaf[episode, step], tree)


@pytest.mark.slow
def test_states_and_masks_are_those_of_the_published_environment(played):
    chex.assert_trees_all_equal(played.states.wrapped, played.published_states)
    mask = played.timesteps.observation.action_mask
    if played.env.continuous:
        assert mask.all()
    else:
        np.testing.assert_array_equal(mask, played.published.observation.action_mask)


@pytest.mark.slow
def test_agents_see_what_the_published_observation_and_state_say(played):
    views = played.timesteps.observation.agents_view
    for episode in range(EPISODES):
        for step in (0, 1, STEPS - 1):
            state, timestep = (
                at(tree, episode, step) for tree in (played.published_states, played.published)
            )
            expected = played.case.view(state, timestep.observation, played.case.arguments)
            np.testing.assert_allclose(views[episode, step], expected, rtol=1e-6)
    steps = np.broadcast_to(np.arange(1, STEPS + 1), views.shape[:2])
    np.testing.assert_array_equal(played.timesteps.observation.step_count, steps)


def test_rewards_are_the_published_ones_and_the_team_reward_is_their_sum(played):
    reward, published = played.timesteps.reward, played.published.reward
    assert np.any(published != 0) or played.case.name == "robot_warehouse"
    published = published.reshape(EPISODES, STEPS, -1)
    if played.case.arguments.get("reward") != "individual":
        published = np.broadcast_to(published.sum(-1, keepdims=True), reward.shape)
    np.testing.assert_allclose(reward, published, rtol=1e-6)


def test_episodes_end_where_the_published_ones_do_with_discount_one_if_truncated(played):
    last, discount = played.timesteps.step_type == 2, played.timesteps.discount
    np.testing.assert_array_equal(last, played.published.step_type == 2)
    assert last[:, LIMIT - 1].all()
    np.testing.assert_array_equal(discount[~last], 1.0)
    first, episodes = np.argmax(last, axis=1), np.arange(EPISODES)
    ends = discount[episodes, first]  # [E, N]
    cut = first == LIMIT - 1
    assert not ends[~cut].any()
    assert (ends[cut] == ends[cut, :1]).all()
    if played.case.name in ("level_based_foraging", "connector"):  # They know truncation.
        expected = played.published.discount[episodes, first].max(-1)
        np.testing.assert_array_equal(ends[:, 0], expected)
    else:
        success = played.timesteps.extras["success"][episodes, first]
        np.testing.assert_array_equal(ends[cut & ~success], 1.0)


TASKS = {
    "level_based_foraging": lambda state: state.food_items.eaten.all(-1),
    "connector": lambda state: (state.agents.position == state.agents.target).all((-2, -1)),
    "cleaner": lambda state: ~(state.grid == 0).any((-2, -1)),
    "search_and_rescue": lambda state: state.targets.found.all(-1),
}


def test_an_episode_is_a_success_once_the_task_is_done(played):
    if played.case.name == "robot_warehouse":
        expected = np.cumsum(played.published.reward, axis=1) > 0
    else:
        done = TASKS[played.case.name](played.published_states)
        expected = np.logical_or.accumulate(done, axis=1)
    np.testing.assert_array_equal(played.timesteps.extras["success"], expected)


@pytest.mark.slow
def test_a_delivery_makes_the_whole_episode_in_the_warehouse_a_success():
    env = envs.make("robot_warehouse", **CASES["robot_warehouse"].arguments)
    column, row = env.wrapped.goals[0]

    @jax.jit
    def deliver(key):
        state, _ = env.reset(key)
        wrapped = state.wrapped
        grid = wrapped.grid.at[SHELVES, row, column].set(wrapped.request_queue[0] + 1)
        rest = jnp.zeros((2, env.num_agents), jnp.int32)
        return jax.lax.scan(env.step, state._replace(wrapped=wrapped.replace(grid=grid)), rest)[1]

    timesteps = deliver(jax.random.key(0))
    np.testing.assert_array_equal(timesteps.reward, [[1.0] * 3, [0.0] * 3])
    np.testing.assert_array_equal(timesteps.extras["success"], [True, True])


@pytest.mark.parametrize("name", ["cleaner", "level_based_foraging", "search_and_rescue"])
def test_a_state_keeps_its_types_with_float64_switched_on(name):
    with jax.enable_x64(True):
        env = envs.make(name)
        shape = (env.num_agents, env.num_actions) if env.continuous else (env.num_agents,)
        action = jax.ShapeDtypeStruct(shape, env.action_spec.dtype)
        state, _ = jax.eval_shape(env.reset, jax.random.key(0))
        after, _ = jax.eval_shape(env.step, state, action)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)


def test_foragers_see_nothing_beyond_their_field_of_view():
    env = envs.make("level_based_foraging", grid_size=7, fov=2, n_food=1)
    ids, still = jnp.arange(2), jnp.zeros(2, bool)
    places, levels = jnp.array([[2, 2], [2, 5]]), jnp.array([1, 2])
    agents = Agent(id=ids, position=places, level=levels, loading=still)
    place = jnp.array([[4, 2]])
    food = Food(id=ids[:1], position=place, level=jnp.array([3]), eaten=still[:1])
    count = jnp.zeros((), jnp.int32)
    key = jax.random.key(0)
    field = lbf.types.State(agents=agents, food_items=food, step_count=count, key=key)
    _, timestep = jax.jit(env.step)(State(field, still[0], count), jnp.zeros(2, jnp.int32))
    first, second = timestep.observation.agents_view
    food, itself, other = slice(0, 3), slice(3, 6), slice(6, 9)
    np.testing.assert_array_equal(first[food], [4, 2, 3])
    np.testing.assert_array_equal(second[food], [-1, -1, 0])
    np.testing.assert_array_equal((first[itself][2], second[itself][2]), (1, 2))
    np.testing.assert_array_equal([first[other], second[other]], [[-1, -1, 0]] * 2)


def test_continuous_actions_are_clipped_to_one():
    env = envs.make("search_and_rescue", **CASES["search_and_rescue"].arguments)
    env.action_spec.validate(jnp.full((2, 2), -1.0))
    assert (env.num_actions, env.action_spec.dtype) == (2, jnp.float32)
    searchers = AgentState(pos=jnp.full((2, 2), 0.5), heading=jnp.zeros(2), speed=jnp.full(2, 0.01))
    targets = TargetState(pos=jnp.zeros((3, 2)), vel=jnp.zeros((3, 2)), found=jnp.zeros(3, bool))
    count = jnp.zeros((), jnp.int32)
    wrapped = search_and_rescue.types.State(
        searchers=searchers, targets=targets, key=jax.random.key(0), step=count
    )
    far, near = jnp.array([[5.0, -3.0], [-1.5, 9.0]]), jnp.array([[1.0, -1.0], [-1.0, 1.0]])
    step = jax.jit(jax.vmap(env.step, in_axes=(None, 0)))
    state, _ = step(State(wrapped, count > 0, count), jnp.stack([far, near, 0.5 * near]))
    for steered in (state.wrapped.searchers.heading, state.wrapped.searchers.speed):
        np.testing.assert_array_equal(steered[0], steered[1])
        assert np.all(steered[1] != steered[2])


def test_without_a_time_limit_rewards_do_not_fall():
    arguments = CASES["search_and_rescue"].arguments | {"time_limit": None, "reward": "team"}
    env = envs.make("search_and_rescue", **arguments)
    assert env.wrapped._reward_fn(jnp.ones((2, 3), bool), 1000, env.wrapped.time_limit).sum() == 3


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["cleaner", "search_and_rescue"])
def test_masked_random_play_goes_through_roll_outs_and_evaluation(variant):
    case = CASES[variant]
    env = envs.make(case.name, **{k: v for k, v in case.arguments.items() if k != "reward"})

    def policy(key, observation):
        return random_actions(env, key, observation.action_mask), {}

    @jax.jit
    def play(key):
        vector = envs.vectorize(env, next_obs_in_extras=True)
        state, timestep = vector.reset(jax.random.split(key, 3))
        trajectory = envs.rollout(vector, policy, state, timestep, key, length=12)[-1]
        return trajectory, envs.play_episodes(env, policy, key, episodes=4, max_steps=LIMIT)

    trajectory, results = play(jax.random.key(0))
    shape = (12, 3, env.num_agents)
    assert trajectory.reward.shape == trajectory.discount.shape == shape
    assert trajectory.action.shape == shape + (2,) * env.continuous
    np.testing.assert_array_equal(
        trajectory.reward, trajectory.reward[..., :1].repeat(shape[2], -1)
    )
    steps, last = np.asarray(trajectory.observation.step_count), np.asarray(trajectory.last)
    assert last.any()
    np.testing.assert_array_equal(steps[1:] == 0, last[:-1])
    np.testing.assert_array_equal(trajectory.extras["next_obs"].step_count, steps + 1)
    if not env.continuous:
        mask = np.asarray(trajectory.observation.action_mask)
        assert np.take_along_axis(mask, np.asarray(trajectory.action)[..., None], -1).all()
    lengths = np.asarray(results.length)
    assert ((lengths > 0) & (lengths <= LIMIT)).all()
    assert results.success[lengths < LIMIT].all()


WRONG = {
    "robot_warehouse": [
        ({"shelf_columns": 4}, "shelf_columns must be odd, got 4"),
        ({"request_queue_size": 500}, "request_queue_size must be less than the 80 shelves"),
        ({"n_agents": 0}, r"n_agents must be in \[1, 200\], got 0"),
    ],
    "level_based_foraging": [
        ({"fov": 9}, r"fov must be in \[1, 8\], got 9"),
        ({"grid_size": 5, "n_food": 2}, "grid_size must leave more than 5 n_food"),
        ({"reward": "shared"}, "reward must be one of team, individual, got 'shared'"),
        ({"penalty": -1}, "penalty must be a number >= 0, got -1"),
    ],
    "connector": [
        ({"n_agents": 6, "grid_size": 3}, r"n_agents must be in \[1, 4\], got 6"),
        ({"crop": -1}, "crop must be an integer >= 0, got -1"),
        ({"corp": 2}, "unknown argument 'corp' .*'crop'"),
    ],
    "cleaner": [
        ({"dim": 1}, r"dim must be in \[2, 180\], got 1"),
        ({"time_limit": 0}, "time_limit must be an integer >= 1, got 0"),
    ],
    "search_and_rescue": [
        ({"target_range": 0}, r"target_range must be in \(0, 1\], got 0"),
        ({"n_searchers": 1.5}, "n_searchers must be an integer >= 1, got 1.5"),
        ({"viewer": "mine"}, "viewer must be a jumanji.viewer.Viewer, got 'mine'"),
    ],
}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [(name, *wrong) for name, several in WRONG.items() for wrong in several],
)
def test_wrong_arguments_are_refused_in_one_line(name, arguments, message):
    with pytest.raises(ValueError, match=message) as refusal:
        envs.make(name, **arguments)
    assert "\n" not in str(refusal.value)


def test_smax_says_how_to_install_what_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxmarl", None)
    monkeypatch.setitem(sys.modules, "jaxmarl.environments.smax.smax_env", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'jaxmethods\[smax\]'"):
        envs.make("smax")


@pytest.mark.slow
def test_pictures_are_drawn_by_the_published_viewer(played, tmp_path):
    env = played.env
    states = jax.tree.map(lambda leaf: leaf[0, :3], played.states)
    one = jax.tree.map(lambda leaf: leaf[0], states)
    picture = env.render(one, str(tmp_path / "one.png"))
    assert picture.dtype == np.uint8
    assert picture.shape[-1] == 4
    strip = env.filmstrip(states)
    np.testing.assert_array_equal(strip[:, : strip.shape[1] // 3], picture[::2, ::2])
    env.animate(states, interval=100, save_path=str(tmp_path / "episode.gif"))
    with Image.open(tmp_path / "episode.gif") as film:
        assert film.format == "GIF"
    env.close()


@pytest.fixture(scope="module")
def battles():
    """30 steps of random play in four fights, beyond their end: time steps [4, T, ...]."""
    pytest.importorskip("jaxmarl")
    env = envs.make("smax", time_limit=30)

    def play(key):
        def step(carry, key):
            state, mask = carry
            after, timestep = env.step(state, random_actions(env, key, mask))
            return (after, timestep.observation.action_mask), (timestep, after.wrapped.units.state)

        state, timestep = env.reset(key)
        carry = (state, timestep.observation.action_mask)
        return timestep, jax.lax.scan(step, carry, jax.random.split(key, 30))[1]

    return env, *jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(0), 4))


def test_allies_are_all_alive_at_first_and_then_as_the_battle_has_it(battles):
    env, first, (timesteps, units) = battles
    assert first.extras["alive"].all()
    np.testing.assert_array_equal(timesteps.extras["alive"], units.unit_alive[..., :3])
    assert not timesteps.extras["alive"].all()
    assert (env.num_agents, env.num_actions) == (3, 8)
    dead = ~np.asarray(timesteps.extras["alive"])
    mask = np.asarray(timesteps.observation.action_mask)
    np.testing.assert_array_equal(mask[dead].sum(-1), 1)
    assert mask[dead][:, 4].all()


def test_battles_end_when_a_side_is_dead_and_are_truncated_at_the_limit(battles):
    _, _, (timesteps, units) = battles
    alive = np.asarray(units.unit_alive)
    allies, enemies = alive[..., :3].any(-1), alive[..., 3:].any(-1)
    ended = ~allies | ~enemies
    np.testing.assert_array_equal(timesteps.discount, 1.0 - np.stack([ended] * 3, -1))
    cut = np.arange(30) == 29
    np.testing.assert_array_equal(timesteps.last(), ended | cut)
    won = np.logical_or.accumulate(allies & ~enemies, axis=1)
    np.testing.assert_array_equal(timesteps.extras["success"], won)


def test_battles_go_through_roll_outs_and_can_be_drawn(tmp_path):
    pytest.importorskip("jaxmarl")
    env = envs.make("smax", time_limit=4)

    def policy(key, observation):
        return random_actions(env, key, observation.action_mask), {}

    recording = jax.jit(partial(envs.record_episode, env, policy, max_steps=6))(jax.random.key(0))
    assert recording.length == 4
    np.testing.assert_array_equal(recording.states.step_count, [0, 1, 2, 3, 4, 4, 4])
    assert env.filmstrip(recording.states, str(tmp_path / "battle.png")).dtype == np.uint8
    vector = envs.vectorize(env)
    state, timestep = jax.jit(vector.reset)(jax.random.split(jax.random.key(0), 2))
    run = jax.jit(partial(envs.rollout, vector, policy, length=5))
    *_, trajectory = run(state, timestep, jax.random.key(1))
    np.testing.assert_array_equal(trajectory.last[:, 0], [False, False, False, True, False])
    assert trajectory.reward.shape == (5, 2, 3)
