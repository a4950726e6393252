"""Losses per example, with what curvature needs of them in closed form.

For softmax cross entropy with probabilities p, the Hessian in the outputs is

    diag(p) - p p^T,    (diag(p) - p p^T) u = p * (u - p . u),

so a product with it needs no array larger than the logits (Schraudolph, "Fast curvature
matrix-vector products", 2002). A loss is given as one of the values below, or as any callable
(outputs, targets) -> [N]; its Hessian is then differentiated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.interpret.trees import PRECISE

IGNORED = -1
"""A target that has no loss, such as padding of a text."""


class Loss(NamedTuple):
    """What the diagnostics ask of a loss; hashable, hence a static argument."""

    value: Callable[[Any, Any], jax.Array]
    """(outputs [N, ...], targets [N, ...]) -> losses [N]."""
    hessian: Callable[[Any, Any, Any], Any] | None = None
    """(outputs, targets, tangents as outputs) -> every example's output Hessian times its tangent;
    None: differentiate `value`."""
    sample: Callable[[jax.Array, Any, Any], Any] | None = None
    """(key, outputs, targets) -> targets drawn from the model's own distribution."""
    counted: Callable[[Any], jax.Array] | None = None
    """(targets) -> [N] bool: examples that have a loss at all; the others are in no mean. None: all
    have one."""


def as_loss(loss: Loss | Callable[[Any, Any], jax.Array]) -> Loss:
    """A `Loss` from itself or from a callable (outputs, targets) -> [N]."""
    return loss if isinstance(loss, Loss) else Loss(loss)


def output_hessian(loss: Loss, outputs: Any, targets: Any, tangents: Any) -> Any:
    """Products of every example's Hessian in its outputs with its tangent.

    Args:
        loss: with or without a closed form.
        outputs: [N, ...].
        targets: of the loss.
        tangents: as outputs.

    Returns:
        As outputs.
    """
    if loss.hessian is not None:
        return loss.hessian(outputs, targets, tangents)
    gradient = jax.grad(lambda outputs: jnp.sum(loss.value(outputs, targets)))
    return jax.jvp(gradient, (outputs,), (tangents,))[1]


def _token_weights(targets: jax.Array, dtype: Any) -> jax.Array:
    """[N, ...]: one over the number of targets of an example that are not ignored."""
    there = (targets >= 0).astype(dtype)
    axes = tuple(range(1, targets.ndim))
    return there / jnp.maximum(jnp.sum(there, axes, keepdims=True), 1)


def _has_target(targets: jax.Array) -> jax.Array:
    """[N] bool: a text that is padding throughout has no loss, which is not a loss of 0."""
    return jnp.any(targets >= 0, tuple(range(1, targets.ndim)))


def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    # Not by picking an entry of log_softmax: that keeps a second array as large as the logits.
    own = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], -1)[..., 0]
    losses = (jax.nn.logsumexp(logits, axis=-1) - own) * _token_weights(targets, logits.dtype)
    return jnp.sum(losses, tuple(range(1, targets.ndim)))


def _cross_entropy_hessian(logits: jax.Array, targets: jax.Array, tangents: jax.Array) -> jax.Array:
    p = jax.nn.softmax(logits, axis=-1)
    weights = _token_weights(targets, logits.dtype)[..., None]
    # A product of rows, not sum(p * tangents): XLA's fusions on CPU (jax 0.10) give wrong numbers
    # for p * (u - sum(p * u)) vectorized over four or more u of a thousand rows.
    along = jnp.einsum("...c,...c->...", p, tangents, precision=PRECISE)
    return weights * p * (tangents - along[..., None])


def _sample_labels(key: jax.Array, logits: jax.Array, targets: jax.Array) -> jax.Array:
    drawn = jax.random.categorical(key, logits, axis=-1).astype(targets.dtype)
    return jnp.where(targets >= 0, drawn, targets)


def _squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    losses = optax.squared_error(outputs, targets) / 2
    return jnp.sum(losses, tuple(range(1, losses.ndim)))


def _identity(outputs: Any, targets: Any, tangents: Any) -> Any:
    del outputs, targets
    return tangents


def _sample_normal(key: jax.Array, outputs: jax.Array, targets: jax.Array) -> jax.Array:
    del targets
    return outputs + jax.random.normal(key, outputs.shape, outputs.dtype)


cross_entropy = Loss(_cross_entropy, _cross_entropy_hessian, _sample_labels, _has_target)
"""-log softmax(logits [N, ..., C])[target], the mean over an example's tokens; integer targets
[N, ...], of which negative ones are ignored; an example without any other is in no mean."""
squared_error = Loss(_squared_error, _identity, _sample_normal)
"""|f - y|^2 / 2, the sum over an example's outputs: the negative log-likelihood of unit noise."""
