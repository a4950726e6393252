"""The model linearized at its parameters, and what its kernel predicts.

    f_lin(theta + d, x) = f(theta, x) + J_x d

Training is lazy where f and f_lin agree at the final parameters (Chizat, Oyallon, Bach 2019).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxmethods.interpret import trees
from jaxmethods.numerics.precision import wide


def linearized(apply: Callable[[Any, Any], jax.Array], center: Any) -> Callable[..., jax.Array]:
    """(params, inputs) -> f_lin around the parameters `center`, outputs shaped as `apply`'s."""

    def predict(params: Any, inputs: Any) -> jax.Array:
        at = trees.floats(center)
        step = jax.tree.map(jnp.subtract, trees.floats(params), at)
        outputs = lambda vector: apply(trees.merge(center, vector), inputs)  # noqa: E731
        value, tangent = jax.jvp(outputs, (at,), (step,))
        return value + tangent

    return predict


def laziness(
    apply: Callable[[Any, Any], jax.Array], before: Any, after: Any, inputs: Any
) -> jax.Array:
    """|f - f_lin| / |f - f_0| at the final parameters: 0 for a linear model, [].

    Args:
        apply: (params, inputs) -> outputs.
        before: initial parameters, around which the model is linearized.
        after: final parameters.
        inputs: examples.

    Returns:
        []; NaN where nothing has changed.
    """
    final, first = wide(apply(after, inputs)), wide(apply(before, inputs))
    apart = final - linearized(apply, before)(after, inputs)
    return jnp.linalg.norm(apart) / jnp.linalg.norm(final - first)


def kernel_regression(
    kernel: jax.Array, cross: jax.Array, targets: jax.Array, ridge: float = 1e-6
) -> jax.Array:
    """Predictions cross (K + ridge mean(diag K) I)^-1 targets.

    Args:
        kernel: K of the training examples [N, N].
        cross: kernel between new and training examples [M, N].
        targets: [N, C].
        ridge: relative to the mean of K's diagonal.

    Returns:
        [M, C].
    """
    kernel, cross, targets = wide(kernel), wide(cross), wide(targets)
    amount = ridge * jnp.mean(jnp.diag(kernel))
    return cross @ jnp.linalg.solve(kernel + amount * jnp.eye(len(kernel)), targets)
