"""Control environments, one agent with continuous actions, and episodes played in them.

A control environment is a `jumanji.Environment` whose observation is one array [S] and whose
actions are numbers in [-1, 1] [A]. `time_limit` is its cap on the length of an episode.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.config import nearest
from jaxmethods.envs.control.arm import Arm, reach
from jaxmethods.envs.control.linear import Linear, regulator
from jaxmethods.envs.control.pendulum import Pendulum, swing_up
from jaxmethods.envs.control.point_mass import PointMass, approach
from jaxmethods.envs.finite import finite

CONTROL: dict[str, type] = {
    "arm": Arm,
    "linear": Linear,
    "pendulum": Pendulum,
    "point_mass": PointMass,
}
"""Name in a config to class."""
BRAX = "brax:"
"""Before the name of one of brax's tasks, as in "brax:hopper"."""

Act = Callable[[jax.Array, jax.Array], jax.Array]
"""(typed key, observations [E, S]) -> actions [E, A]."""
CONTROLLERS: dict[str, Callable[[Any], Callable[[jax.Array], jax.Array]]] = {
    "arm": lambda env: reach,
    "linear": regulator,
    "pendulum": lambda env: swing_up,
    "point_mass": lambda env: approach,
}
"""Name to what makes a scripted controller for the environment: observations [..., S] -> actions
[..., A]."""


class Transition(NamedTuple):
    """One step of each of E episodes."""

    observation: jax.Array
    """[E, S] before the step."""
    action: jax.Array
    """[E, A] as executed, in [-1, 1]."""
    reward: jax.Array
    """[E]"""
    next_observation: jax.Array
    """[E, S]"""
    terminal: jax.Array
    """[E] bool: the episode ended by itself at this step."""
    timeout: jax.Array
    """[E] bool: it was cut off at this step."""


def make_control(name: str, **arguments: Any) -> Any:
    """Builds the control environment `name` of `CONTROL`, or brax's task after `BRAX`.

    Raises:
        ValueError: an unknown name or argument, with the nearest right one.
        MissingExtraError: brax is not installed.
    """
    if name.startswith(BRAX):
        # The adapter imports an optional dependency.
        from jaxmethods.envs.adapters.brax_control import BraxControl

        with jax.ensure_compile_time_eval():
            return BraxControl(name.removeprefix(BRAX), **arguments)
    if name not in CONTROL:
        raise ValueError(f"unknown environment {name!r}{nearest(name, CONTROL)}")
    known = list(inspect.signature(CONTROL[name]).parameters)
    for argument in arguments:
        if argument not in known:
            raise ValueError(f"{name}: unknown argument {argument!r}{nearest(argument, known)}")
    with jax.ensure_compile_time_eval():  # jumanji compares bounds of specs, also inside of jit
        return CONTROL[name](**arguments)


def episode_returns(env: Any, act: Act, key: jax.Array, episodes: int) -> jax.Array:
    """Undiscounted returns [E] of one episode in each of E environments.

    Jitted and vmapped over policies (the parameters `act` closes over) it is one program with one
    batched policy call a step; it ends when the last episode does. An episode in which an action,
    an observation or a reward isn't finite ends there, and its return is NaN: comparisons with NaN
    are false, so that a simulator may take what is broken for standing upright.

    Args:
        env: a control environment.
        act: (key, observations [E, S]) -> actions [E, A], clipped to [-1, 1] here.
        key: [] typed random key.
        episodes: E, static.

    Returns:
        [E] float32.
    """
    reset_key, key = jax.random.split(key)
    state, timestep = jax.vmap(env.reset)(jax.random.split(reset_key, episodes))

    def unfinished(carry: tuple) -> jax.Array:
        return jnp.any(carry[3])

    def step(carry: tuple) -> tuple:
        state, observation, key, running, returned = carry
        key, draw = jax.random.split(key)
        action = act(draw, observation)
        state, timestep = jax.vmap(env.step)(state, jnp.clip(action, -1.0, 1.0))
        sound = finite((observation, action, timestep.reward, timestep.observation))
        reward = jnp.where(sound, timestep.reward, jnp.nan)
        returned = returned + jnp.where(running, reward, 0.0)
        running &= sound & ~timestep.last()
        return state, timestep.observation, key, running, returned

    start = (state, timestep.observation, key, jnp.ones(episodes, bool), jnp.zeros(episodes))
    return jax.lax.while_loop(unfinished, step, start)[-1]


def record_episodes(env: Any, act: Act, key: jax.Array, episodes: int) -> Transition:
    """The whole of E episodes of an environment that never terminates, leaves [E, T, ...].

    T is `env.time_limit`. An environment that can terminate would need episodes of unequal
    length, which arrays cannot hold.

    Args:
        env: a control environment that never terminates.
        act: (key, observations [E, S]) -> actions [E, A], clipped to [-1, 1] here.
        key: [] typed random key.
        episodes: E, static.

    Returns:
        Every transition, leaves [E, T, ...]; of flags, `timeout` is set at each episode's last.
    """
    reset_key, key = jax.random.split(key)
    state, timestep = jax.vmap(env.reset)(jax.random.split(reset_key, episodes))

    def step(carry: tuple, _: None) -> tuple[tuple, Transition]:
        state, observation, key = carry
        key, draw = jax.random.split(key)
        action = jnp.clip(act(draw, observation), -1.0, 1.0)
        state, timestep = jax.vmap(env.step)(state, action)
        last = timestep.last()
        terminal = last & (timestep.discount == 0.0)
        taken = Transition(
            observation, action, timestep.reward, timestep.observation, terminal, last & ~terminal
        )
        return (state, timestep.observation, key), taken

    start = (state, timestep.observation, key)
    _, taken = jax.lax.scan(step, start, length=env.time_limit)
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), taken)
