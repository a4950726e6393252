"""The shape of every trained method: two pure functions.

    method = commformer.trainer(env, network, graph, ppo, updates)  # from frozen configs
    state = method.init(key, batch)
    state, metrics = method.step(state, batch)  # jit, vmap, scan, shard it: it is pure

The random key, optimizer state and counters live in `state`; data is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import jax
import optax

State: TypeAlias = Any
"""A pytree of arrays."""
Batch: TypeAlias = Any
"""A whole device-resident dataset, a minibatch, or `None` for a simulator; a pytree of arrays."""
Metrics: TypeAlias = Mapping[str, jax.Array]
"""Flat names ("loss", "success_rate") to finite scalars."""


class Objective(NamedTuple):
    """What a step goes down on, as a function, for those who watch a training."""

    params: Any
    """What is trained."""
    loss: Callable[[Any, jax.Array], jax.Array]
    """(params, typed random key) -> the loss [] of a batch that the key draws; differentiable."""


class Method(NamedTuple):
    """A training method as two pure functions."""

    init: Callable[[jax.Array, Batch], State]
    """(typed random key, batch) -> state."""
    step: Callable[[State, Batch], tuple[State, Metrics]]
    """(state, batch) -> (next state, metrics of this step)."""
    objective: Callable[[State, Batch], Objective] | None = None
    """(state, batch) -> the loss of the next step; None: the method can't be watched."""


def made_once(make: Callable[..., Method], *arguments: Any) -> Method:
    """`make(*arguments)`, the same object for equal arguments.

    JAX finds a program again by the function that it was traced from, so that runs of one config in
    one process, and stages with equal settings, trace and compile their steps once.

    Args:
        make: a function of a module, that makes a method from frozen configs.
        arguments: what it is called with; hashable.

    Returns:
        The method.
    """
    return _made(make, *arguments)


# Frozen configs are hashable, which type checkers don't know.
_made: Any = lru_cache(maxsize=32)(lambda make, *arguments: make(*arguments))


def gradient_step(
    optimizer: optax.GradientTransformation, gradient: Any, moments: Any, params: Any
) -> tuple[Any, Any]:
    """One update of an optax optimizer; dtypes stay those of `params`.

    Args:
        optimizer: the transformation.
        gradient: in the structure of `params`.
        moments: the optimizer's state.
        params: what is updated.

    Returns:
        (params, moments) after it.
    """
    updates, moments = optimizer.update(gradient, moments, params)
    return optax.apply_updates(params, updates), moments
