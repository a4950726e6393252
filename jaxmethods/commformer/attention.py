r"""Relation-enhanced attention over a communication graph.

With receivers i, senders j, heads of d channels, edge types r_ij in {0, 1} and the graph's mask M
(the graph plus self loops):

    score_ij = (Q_i + a[r_ij]) . (K_j + b[r_ij]) * scale,      (a, b)[r] = split(e_r W + w)
    w = softmax_j(score where M_ij != 0 else -inf),            out_i = sum_j w_ij M_ij V_j

There are only two edge types, so the scores are those of type 0 plus, where r_ij = 1, a term that
splits into one number per receiver and one per sender: with Q' = Q + a[0], K' = K + b[0],
a' = a[1] - a[0] and b' = b[1] - b[0],

    score_ij / scale = Q'_i . K'_j + r_ij (Q'_i . b' + a' . K'_j + a' . b')

and no embedding per edge, [B, N, N, E], is ever made. Multiplying the weights by M (which is 1
where they are not 0, unless the graph is real-valued or counts self edges twice) is what carries
the gradient to the graph.

Hu et al., ICLR 2024 (arXiv 2405.08550), section 3; the relation term is that of Cai and Lam, Graph
Transformer for Graph-to-Sequence Learning, AAAI 2020.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmethods.commformer.config import NetworkConfig
from jaxmethods.commformer.graph import edge_types
from jaxmethods.commformer.layers import Dense

SMALL_TEAM = 8
"""Up to this number of senders, weighted sums are a fused multiply and sum: on CPU 5 to 10 times
faster than batched products of tiny matrices. Beyond, the fusion's intermediates could become
large."""


class Edges(NamedTuple):
    """What attention reads of a graph; one is made for all attentions of a forward pass."""

    types: jax.Array | None
    """r [1 or B, 1, N, N] int32 of 0 and 1; None without relation term."""
    mask: jax.Array | None
    """M [1 or B, 1, N, N] float32; None where every agent hears every agent."""


class Cache(NamedTuple):
    """Keys and values of the agents decoded so far."""

    key: jax.Array
    """[B, H, N, d]"""
    value: jax.Array
    """[B, H, N, d]"""


def has_relation(config: NetworkConfig) -> bool:
    """Whether attention has a relation term; where no graph is read there is none."""
    return config.relation and config.reads_graph


def edges_of(graph: jax.Array, config: NetworkConfig) -> Edges:
    """Edge types and mask of a graph [N, N] or [B, N, N] under the switches of `config`.

    `self_loop="set"` makes the diagonal of the mask 1, `"add"` makes it G_ii + 1.
    """
    if not config.reads_graph:
        return Edges(types=None, mask=None)
    n_agents = graph.shape[-1]
    graph = graph.reshape(-1, 1, n_agents, n_agents)  # [1 or B, 1, N, N]
    eye = jnp.eye(n_agents, dtype=graph.dtype)
    mask = graph + eye if config.self_loop == "add" else graph * (1 - eye) + eye
    types = edge_types(graph, config.relation_transpose) if has_relation(config) else None
    return Edges(types, mask)


class RelationAttention(nn.Module):
    """Multi-head attention between agents along the edges of a graph."""

    config: NetworkConfig
    causal: bool = False
    """Hear only agents of the same or a lower index (the decoder)."""

    def setup(self) -> None:
        def dense(features: int) -> Dense:
            normal = nn.initializers.normal(0.02)
            return Dense(features, kernel_init=normal, dtype=self.config.dtype)

        width = self.config.embed
        self.query = dense(width)
        self.key = dense(width)
        self.value = dense(width)
        if has_relation(self.config):
            self.relation = dense(2 * width)
        self.out = dense(width)
        self.dropout = nn.Dropout(self.config.dropout)

    def __call__(
        self,
        query: jax.Array,
        key_value: jax.Array,
        edges: Edges,
        edge_embedding: jax.Array | None = None,
        deterministic: bool = True,
    ) -> jax.Array:
        """Attends from every agent to every agent it hears.

        Args:
            query: [B, N, E] of the receivers.
            key_value: [B, N, E] of the senders; the same array for self-attention.
            edges: of the graph, from `edges_of`.
            edge_embedding: [2, E], a row for each edge type; needed with the relation term.
            deterministic: False drops the context at rate `dropout` (needs a "dropout" key).

        Returns:
            [B, N, E].
        """
        return self.with_weights(query, key_value, edges, edge_embedding, deterministic)[0]

    def with_weights(
        self,
        query: jax.Array,
        key_value: jax.Array,
        edges: Edges,
        edge_embedding: jax.Array | None = None,
        deterministic: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """`__call__` that also returns the attention weights.

        Args:
            query: [B, N, E] of the receivers.
            key_value: [B, N, E] of the senders.
            edges: the graph.
            edge_embedding: [2, E], one row for each edge type; None without relation term.
            deterministic: False applies dropout and needs a "dropout" random key.

        Returns:
            What the agents heard [B, N, E], and the weights times the mask, [B, H, N, N] float32.
        """
        q, k, v = self._project(query, key_value)
        relation = self._relation(edge_embedding)
        if relation is not None:
            q, k = q + relation.query, k + relation.key
        agents = jnp.arange(query.shape[1])
        bias = self._hears(edges.mask, agents, agents)
        if relation is not None and edges.types is not None:
            bias += self._scale * edges.types * _type_change(q, k, relation)
        mask = jnp.ones((), jnp.float32) if edges.mask is None else edges.mask
        shape = (len(query), self.config.heads, len(agents), len(agents))
        bias, mask = jnp.broadcast_to(bias, shape), jnp.broadcast_to(mask, shape)
        context, weights = attend(q, k, v, bias, mask, self._scale)
        context = self.dropout(context.reshape(query.shape), deterministic)
        return self.out(context), weights

    def step(
        self,
        query: jax.Array,
        key_value: jax.Array,
        edges: Edges,
        edge_embedding: jax.Array | None,
        cache: Cache,
        index: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """Row `index` of causal attention, with the keys and values of earlier agents cached.

        Args:
            query: [B, E] of agent `index`.
            key_value: [B, E] of agent `index`.
            edges: of the whole graph, from `edges_of`.
            edge_embedding: as in `__call__`.
            cache: keys and values of agents below `index`; the rest is not read.
            index: [] int32, may be traced.

        Returns:
            [B, E], and the cache with the key and value of agent `index` added.
        """
        q, k, v = self._project(query, key_value)  # [B, H, d]
        relation = self._relation(edge_embedding)
        if relation is not None:
            q, k = q + relation.query, k + relation.key
        cache = Cache(
            jax.lax.dynamic_update_slice_in_dim(cache.key, k[:, :, None], index, axis=2),
            jax.lax.dynamic_update_slice_in_dim(cache.value, v[:, :, None], index, axis=2),
        )
        row = jax.tree.map(  # [1 or B, 1, N]
            lambda x: jax.lax.dynamic_index_in_dim(x, index, axis=2, keepdims=False), edges
        )
        scores = _matvec(cache.key, q)
        if relation is not None and row.types is not None:
            # For a single query, scoring both edge types is cheaper than splitting the difference.
            other = q + relation.query_change
            changed = _matvec(cache.key, other) + _inner(other, relation.key_change)[..., None]
            scores = jnp.where(row.types == 1, changed, scores)
        hears = self._hears(row.mask, index, jnp.arange(cache.key.shape[2]))
        weights = jax.nn.softmax(self._scale * scores + hears)
        weights = weights if row.mask is None else weights * row.mask
        context = jnp.matmul(weights[:, :, None].astype(v.dtype), cache.value)  # [B, H, 1, d]
        return self.out(context.reshape(query.shape)), cache

    @property
    def _scale(self) -> float:
        width = self.config.embed // self.config.heads
        double = has_relation(self.config) and self.config.attention_scale == "double"
        return 1.0 / width if double else 1.0 / math.sqrt(width)

    def _project(self, query: jax.Array, key_value: jax.Array) -> list[jax.Array]:
        """Queries, keys and values, [..., E] -> [..., H, d]."""
        heads = self.config.heads
        projected = self.query(query), self.key(key_value), self.value(key_value)
        return [x.reshape(*x.shape[:-1], heads, -1) for x in projected]

    def _relation(self, edge_embedding: jax.Array | None) -> _Relation | None:
        if not has_relation(self.config):
            return None
        if edge_embedding is None:
            raise ValueError(
                "edge_embedding must be a [2, E] array with the relation term, got None"
            )
        # [type, a or b, H, d]
        terms = self.relation(edge_embedding).reshape(2, 2, self.config.heads, -1)
        (query, key), (other_query, other_key) = terms
        return _Relation(query, key, other_query - query, other_key - key)

    def _hears(self, mask: jax.Array | None, receivers: jax.Array, senders: jax.Array) -> jax.Array:
        """0 where a receiver hears a sender, -inf elsewhere; `mask` has the receivers' rows."""
        receivers = receivers[..., None]
        hears = jnp.ones((), bool)
        if mask is not None:
            # An agent hears itself even if a real-valued graph makes its diagonal 0: no empty row.
            hears = (mask != 0) | (senders == receivers)
        if self.causal:
            hears &= senders <= receivers
        return jnp.where(hears, 0.0, -jnp.inf)


class _Relation(NamedTuple):
    """The relation term of edge type 0, and its change to type 1; each [H, d]."""

    query: jax.Array
    key: jax.Array
    query_change: jax.Array
    key_change: jax.Array


def _type_change(query: jax.Array, key: jax.Array, relation: _Relation) -> jax.Array:
    """What type 1 adds to the unscaled scores of type 0: [B, N, H, d] twice -> [B, H, N, N]."""
    of_query = jnp.swapaxes(_inner(query, relation.key_change), 1, 2)[..., None]  # [B, H, N, 1]
    of_key = jnp.swapaxes(_inner(key, relation.query_change), 1, 2)[..., None, :]  # [B, H, 1, N]
    constant = _inner(relation.query_change, relation.key_change)[:, None, None]
    return of_query + of_key + constant


def _inner(tokens: jax.Array, vector: jax.Array) -> jax.Array:
    """Inner products per head: [..., H, d], [H, d] -> [..., H] float32.

    As one product with a block-diagonal [E, H] matrix: of the forms at hand the one that XLA on
    CPU compiles, with its derivatives, without copies of the tokens.
    """
    heads, width = vector.shape
    blocks = vector[..., None] * jnp.eye(heads, dtype=vector.dtype)[:, None]  # [H, d, H]
    flat, blocks = tokens.reshape(-1, heads * width), blocks.reshape(heads * width, heads)
    products = jnp.matmul(flat, blocks, preferred_element_type=jnp.float32)
    return products.reshape(*tokens.shape[:-2], heads)  # [..., H]


def _matvec(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """[..., N, d], [..., d] -> [..., N] float32."""
    return jnp.matmul(matrix, vector[..., None], preferred_element_type=jnp.float32)[..., 0]


def _attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array,
    mask: jax.Array,
    scale: float,
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention whose weights are multiplied by a mask.

    The reverse rule is written out because XLA on CPU compiles the derived one for these sizes
    (a few agents, thousands of samples) into code 3 to 5 times slower. Forward-mode derivatives
    of gradients work, of `attend` itself they do not.

    Args:
        query: [B, I, H, d].
        key: [B, J, H, d].
        value: [B, J, H, d].
        bias: [B, H, I, J] float32 added to the scaled scores; -inf where i does not hear j.
        mask: [B, H, I, J] float32.
        scale: of the scores.

    Returns:
        Context [B, I, H, d] in the type of `value`, and weights [B, H, I, J] float32: softmax over
        J times mask.
    """
    return _attend_forward(query, key, value, bias, mask, scale)[0]


def _attend_forward(query, key, value, bias, mask, scale):
    scores = _einsum("bihd,bjhd->bhij", query, key) * scale + bias  # [B, H, I, J]
    probabilities = jax.nn.softmax(scores, axis=-1)
    weights = probabilities * mask
    residuals = (query, key, value, probabilities, mask)
    return (_mix(weights, value), weights), residuals


def _attend_backward(scale, residuals, cotangents):
    query, key, value, probabilities, mask = residuals
    of_context, of_weights = cotangents
    of_weights = of_weights + _einsum("bihd,bjhd->bhij", of_context, value)
    weighted = of_weights * probabilities * mask
    # Row sums as a matrix product: it keeps XLA from fusing, and so repeating, the derivative of
    # the softmax for every channel of the sums below.
    ones = jnp.ones((weighted.shape[-1],) * 2, weighted.dtype)
    of_scores = weighted - probabilities * jnp.matmul(weighted, ones, precision="highest")
    return (
        _mix(of_scores * scale, key),
        _mix(jnp.swapaxes(of_scores * scale, -1, -2), query),  # [B, H, J, I] -> [B, J, H, d]
        _mix(jnp.swapaxes(probabilities * mask, -1, -2), of_context),  # [B, J, H, d]
        of_scores,
        of_weights * probabilities,
    )


attend = jax.custom_vjp(_attend, nondiff_argnums=(5,))
attend.defvjp(_attend_forward, _attend_backward)


def _mix(weights: jax.Array, value: jax.Array) -> jax.Array:
    """sum_j w_ij v_j: [B, H, I, J], [B, J, H, d] -> [B, I, H, d] in the type of `value`."""
    if weights.shape[-1] > SMALL_TEAM:
        return _einsum("bhij,bjhd->bihd", weights.astype(value.dtype), value).astype(value.dtype)
    weights = jnp.moveaxis(weights, 1, -1)[..., None]  # [B, I, J, H, 1]
    return jnp.sum(weights * value[:, None], axis=2).astype(value.dtype)


_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
