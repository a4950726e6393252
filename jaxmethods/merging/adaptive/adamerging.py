r"""AdaMerging: the coefficients of task arithmetic, learned at test time without labels.

    min_Lambda  sum_t mean_x H(softmax(f_t(x; theta(Lambda)))),
    theta(Lambda) = theta_0 + sum_t Lambda_t tau_t       (one Lambda_t, or one for every tensor)

Yang et al., "AdaMerging: Adaptive Model Merging for Multi-Task Learning", ICLR 2024,
arXiv 2310.02575. AdaMerging++ is the same with the task vectors of `ties_split`.

    method = adamerging.adapter(apply, AdaMergingConfig())
    data = adamerging.Batch(base, merging.task_vectors(base, stack), unlabeled, heads)
    state = method.init(key, data)
    state, metrics = jax.jit(method.step)(state, data)
    merged = adamerging.merged(state.coefficients, data, config)

One step merges once, runs all tasks' batches in one vmapped forward pass and takes one backward
pass to theta; the gradient in Lambda_t is its product with tau_t.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.layout import Rule
from jaxmethods.merging.adaptive.adaptation import Unlabeled, draw
from jaxmethods.merging.adaptive.adaptation import objective as entropies
from jaxmethods.merging.config import AdaMergingConfig
from jaxmethods.merging.static.trees import (
    Tree,
    apply_task_vectors,
    compute_dtype,
    is_merged,
    map_with_names,
    number_of_tasks,
)
from jaxmethods.method import Method, Metrics, Objective, gradient_step

RULES = (
    Rule(r"(^|/)task_vectors/", ("fsdp",)),  # [T, ...]
    Rule(r"(^|/)unlabeled/", ("data",)),  # [T, ...]
)
"""How a batch is split: task vectors over `fsdp`, tasks' inputs over `data`."""


class Batch(NamedTuple):
    """What is adapted to what; all of it frozen."""

    base: Tree
    task_vectors: Tree
    """[T, ...] of every leaf."""
    unlabeled: Unlabeled
    heads: Any
    """Whatever `apply` needs to tell tasks apart, with a leading task axis."""


class State(NamedTuple):
    """A pytree of arrays."""

    key: jax.Array
    coefficients: Any
    """[T], or a tree like the base with [T] or, for stacked layers, [T, N]."""
    optimizer: optax.OptState
    step: jax.Array


def adapter(apply: Callable[[Tree, jax.Array, Any], jax.Array], config: AdaMergingConfig) -> Method:
    """Makes the adaptation of a network.

    Args:
        apply: (params, one task's inputs [b, ...], its head) -> logits [b, C]; -inf where a class
            is padding.

    Returns:
        `init(key, batch)` and `step(state, batch)` for a `Batch`.
    """
    optimizer = optax.adam(config.learning_rate)

    def init(key: jax.Array, batch: Batch) -> State:
        coefficients = initial_coefficients(batch.base, number_of_tasks(batch.task_vectors), config)
        return State(key, coefficients, optimizer.init(coefficients), jnp.int32(0))

    def step(state: State, batch: Batch) -> tuple[State, Metrics]:
        key, draw_key = jax.random.split(state.key)
        inputs = draw(draw_key, batch.unlabeled, config.batch_size)
        of_coefficients = partial(loss, batch=batch, inputs=inputs, apply=apply, config=config)
        grad = jax.value_and_grad(of_coefficients, has_aux=True)
        (value, _), gradient = grad(state.coefficients)
        coefficients, moments = gradient_step(
            optimizer, gradient, state.optimizer, state.coefficients
        )
        mean = jnp.mean(jnp.concatenate([c.ravel() for c in jax.tree.leaves(coefficients)]))
        after = State(key, coefficients, moments, state.step + 1)
        return after, {"loss": value, "mean_coefficient": mean}

    def objective(state: State, batch: Batch) -> Objective:
        def watched(coefficients: Any, key: jax.Array) -> jax.Array:
            inputs = draw(key, batch.unlabeled, config.batch_size)
            return loss(coefficients, batch, inputs, apply, config)[0]

        return Objective(state.coefficients, watched)

    return Method(init, step, objective)


def loss(
    coefficients: Any,
    batch: Batch,
    inputs: jax.Array,
    apply: Callable[[Tree, jax.Array, Any], jax.Array],
    config: AdaMergingConfig,
) -> tuple[jax.Array, jax.Array]:
    """The sum over tasks of `adaptation.objective`.

    Args:
        coefficients: Lambda, as the method's state holds it.
        batch: base, task vectors and heads.
        inputs: [T, b, ...] without labels.
        apply: (parameters, inputs [b, ...], the task's head) -> logits [b, C].
        config: which terms; static.

    Returns:
        The sum [], and its terms [T].
    """
    params = merged(coefficients, batch, config)
    logits = jax.vmap(apply, (None, 0, 0))(params, inputs, batch.heads)
    of_tasks = entropies(logits, None, config.entropy_epsilon, config.diversity)
    return jnp.sum(of_tasks), of_tasks


def merged(coefficients: Any, batch: Batch, config: AdaMergingConfig) -> Tree:
    """theta(Lambda), with Lambda clamped to [0, 1] if the config says so."""
    if config.clamp:
        coefficients = jax.tree.map(lambda c: jnp.clip(c, 0.0, 1.0), coefficients)
    return apply_task_vectors(batch.base, batch.task_vectors, coefficients)


def initial_coefficients(base: Tree, tasks: int, config: AdaMergingConfig) -> Any:
    """All `config.initial`: [T], or for every leaf [T] and, where layers are stacked, [T, N]."""
    if not config.layerwise:
        merged = [leaf for leaf in jax.tree.leaves(base) if is_merged(leaf)]
        return jnp.full(tasks, config.initial, compute_dtype(*merged))

    def of_leaf(path: str, leaf: jax.Array) -> jax.Array:
        stacked = config.stacked is not None and re.search(config.stacked, path)
        dtype = compute_dtype(leaf) if is_merged(leaf) else jnp.float32
        return jnp.full((tasks, *leaf.shape[: 1 if stacked else 0]), config.initial, dtype)

    return map_with_names(of_leaf, base)
