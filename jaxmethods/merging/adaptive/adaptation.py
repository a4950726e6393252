r"""What test-time adaptation has in common: inputs without labels, heads, entropy.

    L = sum_t mean_x H(softmax(logits_t(x))),      H(p) = -sum_c p_c log p_c

Wang et al., "Tent", ICLR 2021 (arXiv 2006.10726); for merging in AdaMerging (arXiv 2310.02575).
No function here or in what builds on it takes a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.merging.static.trees import compute_dtype
from jaxmethods.numerics.predictions import right


class Unlabeled(NamedTuple):
    """Inputs of T tasks; tasks with fewer than n are padded at the end."""

    inputs: jax.Array
    """[T, n, ...]"""
    counts: jax.Array
    """[T] int32: how many of each task are real."""


class Heads(NamedTuple):
    """Frozen classifiers of T tasks, padded to the largest number of classes C."""

    weights: jax.Array
    """[T, C, P]; zeros where padded."""
    classes: jax.Array
    """[T, C] bool: which rows are classes of the task."""


def unlabeled(inputs: Sequence[jax.Array]) -> Unlabeled:
    """Puts tasks' inputs [n_t, ...] into one array, padded with zeros."""
    counts = [len(x) for x in inputs]
    if not inputs or min(counts) == 0:
        raise ValueError("inputs: expected at least one task, and one input of each")
    longest = max(counts)
    padded = [jnp.pad(x, [(0, longest - len(x)), *[(0, 0)] * (x.ndim - 1)]) for x in inputs]
    return Unlabeled(jnp.stack(padded), jnp.asarray(counts, jnp.int32))


def stack_heads(heads: Sequence[jax.Array]) -> Heads:
    """Puts tasks' heads [C_t, P] into one array, padded with zeros."""
    widths = sorted({head.shape[1] for head in heads})
    if len(widths) != 1:
        raise ValueError(f"heads: expected one width of features, got {widths}")
    sizes = np.array([len(head) for head in heads])
    padded = [jnp.pad(head, [(0, sizes.max() - len(head)), (0, 0)]) for head in heads]
    return Heads(jnp.stack(padded), jnp.asarray(np.arange(sizes.max()) < sizes[:, None]))


def draw(key: jax.Array, data: Unlabeled, size: int) -> jax.Array:
    """[T, size, ...]: a random batch of every task, without repetition within it.

    Raises:
        ValueError: size is larger than n. (A task with fewer real inputs than that repeats some.)
    """
    return take(data.inputs, draw_indices(key, data, size))


def draw_indices(key: jax.Array, data: Unlabeled, size: int) -> jax.Array:
    """[T, size] int32: which inputs `draw` takes."""
    tasks, longest = data.inputs.shape[:2]
    if size > longest:
        raise ValueError(f"batch_size: expected at most the {longest} inputs there are, got {size}")
    score = jax.random.uniform(key, (tasks, longest), jnp.float32)
    score = jnp.where(jnp.arange(longest) < data.counts[:, None], score, -1.0)
    indices = jax.lax.top_k(score, size)[1]
    return indices % data.counts[:, None]


def take(values: jax.Array, indices: jax.Array) -> jax.Array:
    """values [T, n, ...] at indices [T, b] -> [T, b, ...]"""
    return jax.vmap(lambda one, index: one[index])(values, indices)


def entropy(
    logits: jax.Array, classes: jax.Array | None = None, epsilon: float | None = None
) -> jax.Array:
    """-sum_c p_c log p_c over the last axis, finite also where probabilities underflow.

    Args:
        logits: [..., C] float.
        classes: bool, broadcasts to the logits; others don't take part.
        epsilon: None for the exact value; otherwise log(p + epsilon), as some implementations do.
    """
    logits = logits.astype(compute_dtype(logits))
    if classes is not None:
        logits = jnp.where(classes, logits, -jnp.inf)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    # Where p is 0, log p may be -inf: left out before the product, so that gradients stay finite.
    log = jnp.where(p > 0, log_p, 0.0) if epsilon is None else jnp.log(p + epsilon)
    return -jnp.sum(p * log, axis=-1)


def objective(
    logits: jax.Array,
    classes: jax.Array | None = None,
    epsilon: float | None = None,
    diversity: float = 0.0,
) -> jax.Array:
    """mean_x H(p(x)) - diversity * H(mean_x p(x)) of every task.

    The second term is not in the merging papers (diversity 0). It is information maximization
    (Liang et al., "SHOT", ICML 2020, arXiv 2002.08546), which keeps a weak start from giving one
    answer to everything: the entropy's trivial minimum.

    Args:
        logits: [T, b, C].
        classes: bool, broadcasts to the logits; others don't take part.
        epsilon: see `entropy`.
        diversity: weight of the second term, static.

    Returns:
        [T] nats, float32 at least.
    """
    value = jnp.mean(entropy(logits, classes, epsilon), axis=-1)
    if diversity == 0.0:
        return value
    logits = logits.astype(compute_dtype(logits))
    if classes is not None:
        logits = jnp.where(classes, logits, -jnp.inf)
    mean = jnp.mean(jax.nn.softmax(logits, axis=-1), axis=-2)
    # log 0 is left out before the product, so that gradients of padded classes are 0.
    log = jnp.log(jnp.where(mean > 0, mean, 1.0))
    return value + diversity * jnp.sum(mean * log, axis=-1)


def classify(features: jax.Array, heads: Heads, logit_scale: jax.Array) -> jax.Array:
    """exp(s) normalize(features) head_t^T: features [T, b, P] -> logits [T, b, C].

    Padded classes have logit -inf. Computed in float32 at least: squares of float16 overflow.
    """
    dtype = compute_dtype(features, heads.weights)
    features, weights = features.astype(dtype), heads.weights.astype(dtype)
    norms = jnp.linalg.norm(features, axis=-1, keepdims=True)
    units = features / jnp.where(norms > 0, norms, 1)
    logits = jnp.exp(logit_scale) * jnp.einsum("tbp,tcp->tbc", units, weights)  # [T, b, C]
    return jnp.where(heads.classes[:, None], logits, -jnp.inf)


def accuracy(logits: jax.Array, labels: jax.Array, counts: jax.Array) -> jax.Array:
    """[T]: share of the first counts_t of each task whose largest logit is the label's.

    Args:
        logits: [T, n, C].
        labels: [T, n] int.
        counts: [T] int.
    """
    real = jnp.arange(labels.shape[1]) < counts[:, None]
    correct = jnp.sum(right(logits, labels) & real, axis=1, dtype=jnp.float32)
    return correct / counts.astype(jnp.float32)
