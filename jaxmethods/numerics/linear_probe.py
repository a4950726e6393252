r"""Linear classifiers of frozen features, a whole grid of penalties in one program.

    min_{W, b}  mean_i CE(W^T x_i + b, y_i) + lam/2 |W|^2

`probe_lbfgs` solves it for many lam at once, to convergence. Features stay where they are, every
entry of the grid is a column of the same products. scikit-learn's C is 1 / (lam n).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.numerics.compiled import compiled

EPSILON = 1e-6
MEMORY = 10
"""Pairs of steps and changes of gradient that L-BFGS remembers."""
COPIES = 2**28
"""Bytes that copies of the features may take. Penalties that are searched together (`vmap`) have a
copy each: a search branches, and JAX copies what both branches of a batched condition read."""


class Scaling(NamedTuple):
    """What makes features comparable: less `mean`, over `scale`."""

    mean: jax.Array
    """[D]"""
    scale: jax.Array
    """[D]"""

    def __call__(self, features: jax.Array) -> jax.Array:
        return (features - self.mean) / self.scale


class Probe(NamedTuple):
    """Linear classifiers, one for each entry of a grid."""

    weight: jax.Array
    """[G, D, C]"""
    bias: jax.Array
    """[G, C], centered."""
    objective: jax.Array
    """[G], at the end."""
    gradient: jax.Array
    """[G] largest entry of the gradient at the end."""
    steps: jax.Array
    """[G]"""


def standardizer(features: jax.Array) -> Scaling:
    """What BatchNorm without its affine map does: mean and sqrt(biased variance + 1e-6).

    Args:
        features: [N, D].

    Returns:
        A scaling of features of that width.
    """
    centered = features - jnp.mean(features, axis=0)
    scale = jnp.sqrt(jnp.mean(jnp.square(centered), axis=0) + EPSILON)
    return Scaling(jnp.mean(features, axis=0), scale)


def no_scaling(features: jax.Array) -> Scaling:
    """Features [N, D] as they are."""
    width = features.shape[1]
    return Scaling(jnp.zeros(width, features.dtype), jnp.ones(width, features.dtype))


@compiled("classes", "most_steps")
def probe_lbfgs(
    features: jax.Array,
    labels: jax.Array,
    lams: jax.Array,
    *,
    classes: int,
    tolerance: float = 1e-6,
    most_steps: int = 500,
) -> Probe:
    """The optimum for every lam, by L-BFGS from zero.

    Args:
        features: [N, D], standardized or not.
        labels: [N] integers.
        lams: [G] penalties, positive.
        classes: C; static.
        tolerance: of the largest entry of the gradient.
        most_steps: of each; static.

    Returns:
        The classifiers.
    """
    targets = jax.nn.one_hot(labels, classes, dtype=features.dtype)
    # Zeros that the compiler can't know. On CPU, XLA's products of features with a constant that is
    # made in the same program read memory that was never written (jax 0.10.2 and 0.12, YNN).
    start = (0.0 * (features.T @ targets), jnp.zeros(classes, features.dtype))

    def solve(lam: jax.Array) -> Probe:
        def objective(params: Any) -> jax.Array:
            weight, bias = params
            losses = optax.softmax_cross_entropy(features @ weight + bias, targets)
            return jnp.mean(losses) + lam / 2 * jnp.sum(jnp.square(weight))

        return _minimize(objective, start, tolerance, most_steps)

    copies = max(COPIES // (features.size * features.dtype.itemsize), 1)
    together = max(
        size for size in range(1, len(lams) + 1) if not len(lams) % size and size <= copies
    )
    return jax.lax.map(solve, lams.astype(features.dtype), batch_size=together)


def _minimize(objective: Any, start: Any, tolerance: float, most_steps: int) -> Probe:
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=16, initial_guess_strategy="one")
    solver = optax.lbfgs(memory_size=MEMORY, linesearch=search)
    gradient_at = optax.value_and_grad_from_state(objective)

    def largest(gradient: Any) -> jax.Array:
        return jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(gradient)]))

    def unfinished(carry: Any) -> jax.Array:
        _, _, value, before, gradient, count = carry
        # In float32 the search ends where no step makes the value smaller.
        moving = (count < 2) | (value < before)
        return (count < most_steps) & (gradient > tolerance) & moving

    def advance(carry: Any) -> Any:
        params, state, last, _, _, count = carry
        value, gradient = gradient_at(params, state=state)
        updates, state = solver.update(
            gradient, state, params, value=value, grad=gradient, value_fn=objective
        )
        params = optax.apply_updates(params, updates)
        after, slope = gradient_at(params, state=state)
        del last
        return params, state, after, value, largest(slope), count + 1

    value, slope = jax.value_and_grad(objective)(start)
    carry = (start, solver.init(start), value, value, largest(slope), jnp.zeros((), jnp.int32))
    (weight, bias), _, value, _, gradient, count = jax.lax.while_loop(unfinished, advance, carry)
    return Probe(weight, bias - jnp.mean(bias), value, gradient, count)


def logits(probe: Probe, features: jax.Array) -> jax.Array:
    """What every classifier says of rows of features.

    Args:
        probe: G classifiers.
        features: [N, D], scaled as those it learned from.

    Returns:
        [G, N, C].
    """
    return jnp.einsum("nd,gdc->gnc", features, probe.weight) + probe.bias[:, None]


def accuracies(probe: Probe, features: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of rows that every classifier gets right.

    Args:
        probe: G classifiers.
        features: [N, D], scaled as those it learned from.
        labels: [N].

    Returns:
        [G] float32.
    """
    right = jnp.argmax(logits(probe, features), axis=-1) == labels
    return jnp.mean(right, axis=-1, dtype=jnp.float32)
