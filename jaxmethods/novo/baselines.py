"""What norm voting is compared with; they tell whether selection does anything.

Norms are [n, C, HL] with a mask [n, C] of the candidates there are; labels are [n]. Predictions are
[n] int32 with ties to the first candidate.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from jaxmethods.novo.heads import Heads, correct_counts, largest_of, select_heads


def most_likely(log_likelihood: jax.Array, mask: jax.Array) -> jax.Array:
    """The candidate with the largest log-likelihood [n, C]."""
    return largest_of(log_likelihood, mask)


def single_best(counts: jax.Array) -> Heads:
    """The one head with the largest count in either direction (the first of equals)."""
    flat = jnp.argmax(counts.reshape(-1))
    mask = (jnp.arange(counts.size) == flat).reshape(counts.shape)
    return Heads(mask[0], mask[1], jnp.bool_(True))


def all_heads(counts: jax.Array) -> Heads:
    """No selection: every head votes, in the direction it is better at."""
    return select_heads(counts, 0.0, rule="paper")


def random_heads(key: jax.Array, total: int, largest: jax.Array, smallest: jax.Array) -> Heads:
    """As many voters of each kind as were chosen, but at random, without replacement.

    Args:
        key: [] typed random key.
        total: HL, static.
        largest: [] int32, heads that vote for the largest norm.
        smallest: [] int32, others that vote for the smallest.

    Returns:
        Masks [HL] bool.
    """
    place = jax.random.permutation(key, total)
    max_mask = place < largest
    min_mask = (place >= largest) & (place < largest + smallest)
    return Heads(max_mask, min_mask, jnp.any(max_mask | min_mask))


def majority(labels: jax.Array, mask: jax.Array) -> jax.Array:
    """The label that is most frequent among labeled questions, for questions with this mask."""
    counts = jnp.bincount(labels, length=mask.shape[-1])
    return largest_of(jnp.broadcast_to(counts, mask.shape), mask)


def chance(mask: jax.Array) -> jax.Array:
    """The expected accuracy of a uniform choice."""
    return jnp.mean(1.0 / jnp.sum(mask, axis=-1))


def probe(
    norms: jax.Array, mask: jax.Array, labels: jax.Array, penalty: float = 1.0, steps: int = 60
) -> jax.Array:
    """A linear probe on norms centered within each question.

    Minimizes, over the weights w, the cross-entropy of softmax_c(w . x_c) plus penalty / 2 |w|^2 by
    L-BFGS, with x standardized over all candidates.

    Args:
        norms: [n, C, HL].
        mask: [n, C] bool.
        labels: [n] int.
        penalty: of |w|^2 / 2.
        steps: of L-BFGS, static.

    Returns:
        w [HL], for standardized norms.
    """
    x = standardize(norms, mask)

    def loss(weights: jax.Array) -> jax.Array:
        logits = jnp.where(mask, x @ weights, -jnp.inf)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.sum(losses) + 0.5 * penalty * jnp.sum(weights**2)

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        weights, state = carry
        value, gradient = value_and_grad(weights, state=state)
        updates, state = solver.update(
            gradient, state, weights, value=value, grad=gradient, value_fn=loss
        )
        return (optax.apply_updates(weights, updates), state), None

    start = jnp.zeros(x.shape[-1], x.dtype)
    (weights, _), _ = jax.lax.scan(step, (start, solver.init(start)), None, length=steps)
    return weights


def probe_predict(weights: jax.Array, norms: jax.Array, mask: jax.Array) -> jax.Array:
    """The candidate with the largest score of the probe."""
    return largest_of(standardize(norms, mask) @ weights, mask)


def standardize(norms: jax.Array, mask: jax.Array) -> jax.Array:
    """Norms minus their question's mean, over each head's standard deviation; 0 where masked."""
    there = mask[..., None]
    norms = norms.astype(jnp.promote_types(norms.dtype, jnp.float32))
    mean = jnp.sum(jnp.where(there, norms, 0), -2, keepdims=True) / jnp.sum(
        there, -2, keepdims=True
    )
    centered = jnp.where(there, norms - mean, 0)
    variance = jnp.sum(centered**2, axis=(0, 1)) / jnp.maximum(jnp.sum(mask), 1)
    return centered / jnp.sqrt(variance + 1e-12)


def accuracy(predictions: jax.Array, labels: jax.Array) -> jax.Array:
    """The share of predictions that are right."""
    return jnp.mean(predictions == labels)


def best_on_test(norms: jax.Array, mask: jax.Array, labels: jax.Array) -> jax.Array:
    """Accuracy of the best head, chosen on the very questions: a ceiling, not a method."""
    return jnp.max(correct_counts(norms, mask, labels)) / labels.shape[0]
