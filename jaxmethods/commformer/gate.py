r"""The temporal gate: at every step each agent decides, from its own view, whether to listen.

    zeta_i = w2 . GELU(W1 x_i + b1) + b2,      g_i = 1[zeta_i + noise_i > 0]
    g <- g + (p - stop_gradient(p)),           p_i = sigmoid(zeta_i + noise_i)
    G~_ij = g_i G_ij for j != i,               G~_ii = G_ii

x is the encoder's input embedding, before any attention, so that deciding costs no message. The
noise is 0 (`deterministic`, and evaluation in any case) or standard logistic (`sampled`: g is then
Bernoulli(sigmoid(zeta))); it is stored with the action and replayed in training, so that the
probability ratio starts at 1. The penalty lambda_g mean_i sigmoid(zeta_i) closes gates that do not
pay. The task's gradient says to an open gate what its messages are worth; a closed one gets no
gradient and is reopened only by the weights it shares with the others.

The idea is that of Hu et al., Communication Learning in Multi-Agent Systems from Graph Modeling
Perspective (arXiv 2411.00382), which published neither code nor, where this was written, formulas
that could be consulted: everything above is this library's reconstruction, not the authors'.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmethods.commformer.config import GateConfig
from jaxmethods.commformer.layers import Dense
from jaxmethods.models.initializers import orthogonal
from jaxmethods.models.products import gelu


class Gate(NamedTuple):
    """Decisions of B x N agents."""

    open: jax.Array
    """g [B, N] float32: exactly 1 (listens) or 0, with the straight-through gradient."""
    probability: jax.Array
    """sigmoid(zeta) [B, N] float32, without the noise."""


class TemporalGate(nn.Module):
    """Embeddings [B, N, E] to gate logits zeta [B, N] float32."""

    initial_logit: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = orthogonal(math.sqrt(2.0))
        hidden = gelu(Dense(x.shape[-1], kernel_init=wide, name="hidden")(x))
        bias = nn.initializers.constant(self.initial_logit)
        narrow = orthogonal(0.01)
        return Dense(1, kernel_init=narrow, bias_init=bias, name="out")(hidden)[..., 0]


def decide(logits: jax.Array, noise: jax.Array | None = None) -> Gate:
    """Opens the gates whose logit plus noise is above 0.

    Args:
        logits: zeta [B, N].
        noise: [B, N] standard logistic, or None for none.
    """
    drawn = logits if noise is None else logits + noise
    probability = jax.nn.sigmoid(drawn)
    hard = (drawn > 0).astype(jnp.float32)
    soft = probability - jax.lax.stop_gradient(probability)
    return Gate(hard + soft, jax.nn.sigmoid(logits))


def gated_graph(graph: jax.Array, is_open: jax.Array) -> jax.Array:
    """G~ [B, N, N]: rows of closed agents keep their diagonal only.

    Args:
        graph: G [N, N] or [B, N, N], rows receive.
        is_open: g [B, N].
    """
    eye = jnp.eye(graph.shape[-1], dtype=graph.dtype)
    return graph * (is_open[..., None] * (1 - eye) + eye)


def penalty(gate: Gate, config: GateConfig) -> jax.Array:
    """[]: lambda_g mean sigmoid(zeta), or lambda_g relu(mean g - target) with a target."""
    if config.target is None:
        return config.penalty * jnp.mean(gate.probability)
    return config.penalty * jax.nn.relu(jnp.mean(gate.open) - config.target)


class Traffic(NamedTuple):
    """What a step of B teams says to itself."""

    messages: jax.Array
    """[B] float32: directed edges between different agents in use."""
    rate: jax.Array
    """[B] float32: sum_i g_i deg_i / sum_i deg_i, 1 where nothing is gated (or connected)."""


def traffic(graph: jax.Array, is_open: jax.Array) -> Traffic:
    """Counts messages on a graph G [N, N] (real-valued entries count where not 0), g [B, N]."""
    edges = (graph != 0).astype(jnp.float32)
    between = edges * (1 - jnp.eye(edges.shape[-1]))
    degree = edges.sum(-1)
    total = degree.sum(-1)
    used = jnp.sum(is_open * degree, axis=-1)
    rate = jnp.where(total > 0, used / jnp.maximum(total, 1.0), 1.0)
    return Traffic(jnp.sum(is_open * between.sum(-1), axis=-1), rate)
