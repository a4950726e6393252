r"""The communication graph: a k-hot matrix of who listens to whom, differentiable in its logits.

Row i of a graph G [N, N] is the receiver i, column j the sender j: G_ij = 1 lets i hear j. With
edge logits alpha, the exact graph selects the k largest entries of every row and the sampled
graph the k largest of alpha + g, g ~ Gumbel(0, 1), which draws k senders without replacement
with weights softmax(alpha). Both carry the straight-through gradient of a row softmax p:

    G = h + (p - stop_gradient(p)),    h = k-hot(alpha),      p = softmax(alpha)           exact
                                       h = k-hot(alpha + g),  p = softmax((alpha + g)/tau) sampled

Hu et al., Learning Multi-Agent Communication from Graph Modeling Perspective, ICLR 2024
(arXiv 2405.08550), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from jaxmethods.commformer.config import GraphConfig
from jaxmethods.numerics.precision import whole_part

NEVER = -1e9
"""Logit of an edge that is not to be selected; finite, so that it can be multiplied by 0."""


def edges_per_agent(n_agents: int, sparsity: float, self_edges: bool = True) -> int:
    """Number of senders of each receiver, k = max(floor(N S), 1).

    Without `self_edges` there are N - 1 senders to choose from, and k is at most that.

    Raises:
        ValueError: `n_agents` below 1, or `sparsity` outside (0, 1].
    """
    if n_agents < 1:
        raise ValueError(f"n_agents must be at least 1, got {n_agents}")
    if not 0.0 < sparsity <= 1.0:
        raise ValueError(f"sparsity must lie in (0, 1], got {sparsity}")
    k = max(whole_part(sparsity, n_agents), 1)
    return k if self_edges else max(min(k, n_agents - 1), 1)


def selectable(logits: jax.Array, self_edges: bool) -> jax.Array:
    """Logits [..., N, N] to select from: without `self_edges` the diagonal never wins."""
    if self_edges:
        return logits
    return jnp.where(jnp.eye(logits.shape[-1], dtype=bool), NEVER, logits)


def initial_logits(key: jax.Array, n_agents: int, noise: float) -> jax.Array:
    """Edge logits alpha [N, N] float32: 1 plus `noise` times a standard normal.

    Without noise all entries tie, and every receiver selects the senders of lowest index.
    """
    return 1.0 + noise * jax.random.normal(key, (n_agents, n_agents), jnp.float32)


def exact_graph(logits: jax.Array, k: int) -> jax.Array:
    """The k largest logits of every row, with the straight-through gradient of softmax(logits).

    Args:
        logits: alpha [..., N, N] float32.
        k: senders per receiver; ties go to the lowest index.

    Returns:
        G [..., N, N], exactly 0 or 1, rows summing to k.

    Raises:
        ValueError: `k` outside [1, N].
    """
    return _straight_through(logits, k)


def sample_graph(
    logits: jax.Array, gumbel: jax.Array, k: int, temperature: float = 1.0
) -> jax.Array:
    """k senders per row drawn without replacement, with the gradient of the relaxed sample.

    Args:
        logits: alpha [..., N, N] float32.
        gumbel: standard Gumbel noise of the same shape; an argument, so that a sample can be
            replayed.
        k: senders per receiver.
        temperature: tau of the relaxed sample; it shapes the gradient, not the selection.

    Returns:
        G [..., N, N], exactly 0 or 1, rows summing to k.

    Raises:
        ValueError: `k` outside [1, N].
    """
    return _straight_through((logits + gumbel) / temperature, k)


def scheduled_graph(
    logits: jax.Array,
    gumbel: jax.Array,
    update: jax.Array | int,
    total_updates: int,
    k: int,
    config: GraphConfig,
) -> jax.Array:
    """The graph of a training forward in update `update`.

    It is alpha itself while `update <= warmup_updates`, then a sampled graph; with `post_stable`
    the exact graph as soon as `update > floor(post_ratio * total_updates)`.

    Args:
        logits: alpha [..., N, N] float32.
        gumbel: standard Gumbel noise of the same shape.
        update: counter of rollout-and-training phases; may be traced.
        total_updates: planned number of updates.
        k: senders per receiver.
        config: `self_edges`, `warmup_updates`, `post_stable` and `post_ratio` are read.

    Returns:
        G [..., N, N]: real-valued during the warm-up, exactly 0 or 1 afterward.
    """
    update = jnp.asarray(update)
    candidates = selectable(logits, config.self_edges)
    graph = jnp.where(update <= config.warmup_updates, logits, sample_graph(candidates, gumbel, k))
    if not config.post_stable:
        return graph
    stable = update > whole_part(config.post_ratio, total_updates)
    return jnp.where(stable, exact_graph(candidates, k), graph)


def fixed_graph(
    kind: Literal["full", "none", "random"],
    key: jax.Array,
    n_agents: int,
    k: int,
    self_edges: bool = True,
) -> jax.Array:
    """A graph that does not learn: every edge, none, or k random senders per receiver.

    Args:
        kind: "full", "none" or "random".
        key: [] typed random key; read by "random" only.
        n_agents: N.
        k: senders that each receiver of a random graph hears, static.
        self_edges: whether an agent may be its own sender in a random graph.

    Returns:
        G [N, N] float32 of 0 and 1. An agent hears itself whatever the graph says.

    Raises:
        ValueError: unknown `kind`, or `k` outside [1, N] for a random graph.
    """
    shape = (n_agents, n_agents)
    if kind == "full":
        return jnp.ones(shape, jnp.float32)
    if kind == "none":
        return jnp.zeros(shape, jnp.float32)
    if kind == "random":
        return _k_hot(selectable(jax.random.uniform(key, shape, jnp.float32), self_edges), k)
    raise ValueError(f"kind must be 'full', 'none' or 'random', got {kind!r}")


def given_graph(edges: Sequence[Sequence[int]], n_agents: int) -> jax.Array:
    """A graph [N, N] float32 from rows of 0 and 1, one a receiver.

    Raises:
        ValueError: `edges` is not N rows of N entries.
    """
    sizes = sorted({len(edges), *(len(row) for row in edges)})
    if sizes != [n_agents]:
        raise ValueError(
            f"edges must be {n_agents} rows of {n_agents} entries, one for each agent, "
            f"got {len(edges)} rows of {sorted({len(row) for row in edges})}"
        )
    return jnp.asarray(edges, jnp.float32)


def edge_types(graph: jax.Array, transpose: bool) -> jax.Array:
    """Type of the edge i <- j, which is its row in the edge embedding: 1 where G_ij >= 1, else 0.

    Args:
        graph: G [..., N, N], 0/1 or real-valued (warm-up).
        transpose: read G_ji in place of G_ij, as the published code does.

    Returns:
        [..., N, N] int32 of 0 and 1; no gradient passes.
    """
    types = (graph >= 1).astype(jnp.int32)
    return jnp.swapaxes(types, -1, -2) if transpose else types


def _straight_through(scores: jax.Array, k: int) -> jax.Array:
    probabilities = jax.nn.softmax(scores, axis=-1)
    # The order matters: the bracket is exactly 0, while h + p rounds before p is taken off again.
    return _k_hot(scores, k) + (probabilities - jax.lax.stop_gradient(probabilities))


def _k_hot(scores: jax.Array, k: int) -> jax.Array:
    n_senders = scores.shape[-1]
    if not 1 <= k <= n_senders:
        raise ValueError(f"k must lie in [1, {n_senders}], the number of senders, got {k}")
    _, selected = jax.lax.top_k(jax.lax.stop_gradient(scores), k)
    return jax.nn.one_hot(selected, n_senders, dtype=scores.dtype).sum(-2)
