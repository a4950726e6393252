"""softmax(q k^T / sqrt(d)) v of every head, by what is fastest where it runs.

On accelerators that is JAX's function. On CPU XLA runs it two to four times slower than the same
sums written as products of matrices a head: heads are brought in front, the denominator divides
what comes out instead of every weight, and where the scores of all heads would not stay in the
processor's cache, head follows head and a gradient makes their scores anew (on one device: others
may have their own heads).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

Kernel: TypeAlias = Literal["xla", "cudnn"]
"""`jax.nn.dot_product_attention`'s implementation; cuDNN wants half precision on a GPU."""
ROOM = 2**24
"""Bytes of scores from which on head follows head; measured on a Xeon with 2 MB of cache a core."""


def scaled_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    causal: bool = False,
    window: int | None = None,
    kernel: Kernel | None = None,
) -> jax.Array:
    """Attention of queries to keys.

    Args:
        q: queries [B, T, H, d].
        k: keys [B, S, K, d], K a divisor of H: groups of heads share keys.
        v: values [B, S, K, d].
        mask: [B or 1, H or 1, T, S] bool, True where a query sees a key; None: everywhere.
        causal: whether query t sees keys up to t only.
        window: a causal query sees itself and `window - 1` keys before it.
        kernel: on accelerators; None: JAX chooses.

    Returns:
        Head outputs [B, T, H, d] in the type of the queries; a query that sees nothing gets the
        mean of all values. The softmax is in float32 at least.
    """
    if jax.default_backend() != "cpu":
        local = None if window is None else (window - 1, 0)
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=causal, local_window_size=local, implementation=kernel
        )
    batch, new, heads, width = q.shape
    keys, groups = k.shape[1:3]
    wide = jnp.promote_types(q.dtype, jnp.float32)
    rows = jnp.moveaxis(q.astype(wide) * width**-0.5, 2, 1)  # [B, H, T, d]
    k, v = (jnp.moveaxis(x.astype(wide), 2, 1) for x in (k, v))  # [B, K, S, d]
    if causal:
        back = jnp.arange(new)[:, None] - jnp.arange(keys)
        near = (back >= 0) if window is None else (back >= 0) & (back < window)
        mask = near[None, None] if mask is None else mask & near
    # Queries of heads that share keys are rows of one product.
    share = heads // groups
    rows = rows.reshape(batch, groups, share * new, width)
    visible = None if mask is None else _grouped(mask, groups, share, new, keys)
    together = not _in_turn(batch * heads * new * keys * wide.itemsize)
    found = (_weighted if together else _one_by_one)(rows, k, v, visible)
    found = found.reshape(batch, heads, new, v.shape[-1])
    return jnp.moveaxis(found, 1, 2).astype(q.dtype)


def _in_turn(scores: int) -> bool:
    """Whether head follows head, for bytes of scores. Of several devices each may have its own rows
    or heads, which a loop over them would gather."""
    return scores > ROOM and jax.device_count() == 1


def _grouped(mask: jax.Array, groups: int, share: int, new: int, keys: int) -> jax.Array:
    """[B or 1, H or 1, T, S] -> [B or 1, K or 1, H / K T, S]."""
    batch, heads = mask.shape[:2]
    found, each = (groups, share) if heads > 1 else (1, share)
    mask = jnp.broadcast_to(mask, (batch, found * each, new, keys))
    return mask.reshape(batch, found, each * new, keys)


def _weighted(rows: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None) -> jax.Array:
    """Rows [..., R, d] to keys and values [..., S, d], as `visible` [..., R, S] says."""
    lead = tuple(range(rows.ndim - 2))
    scores = lax.dot_general(rows, k, (((rows.ndim - 1,), (k.ndim - 1,)), (lead, lead)))
    if visible is not None:
        # Finite, so that a row that sees nothing isn't NaN.
        scores = jnp.where(visible, scores, -0.7 * jnp.finfo(scores.dtype).max)
    weights = jnp.exp(
        scores - lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf))
    )
    return (weights @ v) / jnp.sum(weights, axis=-1, keepdims=True)


def _one_by_one(
    rows: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None
) -> jax.Array:
    """The same for [B, K, ...], one product after the other; a gradient keeps no scores."""
    batch, groups = rows.shape[:2]

    @jax.checkpoint
    def one(place: jax.Array, row: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        if visible is None:
            return _weighted(row, k, v, None)
        of, group = place // groups, place % groups
        return _weighted(row, k, v, visible[of % visible.shape[0], group % visible.shape[1]])

    flat = (x.reshape(batch * groups, *x.shape[2:]) for x in (rows, k, v))
    found = lax.map(lambda args: one(*args), (jnp.arange(batch * groups), *flat))
    return found.reshape(batch, groups, *found.shape[1:])
