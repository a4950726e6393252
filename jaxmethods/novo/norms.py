"""Norms of attention heads' outputs at the end of a candidate: all that norm voting reads.

    n[l, i] = || sum_s softmax_s(q_{l,i} . k_{l,s} / sqrt(d)) v_{l,s} ||_2

for query head i of layer l, at the candidate's last token, before the output projection
(arXiv 2410.08970, Figure 2). The last layer's output projection and MLP, the final norm and the
head have no influence and are not computed; of the last layer only keys, values and the queries of
the last tokens are. Rows and root are those of `tree`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.models.attention import Kernel, scaled_attention
from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.decoder.layer import (
    Angles,
    Params,
    layer_of,
    normalize,
    over_layers,
    project_keys,
    project_queries,
    run_layer,
)
from jaxmethods.models.decoder.network import at, embed, forward, logits_of
from jaxmethods.models.decoder.rope import rotation
from jaxmethods.novo.tree import PADDING, QUESTION, Rows

Order = Literal["1", "2", "inf"]
Tokens = Literal["last", "mean"]
"""Where norms are read: at a candidate's last token, or averaged over its tokens."""


class Root(NamedTuple):
    """What all sequences share, run once."""

    keys: jax.Array
    """[L, S, K, d], rotated; padded."""
    values: jax.Array
    """[L, S, K, d]."""
    length: jax.Array
    """[] int32."""
    residual: Any
    """[D]: the residual stream after the last layer at the last token, if it was asked for."""


def run_root(
    params: Params,
    config: DecoderConfig,
    ids: jax.Array,
    length: jax.Array,
    *,
    residual: bool = False,
    dtype: Any = None,
    kernel: Kernel | None = None,
) -> Root:
    """Keys and values of the tokens that all sequences share.

    Args:
        params: the decoder's.
        config: the decoder's; static.
        ids: [S] int32, padded on the right.
        length: [] int32: how many of them are real.
        residual: also what predicts the next token (needed for likelihoods only).
        dtype: of the computation; None: the embeddings'.
        kernel: of attention; None: JAX chooses.

    Returns:
        Keys and values [L, S, K, d], with the residual stream [D] if it was asked for.
    """
    dtype = jnp.dtype(dtype or params["embed"]["tokens"].dtype)
    positions = _within(ids.shape[0], length)[None]
    x = embed(params, config, ids[None], None, positions, dtype)
    angles = rotation(config, positions) if config.positions == "rope" else None

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return scaled_attention(q, k, v, causal=True, window=config.sliding_window, kernel=kernel)

    def body(x: jax.Array, inputs: tuple) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        x, inside = run_layer(config, inputs[0], x, angles, attend, dtype)
        return x, (inside.keys[0], inside.values[0])

    if residual:
        x, (keys, values) = over_layers(body, x, params["layers"])
        return Root(keys, values, length, x[0, length - 1])
    x, earlier = over_layers(body, x, params["layers"], first=config.layers - 1)
    layer = layer_of(params["layers"], config.layers - 1)
    normed = normalize(config, layer["attention_norm"], x, dtype)
    last = project_keys(config, layer["attention"], normed, angles)
    if earlier is None:  # one layer, unstacked
        return Root(last[0], last[1], length, None)
    keys, values = (jnp.concatenate(pair) for pair in zip(earlier, last, strict=True))
    return Root(keys, values, length, None)


def row_norms(
    params: Params,
    config: DecoderConfig,
    root: Root,
    rows: Rows,
    *,
    order: Order = "2",
    tokens: Tokens = "last",
    dtype: Any = None,
    kernel: Kernel | None = None,
) -> jax.Array:
    """Norms of every candidate of a batch of rows, float32 [B, C, L H].

    Where a row has no such candidate, the values mean nothing.

    Args:
        params: the decoder's.
        config: the decoder's; static.
        root: as `run_root` leaves it.
        rows: [B, T] of questions and candidates.
        order: of the norm.
        tokens: read at the last token, or averaged over the candidate's own tokens.
        dtype: of the computation; None: the embeddings'.
        kernel: of attention; None: JAX chooses.

    Returns:
        [B, C, L H] float32.
    """
    dtype = jnp.dtype(dtype or params["embed"]["tokens"].dtype)
    x, angles, visible = _begin(params, config, root, rows, dtype)
    attend = partial(_attend, visible, kernel)
    read = _reader(rows, order, tokens)

    def body(x: jax.Array, inputs: tuple) -> tuple[jax.Array, jax.Array]:
        layer, shared = inputs
        x, inside = run_layer(config, layer, x, angles, partial(attend, shared), dtype)
        return x, read(inside.head_outputs)

    shared = root.keys, root.values
    x, earlier = over_layers(body, x, params["layers"], shared, first=config.layers - 1)
    layer = layer_of(params["layers"], config.layers - 1)
    normed = normalize(config, layer["attention_norm"], x, dtype)
    keys, values = project_keys(config, layer["attention"], normed, angles)
    if tokens == "last":
        normed, visible = at(normed, rows.ends), at(visible[:, 0], rows.ends)[:, None]
        angles = None if angles is None else (at(angles[0], rows.ends), at(angles[1], rows.ends))
        read = partial(_norm, order=order)
    queries = project_queries(config, layer["attention"], normed, angles)
    last = (root.keys[-1], root.values[-1])
    norms = read(_attend(visible, kernel, last, queries, keys, values))[None]
    if earlier is not None:
        norms = jnp.concatenate([earlier, norms])
    return jnp.moveaxis(norms, 0, 2).reshape(*rows.ends.shape, -1)  # [L, B, C, H] -> [B, C, L H]


def row_log_likelihoods(
    params: Params,
    config: DecoderConfig,
    root: Root,
    rows: Rows,
    *,
    dtype: Any = None,
    kernel: Kernel | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of every candidate's tokens given the prompt, and their number.

    The sum of log p(token | all before) over the tokens from `rows.starts` on.

    Args:
        params: the decoder's.
        config: the decoder's; static.
        root: with its residual stream.
        rows: [B, T] of questions and candidates.
        dtype: of the computation; None: the embeddings'.
        kernel: of attention; None: JAX chooses.

    Returns:
        Nats and numbers of tokens, [B, C] each.

    Raises:
        ValueError: a root without its residual stream.
    """
    if root.residual is None:
        raise ValueError("root: expected one that was run with residual=True")
    dtype = jnp.dtype(dtype or params["embed"]["tokens"].dtype)
    x, angles, visible = _begin(params, config, root, rows, dtype)

    def body(x: jax.Array, inputs: tuple) -> tuple[jax.Array, None]:
        layer, shared = inputs
        attend = partial(_attend, visible, kernel, shared)
        return run_layer(config, layer, x, angles, attend, dtype)[0], None

    x, _ = over_layers(body, x, params["layers"], (root.keys, root.values))
    scored = (rows.segments != PADDING) & (rows.positions >= rows.starts[:, None])

    def one_row(inputs: tuple) -> jax.Array:
        x, ids, parent = inputs
        before = jnp.where(parent[:, None] < 0, root.residual, x[parent])
        scores = jax.nn.log_softmax(logits_of(params, config, before, dtype))
        return jnp.take_along_axis(scores, ids[:, None], axis=1)[:, 0]

    # Row after row: logits of a whole batch may be larger than the model.
    token = jax.lax.map(one_row, (x, rows.ids, _parents(rows)))
    member = _membership(rows) & scored[:, None]  # [B, C, T]
    summed = jnp.einsum("bt,bct->bc", jnp.where(scored, token, 0), member.astype(jnp.float32))
    return summed, jnp.sum(member, axis=-1)


def sequence_norms(
    params: Params,
    config: DecoderConfig,
    ids: jax.Array,
    lengths: jax.Array,
    *,
    order: Order = "2",
    dtype: Any = None,
    kernel: Kernel | None = None,
) -> jax.Array:
    """Norms at the end of whole sequences.

    One row for each candidate, nothing shared, the whole model run: what the others must equal.

    Args:
        params: the decoder's.
        config: the decoder's; static.
        ids: [B, T] int32, padded on the right.
        lengths: [B] int32.
        order: of the norm.
        dtype: of the computation; None: the embeddings'.
        kernel: of attention; None: JAX chooses.

    Returns:
        [B, L H] float32.
    """
    outputs = forward(
        params,
        config,
        ids,
        positions=_within(ids.shape[1], lengths[:, None]),
        logits=False,
        taps=("head_outputs",),
        taps_at=lengths[:, None] - 1,
        dtype=dtype,
        kernel=kernel,
    )
    norms = _norm(outputs.head_outputs[:, :, 0], order)  # [L, B, H]
    return jnp.moveaxis(norms, 0, 1).reshape(ids.shape[0], -1)  # [B, L H]


def _within(slots: int, length: jax.Array) -> jax.Array:
    """Positions of slots; padding on the right stays at the last token's, and so adds none."""
    return jnp.minimum(jnp.arange(slots), jnp.maximum(length - 1, 0))


def _begin(
    params: Params, config: DecoderConfig, root: Root, rows: Rows, dtype: Any
) -> tuple[jax.Array, Angles, jax.Array]:
    """Residual stream, angles, and what each token sees: [B, 1, T, S + T] bool."""
    x = embed(params, config, rows.ids, None, rows.positions, dtype)
    angles = rotation(config, rows.positions) if config.positions == "rope" else None
    place = jnp.arange(rows.ids.shape[1])
    query, key = rows.segments[:, :, None], rows.segments[:, None, :]
    own = (place[None, :] <= place[:, None]) & ((key == QUESTION) | (key == query))
    # Padding sees itself: a softmax over nothing would be NaN.
    own = (own & (key != PADDING)) | (place[None, :] == place[:, None])
    roots = jnp.arange(root.keys.shape[1])
    shared = jnp.broadcast_to(roots < root.length, (*rows.ids.shape, roots.size))
    if config.sliding_window is not None:
        oldest = rows.positions[:, :, None] - config.sliding_window
        own &= rows.positions[:, None, :] > oldest
        shared &= roots > oldest
    return x, angles, jnp.concatenate([shared, own], axis=-1)[:, None]


def _attend(
    visible: jax.Array,
    kernel: Kernel | None,
    shared: tuple[jax.Array, jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
) -> jax.Array:
    """Attention to the root's keys and values [S, K, d] and the row's own [B, T, K, d]."""
    k, v = (
        jnp.concatenate([jnp.broadcast_to(old.astype(new.dtype), (k.shape[0], *old.shape)), new], 1)
        for old, new in zip(shared, (k, v), strict=True)
    )
    return scaled_attention(q, k, v, mask=visible, kernel=kernel)


def _reader(rows: Rows, order: Order, tokens: Tokens) -> Callable[[jax.Array], jax.Array]:
    """Head outputs [B, T, H, d] -> norms [B, C, H]."""
    if tokens == "last":
        return lambda heads: _norm(at(heads, rows.ends), order)
    member = _membership(rows) & (rows.positions >= rows.starts[:, None])[:, None]
    weights = member / jnp.maximum(jnp.sum(member, axis=-1, keepdims=True), 1)
    return lambda heads: jnp.einsum("bct,bth->bch", weights, _norm(heads, order))  # [B, C, H]


def _norm(heads: jax.Array, order: Order) -> jax.Array:
    return jnp.linalg.norm(heads.astype(jnp.float32), ord=float(order), axis=-1)


def _membership(rows: Rows) -> jax.Array:
    """[B, C, T] bool: tokens of each candidate's sequence, those of the question included."""
    candidates = jnp.arange(rows.ends.shape[1])[:, None] + 1
    segments = rows.segments[:, None, :]
    return (segments == candidates) | (segments == QUESTION)


def _parents(rows: Rows) -> jax.Array:
    """[B, T] int: index in the row of the token before each in its sequence; -1 for the root."""
    question = jnp.sum(rows.segments == QUESTION, axis=1, keepdims=True) - 1
    before = jnp.roll(rows.segments, 1, axis=1).at[:, 0].set(QUESTION)
    place = jnp.arange(rows.ids.shape[1])[None]
    return jnp.where(rows.segments == before, place - 1, question)
