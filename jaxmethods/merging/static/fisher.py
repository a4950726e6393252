r"""Fisher merging: an average weighted by how much each parameter matters to its task.

Matena and Raffel, "Merging Models with Fisher-Weighted Averaging", NeurIPS 2022, arXiv 2111.09832.

    theta = sum_t c_t F_t theta_t / sum_t c_t F_t
    F_t = E_x E_{y ~ p_t(.|x)} (d log p_t(y|x) / d theta)^2
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxmethods.merging.static.arithmetic import check_total
from jaxmethods.merging.static.trees import (
    Tree,
    check_same_structure,
    compute_dtype,
    is_merged,
    number_of_tasks,
    sum_over_tasks,
)
from jaxmethods.numerics.compiled import compiled


def fisher_merge(
    stack: Tree,
    fisher: Tree,
    *,
    coefficients: Any = None,
    normalize: bool = True,
    floor: float = 1e-6,
) -> Tree:
    """sum_t c_t F~_t theta_t / sum_t c_t F~_t per entry, with F~ = F + floor.

    Args:
        stack: experts [T, ...].
        fisher: diagonal Fisher information [T, ...], a tree like the stack; not negative.
        coefficients: c [T]; None for 1/T each.
        normalize: multiply c_t by (1/(n_t + 1e-6)) / sum_s 1/(n_s + 1e-6), n_t the L2 norm of F_t
            over all leaves, so that no task wins by the scale of its gradients.
        floor: makes entries that matter to nobody an average.

    Returns:
        A tree like one expert, in the stack's dtypes.

    Raises:
        ValueError: the trees don't match, or coefficients add up to 0 (unless they are traced).
    """
    tasks = number_of_tasks(stack)
    check_same_structure(stack, fisher, "stack", "fisher")
    given = jnp.asarray(1 / tasks if coefficients is None else coefficients)
    check_total(given, tasks)
    norms = _norms(fisher)
    if norms is None:  # nothing is merged
        return jax.tree.map(lambda experts: experts[0], stack)
    weights = jnp.broadcast_to(jnp.asarray(given, norms.dtype), (tasks,))
    if normalize:
        inverse = 1 / (norms + 1e-6)
        weights = weights * inverse / jnp.sum(inverse)
    return _merge(stack, fisher, weights, floor)


@compiled()
def _merge(stack: Tree, fisher: Tree, weights: jax.Array, floor: Any) -> Tree:
    def merge(experts: jax.Array, information: jax.Array) -> jax.Array:
        if not is_merged(experts):
            return experts[0]
        dtype = compute_dtype(experts, information)
        of_task = weights.astype(dtype).reshape(-1, *(1,) * (experts.ndim - 1))
        importance = of_task * (information.astype(dtype) + floor)
        # Shares are formed first: products of tiny importances would underflow.
        total = sum_over_tasks(importance)
        known = total != 0  # with a floor of 0, entries may matter to nobody
        importance = jnp.where(known, importance, of_task)
        importance = importance / jnp.where(known, total, jnp.sum(of_task))
        return sum_over_tasks(importance * experts.astype(dtype)).astype(experts.dtype)

    return jax.tree.map(merge, stack, fisher)


def fisher_diagonal(
    logits: Callable[[Tree, jax.Array], jax.Array],
    params: Tree,
    inputs: jax.Array,
    *,
    chunk: int = 8,
    kind: Literal["exact", "batch"] = "exact",
) -> Tree:
    """The diagonal of one expert's Fisher information, a tree like its parameters.

    Args:
        logits: (params, one chunk of inputs [b, ...]) -> [b, C].
        params: of one expert; all leaves are floating.
        inputs: [n, ...]; n > 0 is a multiple of `chunk`.
        chunk: samples differentiated at once: memory for chunk x C gradients.
        kind: "exact" is E_x sum_y p(y|x) (d log p(y|x))^2, a gradient per sample and class.
            "batch" squares the gradient of sum_x sum_y sqrt(p) log p of a chunk, as a known
            implementation does: cheap, but with cross terms between samples and classes.

    Returns:
        Leaves of float32 or what is wider: sums of squares of bfloat16 stop growing at 256 terms.

    Raises:
        ValueError: n is 0 or no multiple of chunk.
    """
    if chunk < 1 or not len(inputs) or len(inputs) % chunk:
        raise ValueError(f"chunk: expected a divisor of {len(inputs)} inputs, got {chunk}")
    batches = inputs.reshape(-1, chunk, *inputs.shape[1:])  # [n / chunk, chunk, ...]
    of_chunk = _exact if kind == "exact" else _of_batch

    def add(total: Tree, batch: jax.Array) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, of_chunk(logits, params, batch)), None

    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, compute_dtype(leaf)), params)
    total, _ = jax.lax.scan(add, start, batches)
    return jax.tree.map(lambda leaf: leaf / len(inputs), total)


def _exact(logits: Callable, params: Tree, batch: jax.Array) -> Tree:
    def of_sample(sample: jax.Array) -> Tree:
        def log_probabilities(params: Tree) -> jax.Array:
            return _log_softmax(logits(params, sample[None])[0])

        gradients = jax.jacrev(log_probabilities)(params)  # [C, ...] per leaf
        probabilities = jnp.exp(log_probabilities(params))

        def mean_square(gradient: jax.Array) -> jax.Array:
            dtype = compute_dtype(gradient)
            squares = jnp.square(gradient.astype(dtype))
            return jnp.tensordot(probabilities.astype(dtype), squares, 1)

        return jax.tree.map(mean_square, gradients)

    return jax.tree.map(lambda leaf: jnp.sum(leaf, 0), jax.vmap(of_sample)(batch))


def _of_batch(logits: Callable, params: Tree, batch: jax.Array) -> Tree:
    def weighted(params: Tree) -> jax.Array:
        log_p = _log_softmax(logits(params, batch))
        return jnp.sum(jax.lax.stop_gradient(jnp.exp(0.5 * log_p)) * log_p)

    gradients = jax.grad(weighted)(params)
    return jax.tree.map(lambda g: jnp.square(g.astype(compute_dtype(g))), gradients)


def _log_softmax(logits: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits.astype(compute_dtype(logits)))


def _norms(fisher: Tree) -> jax.Array | None:
    """[T]: L2 norms over all leaves; None where none is floating."""
    squares = [
        jnp.sum(jnp.square(leaf.astype(compute_dtype(leaf))), axis=tuple(range(1, leaf.ndim)))
        for leaf in jax.tree.leaves(fisher)
        if is_merged(leaf)
    ]
    return jnp.sqrt(jnp.sum(jnp.stack(squares), axis=0)) if squares else None
