"""Rules, observations and pictures of Predator-Prey."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxmethods import envs
from jaxmethods.envs import PredatorPrey
from jaxmethods.envs.team.predator_prey import RandomGenerator
from jaxmethods.envs.team.predator_prey.generator import initial_state
from jaxmethods.envs.team.viewer import team_color

DIM, VISION, PREDATORS, PREY, STEPS = 4, 1, 3, 2, 12
ENV = PredatorPrey(PREDATORS, PREY, DIM, VISION)
CHANNELS = DIM**2 + 4
KEY = jax.random.key(0)
RESET = jax.jit(ENV.reset)


@jax.jit
def play(predators, prey, actions):
    """States and time steps of an episode, the first ones included: leaves [STEPS + 1, ...]."""
    first = ENV.reset_from(predators, prey, KEY)
    _, after = jax.lax.scan(lambda s, a: (lambda n: (n[0], n))(ENV.step(s, a)), first[0], actions)
    first, after = (jax.tree.map(lambda x: x, (s._replace(key=0), t)) for s, t in (first, after))
    return jax.tree.map(
        lambda one, rest: jnp.concatenate([jnp.broadcast_to(one, (1, *rest.shape[1:])), rest]),
        first,
        (after[0]._replace(key=jnp.zeros(STEPS)), after[1]),
    )


@st.composite
def plays(draw):
    seed = draw(st.integers(0, 2**31 - 1))
    rng = np.random.default_rng(seed)
    cells = rng.permutation(DIM**2)[: PREDATORS + PREY]
    places = np.stack([cells // DIM, cells % DIM], -1)
    return jax.tree.map(
        np.asarray,
        play(places[:PREDATORS], places[PREDATORS:], rng.integers(0, 5, (STEPS, PREDATORS))),
    )


@settings(max_examples=25)
@given(plays())
def test_predators_stay_on_the_grid_and_move_at_most_one_cell(played):
    states, _ = played
    assert states.predators.min() >= 0
    assert states.predators.max() < DIM
    assert np.abs(np.diff(states.predators, axis=0)).sum(-1).max() <= 1


@settings(max_examples=25)
@given(plays())
def test_a_predator_that_reached_prey_never_moves_again(played):
    states, _ = played
    moved = np.any(np.diff(states.predators, axis=0) != 0, axis=-1)
    assert not np.any(moved & states.reached[:-1])
    assert np.all(states.reached[1:] >= states.reached[:-1])


@settings(max_examples=25)
@given(plays())
def test_mixed_episodes_end_when_all_have_reached_and_that_is_success(played):
    states, timesteps = played
    everyone = states.reached.all(-1)
    np.testing.assert_array_equal(timesteps.last(), everyone)
    np.testing.assert_array_equal(timesteps.extras["success"], everyone)
    np.testing.assert_array_equal(timesteps.discount, 1.0 - everyone[:, None] * np.ones(PREDATORS))
    on_prey = (states.predators[:, :, None] == states.prey[:, None]).all(-1).any(-1)[1:]
    np.testing.assert_allclose(timesteps.reward[1:], np.where(on_prey, 0.0, -0.05), atol=1e-7)


@settings(max_examples=25)
@given(plays())
def test_observations_show_a_board_painted_by_hand(played):
    states, timesteps = played
    board = np.zeros((len(states.predators), DIM + 2 * VISION, DIM + 2 * VISION, CHANNELS), int)
    board[..., DIM**2 + 1] = 1
    inside = board[:, VISION:-VISION, VISION:-VISION]
    inside[..., DIM**2 + 1] = 0
    inside[..., : DIM**2] = np.eye(DIM**2).reshape(DIM, DIM, -1)
    for step, (predators, prey) in enumerate(zip(states.predators, states.prey, strict=True)):
        for row, column in predators:
            inside[step, row, column, DIM**2 + 3] += 1
        for row, column in prey:
            inside[step, row, column, DIM**2 + 2] += 1
        for agent, (row, column) in enumerate(predators):
            seen = board[step, row : row + 2 * VISION + 1, column : column + 2 * VISION + 1]
            np.testing.assert_array_equal(
                timesteps.observation.agents_view[step, agent], seen.ravel()
            )


@pytest.mark.parametrize(
    ("mode", "rewards", "done", "success"),
    [
        ("mixed", [[0, 0], [0, 0]], [False, True], [False, True]),
        ("cooperative", [[0.05, 0], [0.1, 0.1]], [False, False], [False, True]),
        ("competitive", [[0.05, 0], [0.025, 0.025]], [False, False], [False, False]),
    ],
)
def test_rewards_of_each_mode(mode, rewards, done, success):
    env = PredatorPrey(n_predators=2, dim=3, mode=mode, prey_communicate=True)
    step = jax.jit(env.step)
    state = initial_state(np.array([[0, 0], [2, 0]]), np.array([[0, 1]]), KEY)
    away, there = jnp.array([4, 4, 1]), jnp.array([1, 0, 0])
    state, timestep = step(state, away)
    np.testing.assert_allclose(timestep.reward, [-0.05, -0.05, 0.05], atol=1e-7)
    np.testing.assert_array_equal(state.prey, [[0, 1]], "the actions of prey are ignored")
    state, timestep = step(state, there)
    np.testing.assert_allclose(timestep.reward, [rewards[0][0], -0.05, 0.0], atol=1e-7)
    assert (bool(timestep.last()), bool(timestep.extras["success"])) == (done[0], success[0])
    state, timestep = step(state, there.at[1].set(1))
    state, timestep = step(state, there)
    np.testing.assert_allclose(timestep.reward, [*rewards[1], 0.0], atol=1e-7)
    assert (bool(timestep.last()), bool(timestep.extras["success"])) == (done[1], success[1])


def test_a_time_limit_truncates_with_discount_one_but_success_terminates():
    env = PredatorPrey(n_predators=1, dim=3, time_limit=2)
    step = jax.jit(env.step)
    start = initial_state(np.array([[0, 0]]), np.array([[0, 2]]), KEY)
    state = start
    for action, last, discount in [(1, False, 1.0), (1, True, 0.0)]:
        state, timestep = step(state, jnp.array([action]))
        assert (bool(timestep.last()), float(timestep.discount[0])) == (last, discount)
    state = start
    for last in (False, True):
        state, timestep = step(state, jnp.array([4]))
        assert (bool(timestep.last()), float(timestep.discount[0])) == (last, 1.0)


@pytest.mark.parametrize(("preset", "bound", "cap"), [("easy", 4.7, 20), ("hard", 23.0, 80)])
def test_presets_have_the_published_all_knowing_bound(preset, bound, cap):
    env = PredatorPrey.preset(preset)
    generator = RandomGenerator(env.n_predators, env.n_prey, env.dim)
    states = jax.jit(jax.vmap(generator))(jax.random.split(KEY, 20_000))
    farthest = jnp.abs(states.predators - states.prey).sum(-1).max(-1)
    error = jnp.std(farthest) / np.sqrt(len(farthest))
    assert abs(jnp.mean(farthest) - bound) < 0.05 + 4 * error
    assert env.episode_cap == cap
    assert env.time_limit is None


def test_a_uniform_random_team_takes_19_8_steps_and_succeeds_in_3_percent():
    env = PredatorPrey.preset("reference")

    def policy(key, observation):
        return jax.random.bits(key, observation.action_mask.shape[:2]) % 5, None

    play = jax.jit(partial(envs.play_episodes, env, policy, episodes=2000, max_steps=20))
    results = play(jax.random.key(5))
    for values, anchor, rounding in [(results.length, 19.8, 0.05), (results.success, 0.03, 0.005)]:
        error = jnp.std(values) / np.sqrt(2000)
        assert abs(jnp.mean(values) - anchor) < rounding + 3 * error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_predators": 0}, r"n_predators must be in \[1, 127\], got 0"),
        ({"n_prey": 1.0}, r"n_prey must be in \[1, 127\], got 1.0"),
        ({"dim": 181}, r"dim must be in \[1, 180\], got 181"),
        ({"dim": 2, "n_predators": 4}, r"dim must give a cell .* got 2 \(4 cells\)"),
        ({"vision": -1}, "vision must be an integer >= 0, got -1"),
        ({"vision": True}, "vision must be an integer >= 0, got True"),
        ({"mode": "mix"}, "mode must be one of mixed, cooperative, competitive, got 'mix'"),
        ({"stay": 1}, "stay must be True or False, got 1"),
        ({"prey_communicate": None}, "prey_communicate must be True or False, got None"),
        ({"time_limit": 0}, "time_limit must be an integer >= 1, got 0"),
        ({"generator": 3}, "generator must be callable, got 3"),
        (
            {"generator": RandomGenerator(2, 1, 5)},
            r"generator must give predators of shape \(3, 2\), got \(2, 2\)",
        ),
        ({"viewer": "png"}, "viewer must be a jumanji.viewer.Viewer, got 'png'"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        PredatorPrey(**arguments)


def test_a_generator_of_ones_own_places_the_team():
    corners = np.array([[0, 0], [0, 4], [4, 0]])
    env = PredatorPrey(generator=lambda key: initial_state(corners, np.array([[2, 2]]), key))
    state, _ = jax.jit(env.reset)(KEY)
    np.testing.assert_array_equal(state.predators, corners)


def colors_of(pixels: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, np.unique(pixels[..., :3].reshape(-1, 3), axis=0).tolist()))


def test_agents_that_share_a_cell_all_stay_visible():
    env = PredatorPrey(n_predators=10)
    state = initial_state(np.full((10, 2), 2), np.array([[2, 2]]), KEY)
    seen = colors_of(env.render(state))
    for index in range(10):
        color = team_color(index)
        assert tuple(bytes.fromhex(color[1:])) in seen, f"predator {index + 1} is hidden"


def test_episodes_become_png_and_gif_files_without_a_display(tmp_path):
    listed = [
        RESET(key)[0]._replace(step_count=jnp.int32(t))
        for t, key in enumerate(jax.random.split(KEY, 4))
    ]
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *listed, listed[-1])
    strip = ENV.filmstrip(states, str(tmp_path / "episode" / "strip.png"))
    np.testing.assert_array_equal(strip, ENV.filmstrip(listed))
    with Image.open(tmp_path / "episode" / "strip.png") as image:
        np.testing.assert_array_equal(np.asarray(image), strip)
    ENV.animate(states, interval=200, save_path=str(tmp_path / "episode.gif"))
    with Image.open(tmp_path / "episode.gif") as film:
        assert (film.n_frames, film.info["duration"]) == (4, 200)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["episode.gif", "strip.png"]
    with pytest.raises(ValueError, match=r"save_path must end in \.png, got 'a\.jpg'"):
        ENV.render(listed[0], "a.jpg")


def test_long_episodes_are_thinned_to_the_first_last_and_some_between():
    state = RESET(KEY)[0]
    states = [state._replace(step_count=jnp.int32(step)) for step in range(40)]
    short = ENV.viewer.filmstrip(states[::13], max_frames=4)
    np.testing.assert_array_equal(ENV.viewer.filmstrip(states, max_frames=4), short)
