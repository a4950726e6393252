r"""Routers of a weight-ensembling mixture of experts: from tokens to merging coefficients.

    r(h) = W_2 relu(W_1 h + b_1) + b_2       depth 2
    r(h) = W_2 h + b_2                       depth 1
    r    = b_2                               depth 0, no input
    c_b  = mean_l r(h_bl)                    one coefficient per sample and expert

No softmax, no top-k: coefficients may be negative. The mean over tokens is taken before W_2, which
is the same and saves the product for every token.

Tang et al., "Merging Multi-Task Models via Weight-Ensembling Mixture of Experts", ICML 2024,
arXiv 2402.00433. The encoding of the block's number is that of E-WEMoE, arXiv 2410.21804.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

INITIAL_STD = 0.01

Groups: TypeAlias = jax.Array | int | None
"""Which samples share coefficients: None, nobody; n, consecutive n-ths of the batch (1: all);
an array [B] of ids in [0, B), those of equal id."""


class Router(NamedTuple):
    """Parameters of one router, or of one for each of N blocks with a leading axis."""

    hidden_weight: jax.Array | None
    """W_1 [D', D'] with D' = D + width of the encoding; None below depth 2."""
    hidden_bias: jax.Array | None
    """b_1 [D']"""
    weight: jax.Array | None
    """W_2 [T, D']; None at depth 0."""
    bias: jax.Array
    """b_2 [T]"""


def init(
    key: jax.Array,
    width: int,
    tasks: int,
    *,
    depth: int = 2,
    coefficient: float = 0.3,
    encoding: int = 0,
) -> Router:
    """Weights from Normal(0, 0.01^2), last bias `coefficient`: close to task arithmetic.

    Args:
        key: [] typed random key.
        width: D of the tokens.
        tasks: T.
        depth: maps of the router, 0 to 2.
        coefficient: its output at the start.
        encoding: width of the block's encoding, which is put beside the tokens; 0: none.

    Returns:
        Parameters in float32; those that a depth doesn't have are None.

    Raises:
        ValueError: another depth.
    """
    if depth not in (0, 1, 2):
        raise ValueError(f"depth: expected 0, 1 or 2, got {depth}")
    width = width + encoding
    one, two = jax.random.split(key)
    bias = jnp.full(tasks, coefficient, jnp.float32)
    weight = INITIAL_STD * jax.random.normal(two, (tasks, width), jnp.float32) if depth else None
    if depth < 2:
        return Router(None, None, weight, bias)
    hidden = INITIAL_STD * jax.random.normal(one, (width, width), jnp.float32)
    return Router(hidden, jnp.zeros(width, jnp.float32), weight, bias)


def apply(router: Router, h: jax.Array, encoding: jax.Array | None = None) -> jax.Array:
    """c: [B, T] float32 at least.

    Args:
        h: [B, L, D] tokens.
        encoding: [E], put before every token.
    """
    if router.weight is None:
        return jnp.broadcast_to(router.bias, (len(h), *router.bias.shape))
    width = 0 if encoding is None else len(encoding)
    if router.hidden_weight is None:
        mean = jnp.mean(h, axis=1, dtype=jnp.promote_types(h.dtype, jnp.float32))
        return mean @ router.weight[:, width:].T + _encoded(router.bias, router.weight, encoding)
    bias = _encoded(router.hidden_bias, router.hidden_weight, encoding)
    hidden = jax.nn.relu(h @ router.hidden_weight[:, width:].T + bias)  # [B, L, D + E]
    mean = jnp.mean(hidden, axis=1, dtype=jnp.promote_types(h.dtype, jnp.float32))
    return mean @ router.weight.T + router.bias  # [B, T]


def coefficients(
    router: Router, h: jax.Array, groups: Groups = None, encoding: jax.Array | None = None
) -> jax.Array:
    """The coefficients of each group of samples: the mean of what the router gives them.

    Args:
        router: its parameters.
        h: [B, L, D], what the module is given.
        groups: see `Groups`.
        encoding: of the block's number, put beside every token; None without one.

    Returns:
        [G, T]; G is 1 for a router without input, and B where every sample has a row.

    Raises:
        ValueError: B is no multiple of `groups`.
    """
    if router.weight is None:
        return router.bias[None]  # no input: everybody has the same
    samples = apply(router, h, encoding)
    if groups is None:
        return samples
    if isinstance(groups, int):
        if groups < 1 or len(h) % groups:
            raise ValueError(f"groups: expected a divisor of the {len(h)} samples, got {groups}")
        # [G, B / G, T] -> [G, T]
        return jnp.mean(samples.reshape(groups, -1, samples.shape[-1]), axis=1)
    total = jax.ops.segment_sum(samples, groups, len(h))
    size = jax.ops.segment_sum(jnp.ones(len(h), total.dtype), groups, len(h))
    return (total / jnp.maximum(size, 1)[:, None])[groups]


def layer_encodings(layers: int, width: int) -> jax.Array:
    """[N, E]: [sin(l w_i), cos(l w_i)], w_i = 10000^(-2i/E), i < E/2, for block l = 0..N-1."""
    place = jnp.arange(width // 2, dtype=jnp.float32)
    frequencies = 10000.0 ** (-2 * place / width)
    angles = jnp.arange(layers, dtype=jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _encoded(bias: Any, weight: jax.Array, encoding: jax.Array | None) -> jax.Array:
    """The bias with what the encoding adds to it, the same for every token."""
    return bias if encoding is None else bias + weight[:, : len(encoding)] @ encoding
