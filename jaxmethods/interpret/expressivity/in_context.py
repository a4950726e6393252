"""In-context learning of linear regression: an exact construction, and a probe of any model.

One layer of linear self-attention over tokens e_i = (x_i, y_i) and a query (x_q, 0) with

    W_K = W_Q = diag(I, 0),    W_V = (0, 0; W_0, -1),    scale -eta / n

is one step of gradient descent on mean((w . x - y)^2) / 2 from w = 0 (von Oswald et al.,
"Transformers learn in-context by gradient descent", 2023): every token's y is lowered by what the
step predicts for it, so that stacked layers are further steps, and the query's y is minus the
prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.numerics.precision import wide


class LinearAttention(NamedTuple):
    """A layer: tokens E [T, d + 1] -> E + scale V (E W_V) (E W_K E W_Q^T)."""

    query: jax.Array
    """[d + 1, d + 1], as keys and values."""
    key: jax.Array
    value: jax.Array
    scale: jax.Array
    """[]."""


def gradient_step_layer(dimension: int, rate: jax.Array | float, examples: int) -> LinearAttention:
    """The layer that does one step with this rate on n examples in d dimensions."""
    inputs = jnp.diag(jnp.append(jnp.ones(dimension), 0.0))
    target = jnp.diag(jnp.append(jnp.zeros(dimension), 1.0))
    return LinearAttention(inputs, inputs, target, -jnp.asarray(rate) / examples)


def linear_attention(layer: LinearAttention, tokens: jax.Array, context: int) -> jax.Array:
    """Tokens [T, d + 1] after a layer; the first `context` tokens are attended to."""
    seen = tokens[:context]
    scores = (tokens @ layer.query) @ (seen @ layer.key).T  # [T, n], no softmax
    return tokens + layer.scale * scores @ (seen @ layer.value)


def in_context_descent(
    inputs: jax.Array, targets: jax.Array, query: jax.Array, rate: float, layers: int
) -> jax.Array:
    """Predictions at the query behind 0, 1, ..., L layers of the construction.

    Args:
        inputs: [n, d].
        targets: [n].
        query: [d].
        rate: eta.
        layers: L.

    Returns:
        [L + 1].
    """
    inputs, targets, query = wide(inputs), wide(targets), wide(query)
    count, dimension = inputs.shape
    layer = gradient_step_layer(dimension, rate, count)
    context = jnp.concatenate([inputs, targets[:, None]], axis=1)
    tokens = jnp.concatenate([context, jnp.append(query, 0.0)[None]])

    def step(tokens: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return linear_attention(layer, tokens, count), -tokens[-1, -1]

    last, before = jax.lax.scan(step, tokens, None, length=layers)
    return jnp.append(before, -last[-1, -1])


def gradient_descent(inputs: jax.Array, targets: jax.Array, rate: float, steps: int) -> jax.Array:
    """Gradient descent from 0 on mean squared error / 2.

    Args:
        inputs: [n, d].
        targets: [n].
        rate: eta.
        steps: how many.

    Returns:
        Weights before the first and after every step, [steps + 1, d].
    """

    inputs, targets = wide(inputs), wide(targets)

    def step(w: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return w - rate * inputs.T @ (inputs @ w - targets) / len(inputs), w

    last, before = jax.lax.scan(step, jnp.zeros(inputs.shape[1], inputs.dtype), None, length=steps)
    return jnp.concatenate([before, last[None]])


def ridge(inputs: jax.Array, targets: jax.Array, penalty: float) -> jax.Array:
    """Weights [d] that minimize |X w - y|^2 + penalty |w|^2."""
    inputs, targets = wide(inputs), wide(targets)
    gram = inputs.T @ inputs + penalty * jnp.eye(inputs.shape[1], dtype=inputs.dtype)
    return jnp.linalg.solve(gram, inputs.T @ targets)


class Probe(NamedTuple):
    """A model's in-context predictions beside those of known learners."""

    names: tuple[str, ...]
    squared_distance: jax.Array
    """[L], mean over prompts, over the mean square of the learner's predictions."""
    cosine: jax.Array
    """[L], of the predictions over all prompts."""


def probe(
    predict: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    inputs: jax.Array,
    targets: jax.Array,
    queries: jax.Array,
    rate: float = 0.1,
    steps: int = 1,
    penalty: float = 0.1,
) -> Probe:
    """Compares a model with gradient descent, ridge regression and least squares.

    Args:
        predict: (inputs [n, d], targets [n], query [d]) -> prediction [] of the model.
        inputs: prompts [P, n, d].
        targets: [P, n].
        queries: [P, d].
        rate: of gradient descent.
        steps: of gradient descent.
        penalty: of ridge regression.

    Returns:
        Distances and cosines of the three learners, in the order of `names`.
    """

    def learners(x: jax.Array, y: jax.Array, query: jax.Array) -> jax.Array:
        descent = gradient_descent(x, y, rate, steps)[-1]
        x, y = wide(x), wide(y)  # LAPACK has no half precision
        least = jnp.linalg.pinv(x) @ y
        return jnp.stack([descent, ridge(x, y, penalty), least]) @ query

    own = jax.vmap(predict)(inputs, targets, queries)  # [P]
    known = jax.vmap(learners)(inputs, targets, queries).T  # [3, P]
    distance = jnp.mean((known - own) ** 2, axis=1) / jnp.mean(known**2, axis=1)
    lengths = jnp.linalg.norm(known, axis=1) * jnp.linalg.norm(own)
    return Probe(("gradient descent", "ridge", "least squares"), distance, known @ own / lengths)
