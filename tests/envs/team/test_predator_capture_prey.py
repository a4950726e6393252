"""Rules, observations and pictures of Predator-Capture-Prey."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmethods import envs
from jaxmethods.envs import PredatorCapturePrey, PredatorPrey
from jaxmethods.envs.team.predator_capture_prey import RandomGenerator
from jaxmethods.envs.team.predator_capture_prey.generator import initial_state
from jaxmethods.envs.team.viewer import team_color

DIM, VISION, STEPS = 3, 1, 20
ENV = PredatorCapturePrey(2, 2, DIM, VISION)
KEY = jax.random.key(0)
STAY, CAPTURE = 4, 5


@jax.jit
def play(places, actions):
    """States before and after each step, and the time steps: leaves [STEPS, ...]."""

    def step(state, action):
        after, timestep = ENV.step(state, action)
        return after, (state._replace(key=None), after._replace(key=None), timestep)

    state, _ = ENV.reset_from(places[:2], places[2:4], places[4:], KEY)
    return jax.lax.scan(step, state, actions)[1]


@settings(max_examples=25)
@given(st.integers(0, 2**31 - 1))
def test_random_episodes_keep_the_rules(seed):
    rng = np.random.default_rng(seed)
    cells = rng.permutation(DIM**2)[:5]
    actions = rng.integers(0, 6, (STEPS, 4))
    places = np.stack([cells // DIM, cells % DIM], -1)
    before, after, timesteps = jax.tree.map(np.asarray, play(places, actions))
    agents = np.concatenate([after.perception, after.capture], 1)
    moved = agents - np.concatenate([before.perception, before.capture], 1)
    assert agents.min() >= 0
    assert agents.max() < DIM
    assert np.abs(moved).sum(-1).max() <= 1
    assert not np.any(moved.any(-1) & (before.reached | (actions >= STAY)))
    standing = (before.capture == before.prey).all(-1)
    captures = standing & (actions[:, 2:] == CAPTURE)
    np.testing.assert_array_equal(after.captured, before.captured | captures)
    done = after.reached.all(-1) & after.captured.all(-1)
    np.testing.assert_array_equal(timesteps.last(), done)
    np.testing.assert_array_equal(timesteps.extras["success"], done)
    on_prey = (agents == after.prey).all(-1)
    free = np.concatenate([on_prey[:, :2], on_prey[:, 2:] & after.captured], 1)
    np.testing.assert_allclose(timesteps.reward, np.where(free, 0.0, -0.05), atol=1e-7)


@pytest.mark.parametrize(
    ("mode", "second_reward", "waiting", "captured"),
    [
        ("mixed", False, [0.0, -0.05], [0.0, 0.0]),
        ("mixed", True, [0.0, -0.025], [0.0, 0.0]),
        ("cooperative", False, [0.1, -0.05], [0.1, 0.1]),
        ("competitive", True, [0.025, -0.025], [0.025, 0.025]),
    ],
)
def test_rewards_of_each_mode_and_scheme(mode, second_reward, waiting, captured):
    env = PredatorCapturePrey(1, 1, 3, mode=mode, second_reward=second_reward)
    step = jax.jit(env.step)
    state = initial_state(np.array([[0, 1]]), np.array([[2, 1]]), np.array([[1, 1]]), KEY)
    state, timestep = step(state, jnp.array([CAPTURE, CAPTURE]))
    np.testing.assert_allclose(timestep.reward, [-0.05, -0.05], atol=1e-7)
    state, timestep = step(state, jnp.array([2, 0]))
    np.testing.assert_allclose(timestep.reward, waiting, atol=1e-7)
    state, timestep = step(state, jnp.array([STAY, CAPTURE]))
    np.testing.assert_allclose(timestep.reward, captured, atol=1e-7)
    assert bool(timestep.last()) == bool(timestep.extras["success"]) == (mode == "mixed")


def views(env, places):
    count = env.n_perception
    agents, prey = places[:-1], places[-1:]
    _, first = jax.jit(env.reset_from)(agents[:count], agents[count:], prey, KEY)
    side = 2 * env.vision + 1
    return np.asarray(first.observation.agents_view).reshape(-1, side, side, env.dim**2 + 4)


def test_perception_agents_see_cells_prey_and_both_kinds_of_agents():
    places = np.array([[0, 0], [1, 1], [1, 1], [1, 0], [0, 1]])
    seen = views(ENV, places)[0]
    board = np.zeros((DIM + 2, DIM + 2, DIM**2 + 4), int)
    board[..., DIM**2 + 1] = 1
    board[1:-1, 1:-1, DIM**2 + 1] = 0
    board[1:-1, 1:-1, : DIM**2] = np.eye(DIM**2).reshape(DIM, DIM, -1)
    for channel, agents in [(3, places[:2]), (0, places[2:4]), (2, places[4:])]:
        for row, column in np.asarray(agents):
            board[row + 1, column + 1, DIM**2 + channel] += 1
    np.testing.assert_array_equal(seen, board[:3, :3])


def test_blind_capture_agents_see_only_where_they_are():
    places = np.array([[0, 0], [1, 1], [0, 0], [2, 2], [0, 1]])
    perception, _, capture, _ = views(ENV, places)
    np.testing.assert_array_equal(capture[..., : DIM**2], perception[..., : DIM**2])
    np.testing.assert_array_equal(capture[..., DIM**2 :], -1)


@pytest.mark.parametrize("capture_vision", [0, 1])
def test_seeing_capture_agents_see_the_central_cells_in_full(capture_vision):
    env = PredatorCapturePrey(1, 1, 4, vision=2, capture_vision=capture_vision)
    perception, capture = views(env, np.array([[1, 1], [1, 1], [1, 2]]))
    seen = slice(2 - capture_vision, 3 + capture_vision)
    np.testing.assert_array_equal(capture[seen, seen], perception[seen, seen])
    hidden = np.ones(capture.shape[:2], bool)
    hidden[seen, seen] = False
    np.testing.assert_array_equal(capture[hidden], -1)


def test_without_capture_agents_in_sight_it_looks_like_predator_prey():
    env = PredatorCapturePrey(2, 1, 5, vision=1)
    team, prey = np.array([[0, 0], [0, 1]]), np.array([[1, 1]])
    seen = views(env, np.concatenate([team, [[4, 4]], prey]))[:2]
    _, expected = jax.jit(PredatorPrey(2, 1, 5, 1).reset_from)(team, prey, KEY)
    np.testing.assert_array_equal(seen.reshape(2, -1), expected.observation.agents_view)


@pytest.mark.parametrize(("preset", "bound"), [("reference", 5.1), ("medium", 10.6)])
def test_presets_have_the_published_all_knowing_bound(preset, bound):
    env = PredatorCapturePrey.preset(preset)
    generator = RandomGenerator(env.n_perception, env.n_capture, env.dim)
    states = jax.jit(jax.vmap(generator))(jax.random.split(KEY, 20_000))
    distances = [
        jnp.abs(states.perception - states.prey).sum(-1),
        jnp.abs(states.capture - states.prey).sum(-1) + 1,
    ]
    farthest = jnp.concatenate(distances, axis=-1).max(-1)
    error = jnp.std(farthest) / np.sqrt(len(farthest))
    assert abs(jnp.mean(farthest) - bound) < 0.05 + 4 * error


def test_a_uniform_random_team_takes_19_9_steps_and_succeeds_in_1_percent():
    env = PredatorCapturePrey.preset("reference")

    def policy(key, observation):
        return jax.random.bits(key, observation.action_mask.shape[:2]) % 6, None

    play = jax.jit(partial(envs.play_episodes, env, policy, episodes=2000, max_steps=20))
    results = play(jax.random.key(5))
    for values, anchor, rounding in [(results.length, 19.9, 0.05), (results.success, 0.01, 0.005)]:
        error = jnp.std(values) / np.sqrt(2000)
        assert abs(jnp.mean(values) - anchor) < rounding + 3 * error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_perception": 0}, r"n_perception must be in \[1, 127\], got 0"),
        ({"n_capture": 128}, r"n_capture must be in \[1, 127\], got 128"),
        ({"dim": 1}, r"dim must give a cell to each of 3 agents and the prey, got 1 \(1 cells\)"),
        ({"capture_vision": 2}, r"capture_vision must be in \[-1, 1\], got 2"),
        ({"mode": "blind"}, "mode must be one of .* got 'blind'"),
        ({"second_reward": "yes"}, "second_reward must be True or False, got 'yes'"),
        ({"generator": RandomGenerator(2, 2, 5)}, r"generator must give capture .* got \(2, 2\)"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}[^\n]*$"):
        PredatorCapturePrey(**arguments)


def test_both_kinds_of_agents_are_drawn_where_they_share_the_prey(tmp_path):
    center = np.array([[1, 1]])
    state = initial_state(center.repeat(2, 0), center.repeat(2, 0), center, KEY)
    state = state._replace(reached=jnp.ones(4, bool), captured=jnp.array([True, False]))
    pixels = ENV.render(state, str(tmp_path / "team.png"))
    seen = set(map(tuple, np.unique(pixels[..., :3].reshape(-1, 3), axis=0).tolist()))
    for index in range(4):
        assert tuple(bytes.fromhex(team_color(index)[1:])) in seen
    assert (tmp_path / "team.png").exists()
