"""The hot path of training: chunks of steps on the device.

A chunk is one XLA program: `log_every` calls of `Method.step` in a device-side loop, all
seeds vmapped, the state donated.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.config import RunConfig, seeds_of
from jaxmethods.devices.sharding import replicated
from jaxmethods.method import Batch, Method, State
from jaxmethods.numerics.keys import named

PROGRAMS = 32
"""Programs that are kept: of a sequence of tasks with a dozen learners every task finds them."""


class Chunk(NamedTuple):
    """The compiled hot path of a stage."""

    run: Callable[[State, Batch, jax.Array], tuple[State, Any]]
    """(state, batch, count) -> (state after `count` steps, metrics [length, seeds])."""
    compile_seconds: float


def seed_keys(config: RunConfig, name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Keys [seeds] for initialization and for evaluation; seed s alone gives the same keys.

    `name`: of the stage that they are for; None: the run's own.
    """
    seeds = jnp.arange(seeds_of(config)) + config.seed

    def split(seed: jax.Array) -> jax.Array:
        key = jax.random.key(seed)
        return jax.random.split(key if name is None else named(key, name))

    keys = jax.vmap(split)(seeds)
    return keys[:, 0], keys[:, 1]


def init_state(
    method: Method,
    keys: jax.Array,
    batch: Batch,
    place: Callable[[State], Any] = lambda state: None,
    batch_axes: Any = None,
) -> State:
    """Initial states of all seeds, with a leading seed axis and no weakly typed leaf.

    Args:
        method: what is trained.
        keys: [seeds] typed random keys.
        batch: the data.
        place: the abstract state -> shardings of its leaves; by default JAX decides.
        batch_axes: which leaves of the batch have an axis of seeds, as `jax.vmap`'s `in_axes`.

    Returns:
        The method's state, leaves [seeds, ...], on their devices.
    """

    init = _init(method, batch_axes)
    placed = place(jax.eval_shape(init, keys, batch))
    # Runs once, so that optimizing it would take longer than it saves.
    quick = {"xla_backend_optimization_level": "0"} if jax.default_backend() == "cpu" else None
    return jax.jit(init, out_shardings=placed, compiler_options=quick)(keys, batch)


def abstract_state(
    method: Method, keys: jax.Array, batch: Batch, place: Callable[[State], Any], batch_axes: Any
) -> State:
    """What `init_state` would return, as shapes, dtypes and shardings: nothing is compiled or run.

    Args:
        method: what was trained.
        keys: [seeds] typed random keys.
        batch: the data.
        place: the abstract state -> shardings of its leaves.
        batch_axes: as in `init_state`.

    Returns:
        The structure that a checkpoint is restored into.
    """
    state = jax.eval_shape(_init(method, batch_axes), keys, batch)

    def placed(leaf: jax.ShapeDtypeStruct, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(placed, state, place(state))


def _init(method: Method, batch_axes: Any) -> Callable[[jax.Array, Batch], State]:
    return _kept_init(method, *_hashable(batch_axes))


@lru_cache(maxsize=PROGRAMS)
def _kept_init(method: Method, axes: tuple, structure: Any) -> Callable[[jax.Array, Batch], State]:
    """One function for a method, by which JAX finds its program again."""
    batch_axes = jax.tree.unflatten(structure, axes)

    def init(keys: jax.Array, batch: Batch) -> State:
        state = jax.vmap(method.init, (0, batch_axes))(keys, batch)
        # A weak type would turn strong after one step, which would be a second trace.
        return jax.tree.map(_strongly_typed, state)

    return init


def compile_chunk(
    method: Method, state: State, batch: Batch, length: int, batch_axes: Any = None
) -> Chunk:
    """Compiles up to `length` steps of all seeds into one program; `step` is traced once.

    The state keeps its shardings; metrics come out whole on every device.

    Args:
        method: what is trained.
        state: leaves [seeds, ...], on their devices.
        batch: the data.
        length: the most steps of a chunk.
        batch_axes: as in `init_state`.

    Returns:
        The program, and the seconds that compiling it took.
    """
    start = time.perf_counter()
    leaves, structure = _hashable(batch_axes)
    placed, places = jax.tree.flatten(jax.tree.map(lambda leaf: leaf.sharding, state))
    whole = replicated(state)
    jitted = _program(method, length, leaves, structure, tuple(placed), places, whole)
    compiled = jitted.lower(state, batch, jax.ShapeDtypeStruct((), jnp.int32)).compile()
    return Chunk(compiled, time.perf_counter() - start)


def _hashable(batch_axes: Any) -> tuple[tuple, Any]:
    """Axes as a tuple of leaves, None among them, and their structure."""
    leaves, structure = jax.tree.flatten(batch_axes, is_leaf=lambda axis: axis is None)
    return tuple(leaves), structure


@lru_cache(maxsize=PROGRAMS)
def _program(
    method: Method, length: int, axes: tuple, structure: Any, placed: tuple, places: Any, whole: Any
) -> Any:
    """The jitted chunk of a method: stages that share a method and shapes share a program."""
    batch_axes = jax.tree.unflatten(structure, axes)
    step = jax.jit(jax.vmap(method.step, (0, batch_axes)))

    def chunk(state: State, batch: Batch, count: jax.Array) -> tuple[State, Any]:
        shapes = jax.eval_shape(step, state, batch)[1]
        buffer = jax.tree.map(lambda m: jnp.zeros((length, *m.shape), m.dtype), shapes)

        def one(index: jax.Array, carry: tuple[State, Any]) -> tuple[State, Any]:
            state, buffer = carry
            state, metrics = step(state, batch)
            return state, jax.tree.map(lambda b, m: b.at[index].set(m), buffer, metrics)

        # A traced bound: the last chunk may be shorter and still be the same program.
        return jax.lax.fori_loop(0, count, one, (state, buffer))

    shardings = jax.tree.unflatten(places, placed)
    return jax.jit(chunk, donate_argnums=0, out_shardings=(shardings, whole))


def _strongly_typed(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf
    return jax.lax.convert_element_type(leaf, leaf.dtype)
