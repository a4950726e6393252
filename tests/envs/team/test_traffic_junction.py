"""Roads, routes, arrivals, rules, observations and pictures of Traffic Junction."""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxmethods import envs
from jaxmethods.envs import TrafficJunction
from jaxmethods.envs.team.traffic_junction import (
    ADD_RATES,
    Arrivals,
    Roads,
    curriculum,
    with_add_rate,
)
from jaxmethods.envs.team.traffic_junction.generator import draw_arrivals, empty_roads
from jaxmethods.envs.team.viewer import team_color

KEY = jax.random.key(0)
GAS, BRAKE = 0, 1

maps = st.one_of(
    st.builds(Roads, st.sampled_from(["easy", "medium"]), st.sampled_from([4, 6, 10, 14])),
    st.builds(Roads, st.just("hard"), st.sampled_from([9, 12, 18])),
)


@settings(max_examples=20)
@given(maps)
def test_routes_are_drives_from_an_entry_to_another_edge(roads):
    routes = [route for entry in roads.routes_by_entry for route in entry]
    assert len(routes) == {"easy": 2, "medium": 12, "hard": 56}[roads.difficulty]
    assert len({tuple(route) for route in routes}) == len(routes)
    for entry, driven in zip(roads.entries, roads.routes_by_entry, strict=True):
        assert all(route[0] == entry[0] for route in driven)
    for route in map(np.array, routes):
        np.testing.assert_array_equal(np.abs(np.diff(route, axis=0)).sum(-1), 1)
        assert np.all(roads.number[tuple(route.T)] >= 0)
        assert len(np.unique(route, axis=0)) == len(route)
        assert np.any((route[-1] == 0) | (route[-1] == roads.side - 1))


@settings(max_examples=20)
@given(maps)
def test_between_junctions_every_lane_has_one_direction(roads):
    headings: dict[tuple[int, int], set] = {}
    for entry in roads.routes_by_entry:
        for route in map(np.array, entry):
            for cell, heading in zip(route[:-1], np.diff(route, axis=0), strict=True):
                crossing = all(any(a <= part < b for a, b in roads.bands) for part in cell)
                if not crossing:
                    headings.setdefault(tuple(cell), set()).add(tuple(heading))
    assert all(len(directions) == 1 for directions in headings.values())


def test_every_road_cell_is_driven_on_the_hard_map():
    roads = Roads("hard", 18)
    driven = {cell for entry in roads.routes_by_entry for route in entry for cell in route}
    assert driven == set(map(tuple, np.argwhere(roads.number >= 0).tolist()))


@pytest.fixture(scope="module")
def arrivals():
    """Arrivals at 3 entries with 4 routes, rate 0.3, slots 1 and 3 of 5 taken."""
    alive = jnp.array([False, True, False, True, False])
    draw = jax.vmap(partial(draw_arrivals, entries=3, routes_per_entry=4), in_axes=(0, None, None))
    keys = jax.random.split(KEY, 20_000)
    return jax.tree.map(np.asarray, jax.jit(draw)(keys, alive, 0.3))


def test_cars_enter_free_slots_only_and_each_once(arrivals):
    assert set(np.unique(arrivals.car)) == {-1, 0, 2, 4}
    for slot in (0, 2, 4):
        assert (arrivals.car == slot).sum(-1).max() == 1


def test_every_entry_lets_a_car_in_at_the_arrival_rate(arrivals):
    entered = (arrivals.car >= 0).sum(0)
    for count in entered:
        assert stats.binomtest(int(count), len(arrivals.car), 0.3).pvalue > 1e-3


def test_slots_and_routes_of_new_cars_are_uniform(arrivals):
    first = arrivals.car[:, 0][arrivals.car[:, 0] >= 0]
    assert stats.chisquare(np.bincount(first)[[0, 2, 4]]).pvalue > 1e-3
    after_first = arrivals.car[(arrivals.car[:, 0] == 2) & (arrivals.car[:, 1] >= 0), 1]
    assert stats.chisquare(np.bincount(after_first)[[0, 4]]).pvalue > 1e-3
    for entry in range(3):
        paths = arrivals.path[arrivals.car[:, entry] >= 0, entry]
        assert stats.chisquare(np.bincount(paths, minlength=4)).pvalue > 1e-3


@pytest.mark.parametrize(("rate", "entered"), [(0.0, [-1] * 3), (1.0, [0, 1, -1])])
def test_rate_one_always_and_rate_zero_never_lets_cars_in_while_there_is_room(rate, entered):
    draw = jax.jit(draw_arrivals, static_argnums=(3, 4))
    drawn = draw(KEY, jnp.array([False, False]), jnp.float32(rate), 3, 2)
    assert sorted(drawn.car.tolist()) == sorted(entered)
    assert rate == 0.0 or drawn.car[2] == -1, "the third entry finds no free slot"


ENV = TrafficJunction("medium", n_cars=6, dim=6, vision=1, add_rate=0.4)
SCALAR = TrafficJunction("medium", n_cars=6, dim=6, vision=1, vocabulary="scalar", add_rate=0.4)
STEPS = 30


@jax.jit
def play(key, actions):
    """States before and after each step, and the time steps: leaves [STEPS, ...]."""

    def step(state, action):
        after, timestep = ENV.step(state, action)
        return after, (state._replace(key=None), after._replace(key=None), timestep)

    return jax.lax.scan(step, ENV.reset(key)[0], actions)[1]


def played(seed):
    actions = np.random.default_rng(seed).integers(0, 2, (STEPS, ENV.n_cars))
    return actions, *jax.tree.map(np.asarray, play(jax.random.key(seed), actions))


@settings(max_examples=20)
@given(st.integers(0, 2**31 - 1))
def test_cars_drive_along_their_routes_and_leave_at_the_end(seed):
    actions, before, after, _ = played(seed)
    routes, lengths = ENV.roads.routes, ENV.roads.lengths
    cells = routes[after.route, np.minimum(after.route_position, routes.shape[1] - 1)]
    where = np.where(after.alive[..., None], cells, 0)
    np.testing.assert_array_equal(after.location, where)
    gas, brake = before.alive & (actions == GAS), before.alive & (actions == BRAKE)
    leaves = gas & (before.route_position + 1 == lengths[before.route])
    np.testing.assert_array_equal(after.completed, leaves)
    stays = before.alive & ~leaves
    np.testing.assert_array_equal(after.wait[stays], before.wait[stays] + 1)
    np.testing.assert_array_equal(after.wait[~stays], 0)
    np.testing.assert_array_equal(after.route[stays], before.route[stays])
    np.testing.assert_array_equal(
        (after.route_position - before.route_position)[stays], gas[stays].astype(int)
    )
    expected = np.where(brake, BRAKE, np.where(gas & ~leaves, GAS, before.last_action))
    np.testing.assert_array_equal(after.last_action, expected)


@settings(max_examples=20)
@given(st.integers(0, 2**31 - 1))
def test_rewards_pay_for_waiting_and_for_sharing_a_cell(seed):
    _, _, after, timesteps = played(seed)
    cells = after.location[..., 0] * 100 + after.location[..., 1]
    shared = (cells[:, :, None] == cells[:, None]).sum(-1) > 1
    crash = after.alive & shared & (cells != 0)
    expected = after.alive * (-0.01 * after.wait - 10.0 * crash)
    np.testing.assert_allclose(timesteps.reward, expected, atol=2e-6)
    crashed = np.maximum.accumulate(crash.any(-1))
    np.testing.assert_array_equal(timesteps.extras["success"], ~crashed)
    np.testing.assert_array_equal(timesteps.extras["alive"], after.alive)
    assert not timesteps.last().any()


@settings(max_examples=20)
@given(st.integers(0, 2**31 - 1))
def test_the_discount_of_a_slot_is_zero_where_its_car_leaves_and_one_elsewhere(seed):
    _, _, after, timesteps = played(seed)
    np.testing.assert_array_equal(timesteps.discount, 1.0 - after.completed)


def test_a_car_that_leaves_ends_its_return_also_where_the_time_limit_truncates():
    env = TrafficJunction(add_rate=1.0, time_limit=8)

    def step(state, _):
        state, timestep = env.step(state, jnp.zeros(env.n_cars, jnp.int32))
        return state, (timestep, state.completed)

    timesteps, completed = jax.jit(lambda k: jax.lax.scan(step, env.reset(k)[0], length=8)[1])(KEY)
    np.testing.assert_array_equal(timesteps.last(), np.arange(8) == 7)
    assert completed[-1].any(), "a car must leave in the step that the limit cuts"
    assert not completed[-1].all()
    np.testing.assert_array_equal(timesteps.discount, 1.0 - completed)


@settings(max_examples=10)
@given(st.integers(0, 2**31 - 1))
def test_observations_show_a_map_painted_by_hand(seed):
    _, _, after, timesteps = played(seed)
    roads, side = ENV.roads, ENV.roads.side
    observe = jax.jit(jax.vmap(lambda state: SCALAR._observe(state).agents_view))
    scalar = np.asarray(observe(jax.tree.map(jnp.asarray, after)))
    for step in range(0, STEPS, 5):
        painted = np.eye(roads.car_class + 1)[roads.classes(1)]
        simple = np.stack([roads.is_road(1), np.zeros((side + 2, side + 2))], -1)
        for row, column in after.location[step]:
            painted[row + 1, column + 1, roads.car_class] += 1
            simple[row + 1, column + 1, 1] += 1
        for car in range(ENV.n_cars):
            row, column = after.location[step, car]
            header = [after.last_action[step, car], after.route[step, car] / 11]
            place = [row / (side - 1), column / (side - 1)]
            window = np.s_[row : row + 3, column : column + 3]
            alive = after.alive[step, car]
            for got, expected in [
                (timesteps.observation.agents_view, [*header, *painted[window].ravel()]),
                (scalar, [*header, *place, *simple[window].ravel()]),
            ]:
                np.testing.assert_allclose(got[step, car], np.array(expected) * alive, atol=1e-6)


def test_an_undisturbed_car_leaves_after_as_many_steps_as_its_route_has_cells():
    step = jax.jit(ENV.step_with_arrivals)
    nobody = Arrivals(jnp.full(4, -1), jnp.zeros(4, jnp.int32))
    state, _ = jax.jit(ENV.reset)(KEY)
    gas = jnp.zeros(ENV.n_cars, jnp.int32)
    state, _ = step(state, gas, Arrivals(jnp.array([-1, 2, -1, -1]), jnp.full(4, 1)))
    route = 1 * 3 + 1
    assert state.route[2] == route
    steps = 0
    while state.alive[2]:
        state, timestep = step(state, gas, nobody)
        steps += 1
    assert steps == ENV.roads.lengths[route]
    assert state.completed[2]
    assert timestep.extras["success"]


def test_a_new_arrival_rate_does_not_retrace_and_survives_automatic_reset():
    chex.clear_trace_counter()
    env = TrafficJunction(add_rate=0.0, time_limit=2)
    vector = envs.vectorize(env)
    step = jax.jit(chex.assert_max_traces(vector.step, n=1))
    state, _ = jax.jit(vector.reset)(jax.random.split(KEY, 3))
    brake = jnp.ones((3, env.n_cars), jnp.int32)
    state, _ = step(state, brake)
    assert not state.alive.any()
    state, timestep = step(with_add_rate(state, 1.0), brake)
    assert timestep.last().all()
    np.testing.assert_array_equal(state.add_rate, 1.0)
    state, _ = step(state, brake)
    np.testing.assert_array_equal(state.alive.sum(-1), 2)


@pytest.mark.parametrize("preset", ADD_RATES)
def test_the_curriculum_climbs_in_hundredths_from_the_first_to_the_last_rate(preset):
    epochs = np.arange(0, 1500)
    rates = np.asarray(jax.jit(jax.vmap(partial(curriculum, preset=preset)))(epochs))
    first, last = ADD_RATES[preset]
    np.testing.assert_allclose(rates[:250], first, rtol=1e-6)
    np.testing.assert_allclose(rates[1249:], last, rtol=1e-6)
    assert np.all(np.diff(rates) >= 0)
    np.testing.assert_allclose(rates * 100, np.round(rates * 100), atol=1e-4)
    exact = first + (last - first) * np.clip(epochs - 249, 0, 1000) / 1000
    assert np.all((exact - rates > -1e-5) & (exact - rates < 0.01 + 1e-5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"difficulty": "heavy"}, "difficulty must be one of easy, medium, hard, got 'heavy'"),
        ({"n_cars": 0}, r"n_cars must be in \[1, 127\], got 0"),
        ({"dim": 7}, r"dim must be even, at least 4 \+ vision = 5, for easy, got 7"),
        ({"dim": 4}, r"dim must be even, at least 4 \+ vision = 5, for easy, got 4"),
        ({"difficulty": "hard", "dim": 10}, "dim must be a multiple of 3, at least 9, .* got 10"),
        ({"vocabulary": "text"}, "vocabulary must be one of bool, scalar, got 'text'"),
        ({"add_rate": 1.5}, r"add_rate must be in \[0, 1\], got 1.5"),
        ({"add_rate": float("nan")}, r"add_rate must be in \[0, 1\], got nan"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        TrafficJunction(**arguments)


def test_pictures_show_every_car_a_collision_and_a_brake_light(tmp_path):
    state = empty_roads(ENV.n_cars, 0.0, KEY)._replace(
        alive=jnp.array([True, True, True, False, False, False]),
        route=jnp.array([0, 1, 4, -1, -1, -1]),
        route_position=jnp.array([1, 1, 2, -1, -1, -1]),
        location=jnp.array([[1, 2], [1, 2], [3, 3], [0, 0], [0, 0], [0, 0]]),
        last_action=jnp.array([0, 0, BRAKE, 0, 0, 0]),
    )
    pixels = ENV.filmstrip([state], str(tmp_path / "crash.png"))
    seen = set(map(tuple, np.unique(pixels[..., :3].reshape(-1, 3), axis=0).tolist()))
    for color in [*(team_color(index) for index in range(3)), "#FFD43B", "#E03131"]:
        assert tuple(bytes.fromhex(color[1:])) in seen
    assert tuple(bytes.fromhex(team_color(3)[1:])) not in seen
