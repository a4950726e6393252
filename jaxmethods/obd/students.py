"""Students: policies trained from scratch on a synthetic set, many at once in one program.

A student takes full-batch steps on the cloning loss l_BC (see `objectives`) from a fresh
initialization, with fresh action noise at every step. The optimizer is built once and its state
lives through all steps, so that momentum and Adam are what their names say.

Lei, Zhang and Tao, NeurIPS 2024, arXiv 2410.22728, sections 5.1 and 5.3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxmethods.method import gradient_step
from jaxmethods.obd.objectives import Sample, bc_loss
from jaxmethods.obd.types import SynSet
from jaxmethods.offline_rl.policies import Policy, policy_sample, tanh_gaussian
from jaxmethods.offline_rl.types import OfflineData

OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "sgd": optax.sgd(0.1),
    "sgdm": optax.sgd(0.1, momentum=0.9),
    "adam": optax.adam(1e-3),
    "adamw": optax.adamw(1e-3, weight_decay=1e-2),
}
"""The paper's cross table names these optimizers; its rates, and the ones here, are the usual."""


def train_students(
    key: jax.Array,
    syn: SynSet,
    policy: Policy | None = None,
    n_students: int = 10,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 100,
    noise: float = 1.0,
) -> Any:
    """Trains `n_students` students on one set, vmapped.

    Args:
        key: [] typed random key; student k depends on the k-th of its splits only.
        syn: [N, S] normalized states and [N, A] actions.
        policy: architecture; by default the paper's.
        n_students: K, static.
        optimizer: by default SGD with the paper's rate 0.1.
        steps: static.
        noise: scale of the action noise; 0 clones deterministic actions.

    Returns:
        The policy's parameters with leading axis [K].
    """
    policy = tanh_gaussian() if policy is None else policy
    optimizer = optax.sgd(0.1) if optimizer is None else optimizer

    def train(key: jax.Array) -> Any:
        return train_student(key, syn, policy, optimizer, steps, noise)

    return jax.vmap(train)(jax.random.split(key, n_students))


def train_student(
    key: jax.Array,
    syn: SynSet,
    policy: Policy,
    optimizer: optax.GradientTransformation,
    steps: int,
    noise: float = 1.0,
) -> Any:
    """One student, trained from scratch.

    Args:
        key: [] typed random key of its initial parameters and noise.
        syn: the set it clones.
        policy: its architecture.
        optimizer: from optax.
        steps: full-batch steps, static.
        noise: standard deviation of the actions' noise.

    Returns:
        Its parameters.
    """
    init_key, noise_key = jax.random.split(key)
    params = policy.init(init_key, syn.states.shape[-1], syn.actions.shape[-1])

    def step(carry: tuple[Any, Any], key: jax.Array) -> tuple[tuple[Any, Any], None]:
        params, moments = carry
        drawn = noise * jax.random.normal(key, syn.actions.shape)
        gradient = jax.grad(bc_loss)(params, syn, drawn, policy.sample)
        return gradient_step(optimizer, gradient, moments, params), None

    start = (params, optimizer.init(params))
    return jax.lax.scan(step, start, jax.random.split(noise_key, steps))[0][0]


def cross_optimizers(
    key: jax.Array,
    syn: SynSet,
    optimizers: Sequence[optax.GradientTransformation],
    policy: Policy | None = None,
    n_students: int = 10,
    steps: int = 500,
) -> Any:
    """Students of every optimizer in one program, leaves [len(optimizers), K, ...].

    Students of the same number start from the same parameters under every optimizer.

    Args:
        key: [] typed random key.
        syn: the set they clone.
        optimizers: from optax.
        policy: the architecture; None: the paper's.
        n_students: K of every optimizer, static.
        steps: full-batch steps, static.

    Returns:
        Parameters, leaves [len(optimizers), K, ...].
    """

    def train(index: jax.Array) -> Any:
        chosen = selected(optimizers, index)
        return train_students(key, syn, policy, n_students, chosen, steps)

    return jax.vmap(train)(jnp.arange(len(optimizers)))


def selected(
    optimizers: Sequence[optax.GradientTransformation], index: jax.Array
) -> optax.GradientTransformation:
    """The `index`-th optimizer, where `index` [] is traced: an optimizer becomes an axis.

    All of them are updated and one is used, which costs little beside a gradient.
    """

    def init(params: Any) -> tuple:
        return tuple(optimizer.init(params) for optimizer in optimizers)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, tuple]:
        results = [
            optimizer.update(updates, own, params)
            for optimizer, own in zip(optimizers, state, strict=True)
        ]
        changes = [change for change, _ in results]
        change = jax.tree.map(lambda *leaves: jnp.stack(leaves)[index], *changes)
        return change, tuple(own for _, own in results)

    return optax.GradientTransformation(init, update)


def ensemble_mode(policy: Policy) -> Callable[[Any, jax.Array], jax.Array]:
    """(params [K], states [..., S]) -> the mean of the students' deterministic actions."""

    def mode(params: Any, states: jax.Array) -> jax.Array:
        return jnp.mean(jax.vmap(policy.mode, (0, None))(params, states), axis=0)

    return mode


def offline_loss(
    key: jax.Array,
    params: Any,
    data: OfflineData,
    sample: Sample = policy_sample,
    chunk: int = 4096,
) -> jax.Array:
    """Mean squared error of one student's sampled actions against all of the data's.

    Rows are visited `chunk` at a time, so that memory doesn't grow with the data.

    Args:
        key: [] typed random key of the actions' noise.
        params: of the student.
        data: L rows.
        sample: (params, states, noise) -> sampled actions; static.
        chunk: rows at a time, static.

    Returns:
        [] float32.
    """
    rows = len(data.states)
    starts = jnp.arange(0, rows, chunk)

    def add(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        index = start + jnp.arange(chunk)
        inside = index < rows
        index = jnp.minimum(index, rows - 1)
        actions = data.actions[index]
        noise = jax.random.normal(jax.random.fold_in(key, start), actions.shape)
        error = jnp.square(sample(params, data.states[index], noise) - actions)
        return total + jnp.sum(jnp.where(inside[:, None], error, 0.0)), None

    total, _ = jax.lax.scan(add, jnp.zeros(()), starts)
    return total / data.actions.size
