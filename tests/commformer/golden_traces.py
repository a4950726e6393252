"""Environment traces of the reference implementation, replayed exactly.

Sizes are read from the arrays, so that any file with these names can be replayed. Episodes of a
file are padded to the longest one and replayed together.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.envs import PredatorCapturePrey, PredatorPrey, TrafficJunction
from jaxmethods.envs.team.traffic_junction import Arrivals
from tests.golden_files import golden_files, read


def episodes(file: Path) -> list[dict[str, np.ndarray]]:
    found = read(file)
    count = len({name.split(".")[0] for name in found})
    return [
        {
            name.split(".", 1)[1]: value
            for name, value in found.items()
            if name.startswith(f"ep{e}.")
        }
        for e in range(count)
    ]


def replay(env, starts, actions: list[np.ndarray]):
    """Plays padded action sequences from stacked starts; returns per episode (states, steps)."""
    lengths = [len(sequence) for sequence in actions]
    padded = np.zeros((len(actions), max(lengths), env.num_agents), np.int32)
    for row, sequence in zip(padded, actions, strict=True):
        row[: len(sequence), : sequence.shape[1]] = sequence

    def play(start, sequence):
        state, first = env.reset_from(*start, jax.random.key(0))
        _, after = jax.lax.scan(lambda s, a: (lambda n: (n[0], n))(env.step(s, a)), state, sequence)
        return first, after

    first, (states, timesteps) = jax.jit(lambda *args: jax.lax.map(lambda one: play(*one), args))(
        starts, padded
    )
    states, timesteps = jax.tree.map(np.asarray, (states._replace(key=None), timesteps))
    for e, length in enumerate(lengths):
        yield (
            jax.tree.map(lambda leaf, e=e, t=length: leaf[e][:t], (states, timesteps)),
            (np.asarray(first.observation.agents_view[e])),
        )


def window_sizes(trace: dict[str, np.ndarray]) -> tuple[int, int]:
    """dim and vision from D = (2v+1)^2 (dim^2+4) and from where the first agent sees itself."""
    placed = [name for name in ("pred0", "cap0", "prey", "pred", "cap") if name in trace]
    positions = np.concatenate([trace[name].reshape(-1, 2) for name in placed])
    row, column = trace["pred0"][0]
    width = trace["obs"].shape[-1]
    for dim in range(int(positions.max()) + 1, int(width**0.5) + 1):
        windows, rest = divmod(width, dim**2 + 4)
        side = round(windows**0.5)
        if rest or side**2 != windows or side % 2 == 0:
            continue
        center = trace["obs"][0, 0].reshape(windows, dim**2 + 4)[windows // 2]
        if np.flatnonzero(center[: dim**2]).tolist() == [row * dim + column]:
            return dim, side // 2
    raise AssertionError(f"no grid size explains observations of {width} numbers")


def predator_mode(file: Path, trace_list: list[dict[str, np.ndarray]]) -> str:
    """The mode that pays what was paid to predators on prey; the name decides where none was."""
    for trace in trace_list:
        on_prey = (trace["pred"][:, :, None] == trace["prey"]).all(-1).any(-1)
        number = on_prey.sum(-1)
        if "cap" in trace:
            number = number + (trace["cap"] == trace["prey"]).all(-1).sum(-1)
        for rewards, standing, arrived in zip(trace["rewards"], on_prey, number, strict=True):
            paid = rewards[: standing.size][standing]
            if not paid.size:
                continue
            if not paid.any():
                return "mixed"
            if arrived > 1:
                return "cooperative" if paid[0] > 0.06 else "competitive"
    names = {"coop": "cooperative", "comp": "competitive"}
    return next((mode for part, mode in names.items() if part in file.stem), "mixed")


def check_time_steps(trace: dict[str, np.ndarray], first: np.ndarray, timesteps) -> None:
    np.testing.assert_array_equal(first, trace["obs"][0])
    np.testing.assert_array_equal(timesteps.observation.agents_view, trace["obs"][1:])
    np.testing.assert_allclose(timesteps.reward, trace["rewards"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(timesteps.last(), trace["done"])
    running = np.broadcast_to(~trace["done"][:, None], timesteps.discount.shape)
    np.testing.assert_array_equal(timesteps.discount, running)
    np.testing.assert_array_equal(timesteps.extras["success"], trace["success"])


@pytest.mark.parametrize("file", golden_files("commformer", "env_pp_"))
def test_predator_prey_replays_the_reference(file):
    recorded = episodes(file)
    agents, (n, p) = (
        recorded[0]["obs"].shape[1],
        (len(recorded[0]["pred0"]), len(recorded[0]["prey"])),
    )
    dim, vision = window_sizes(recorded[0])
    env = PredatorPrey(
        n, p, dim, vision, predator_mode(file, recorded), prey_communicate=agents > n
    )
    starts = tuple(jnp.stack([trace[name] for trace in recorded]) for name in ("pred0", "prey"))
    replayed = replay(env, starts, [trace["actions"] for trace in recorded])
    for trace, ((states, timesteps), first) in zip(recorded, replayed, strict=True):
        check_time_steps(trace, first, timesteps)
        np.testing.assert_array_equal(states.predators, trace["pred"])
        np.testing.assert_array_equal(states.reached, trace["reached"])


def capture_vision(first_view: np.ndarray, dim: int, vision: int) -> int:
    """How far a capture agent sees, from its observation: blind ones see no channel >= dim^2."""
    side = 2 * vision + 1
    hidden = (first_view.reshape(side, side, dim**2 + 4) == -1).all(-1)
    if (first_view.reshape(side, side, dim**2 + 4)[..., dim**2 :] == -1).all() and not hidden.any():
        return -1
    return (int(np.sqrt((~hidden).sum())) - 1) // 2


@pytest.mark.parametrize("file", golden_files("commformer", "env_pcp_"))
def test_predator_capture_prey_replays_the_reference(file):
    recorded = episodes(file)
    perception, capture = len(recorded[0]["pred0"]), len(recorded[0]["cap0"])
    dim, vision = window_sizes(recorded[0])
    env = PredatorCapturePrey(
        perception,
        capture,
        dim,
        vision,
        capture_vision(recorded[0]["obs"][0, -1], dim, vision),
        predator_mode(file, recorded),
        second_reward=any(np.isclose(trace["rewards"], -0.025).any() for trace in recorded),
    )
    starts = tuple(
        jnp.stack([trace[name] for trace in recorded]) for name in ("pred0", "cap0", "prey")
    )
    replayed = replay(env, starts, [trace["actions"] for trace in recorded])
    for trace, ((states, timesteps), first) in zip(recorded, replayed, strict=True):
        check_time_steps(trace, first, timesteps)
        np.testing.assert_array_equal(states.perception, trace["pred"])
        np.testing.assert_array_equal(states.capture, trace["cap"])
        np.testing.assert_array_equal(states.reached, trace["reached"])
        np.testing.assert_array_equal(states.captured, trace["captured"])


def traffic_environment(trace: dict[str, np.ndarray]) -> TrafficJunction:
    difficulty = {2: "easy", 12: "medium", 56: "hard"}[int(trace["npath"])]
    return TrafficJunction(
        difficulty,
        n_cars=trace["alive"].shape[1],
        dim=len(trace["grid"]) - (difficulty == "easy"),
        vision=int(trace["vision"]),
        vocabulary="scalar" if trace["vocab_size"] == 2 else "bool",
        add_rate=float(trace["add_rate"]),
    )


@pytest.mark.parametrize("file", golden_files("commformer", "env_tj_"))
def test_traffic_junction_builds_the_reference_roads_and_routes(file):
    with np.load(file) as trace:
        roads = traffic_environment(trace).roads
        np.testing.assert_array_equal(roads.routes, trace["routes"])
        np.testing.assert_array_equal(roads.lengths, trace["route_len"])
        per_entry = [len(routes) for routes in roads.routes_by_entry]
        np.testing.assert_array_equal(per_entry, trace["routes_per_group"])
        vision = int(trace["vision"])
        if trace["vocab_size"] == 2:
            np.testing.assert_array_equal(roads.is_road(0), trace["grid"])
            np.testing.assert_array_equal(roads.is_road(vision), trace["pad_grid_class"])
        else:
            np.testing.assert_array_equal(roads.classes(0), trace["grid"])
            np.testing.assert_array_equal(roads.classes(vision), trace["pad_grid_class"])
            assert roads.outside_class == trace["outside_class"]
            assert roads.car_class == trace["car_class"] == trace["vocab_size"] - 1


@pytest.mark.parametrize("file", golden_files("commformer", "env_tj_"))
def test_traffic_junction_replays_the_reference(file):
    with np.load(file) as arrays:
        trace = dict(arrays)
    env = traffic_environment(trace)

    def step(state, inputs):
        state, timestep = env.step_with_arrivals(state, *inputs)
        return state, (state._replace(key=None), timestep)

    @jax.jit
    def play(actions, arrivals):
        state, first = env.reset(jax.random.key(0))
        return first, jax.lax.scan(step, state, (actions, arrivals))[1]

    arrivals = Arrivals(
        *(jnp.asarray(trace[f"arrive_{name}"], jnp.int32) for name in ("car", "path"))
    )
    first, (states, timesteps) = play(jnp.asarray(trace["actions"], jnp.int32), arrivals)
    view = np.concatenate([first.observation.agents_view[None], timesteps.observation.agents_view])
    np.testing.assert_allclose(view, trace["obs"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(timesteps.reward, trace["rewards"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(timesteps.extras["success"], trace["success"])
    np.testing.assert_array_equal(timesteps.extras["alive"], trace["alive"])
    assert not timesteps.last().any()
    for field, name in [
        ("alive", "alive"),
        ("wait", "wait"),
        ("last_action", "last_act"),
        ("route", "route_id"),
        ("route_position", "route_pos"),
        ("location", "car_loc"),
        ("completed", "completed"),
    ]:
        np.testing.assert_array_equal(getattr(states, field), trace[name], err_msg=field)
