r"""The speech-text model: [prompt; speech tokens; suffix and response] through a language model.

    L = - sum_{b, i} m_{b, i} log p(y_{b, i} | prompt_b, speech_b, y_{b, < i}) / sum_{b, i} m_{b, i}

with m 1 on response tokens, the end token among them (sections 2.4 and 2.5 of the published code's
description). A row's tokens are those its masks show, whatever stands between them: their positions
are counted without the rest. `reference_padding` counts padding as published. Any decoder of
`models.decoder` is the language model; parameters are `connector` and `language_model`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.lsm.config import ConnectorConfig
from jaxmethods.lsm.connector import Speech
from jaxmethods.models import decoder
from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.decoder.generation import End, Generated
from jaxmethods.models.decoder.layer import Params
from jaxmethods.models.lookup import rows
from jaxmethods.numerics.compiled import compiled

IGNORED = -100
"""Label of a token that is not learned from; so are others that are negative, and no tokens."""


class Text(NamedTuple):
    """The text around the speech of B rows."""

    prefix: jax.Array
    """[B, P] int32: what comes before the speech."""
    prefix_mask: jax.Array
    """[B, P] bool."""
    suffix: jax.Array
    """[B, R] int32: what comes behind it: the assistant's tag, then the response."""
    suffix_mask: jax.Array
    """[B, R] bool."""
    labels: jax.Array
    """[B, R] int32: the suffix where it is learned, `IGNORED` elsewhere; the first never is."""


class Assembled(NamedTuple):
    """Rows as a language model takes them."""

    embeds: jax.Array
    """[B, S, D], S = P + N + R."""
    mask: jax.Array
    """[B, S] bool."""
    labels: jax.Array
    """[B, S] int32."""


class Model(NamedTuple):
    """Sizes of the two parts that train; hashable, a static argument."""

    connector: ConnectorConfig
    language_model: DecoderConfig


def assemble(language_model: Params, speech: Speech, text: Text) -> Assembled:
    """Embeddings of the prompt, the speech, and the suffix, one behind the other.

    Args:
        language_model: the decoder's parameters.
        speech: tokens and mask of `connect`.
        text: of as many rows.

    Returns:
        Embeddings, mask and labels.
    """
    table = language_model["embed"]["tokens"]
    before, behind = rows(table, text.prefix, "prefix"), rows(table, text.suffix, "suffix")
    embeds = jnp.concatenate([before, speech.tokens.astype(before.dtype), behind], axis=1)
    masks = [mask.astype(bool) for mask in (text.prefix_mask, speech.mask, text.suffix_mask)]
    ignored = jnp.full((len(embeds), embeds.shape[1] - text.labels.shape[1]), IGNORED)
    labels = jnp.concatenate([ignored.astype(text.labels.dtype), text.labels], axis=1)
    return Assembled(embeds, jnp.concatenate(masks, axis=1), labels)


def response_logits(
    language_model: Params,
    config: DecoderConfig,
    rows: Assembled,
    suffix: int,
    *,
    reference_padding: bool = False,
    dtype: Any = None,
    remat: bool = False,
) -> jax.Array:
    """Logits of every place of the suffix from what stands before it; see `response_losses`.

    Args:
        language_model: the decoder's parameters.
        config: its sizes; static.
        rows: of `assemble`.
        suffix: R; static.
        reference_padding: count positions of padding, as in the published training; static.
        dtype: of the computation; None: of the parameters.
        remat: compute layers again in the backward pass.

    Returns:
        [B, R, V].
    """
    batch, length = rows.mask.shape
    places = jnp.broadcast_to(jnp.arange(length - suffix - 1, length - 1), (batch, suffix))
    return decoder.forward(
        language_model,
        config,
        inputs_embeds=rows.embeds,
        mask=rows.mask,
        positions=_positions(rows.mask) if reference_padding else None,
        logits_at=places,
        dtype=dtype,
        remat=remat,
    ).logits


def response_losses(
    language_model: Params,
    config: DecoderConfig,
    rows: Assembled,
    suffix: int,
    *,
    reference_padding: bool = False,
    dtype: Any = None,
    remat: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of every label, from logits of the suffix alone.

    Args:
        language_model: the decoder's parameters.
        config: its sizes; static.
        rows: of `assemble`.
        suffix: R; static.
        reference_padding: count positions of padding, as in the published training; static.
        dtype: of the computation; None: of the parameters.
        remat: compute layers again in the backward pass.

    Returns:
        Nats [B, R], 0 where nothing is learned, and which are, [B, R] bool.
    """
    logits = response_logits(
        language_model,
        config,
        rows,
        suffix,
        reference_padding=reference_padding,
        dtype=dtype,
        remat=remat,
    )
    labels = rows.labels[:, rows.mask.shape[1] - suffix :]
    learned = labels >= 0
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(learned, labels, 0))
    return jnp.where(learned, nats, 0.0), learned


def _positions(mask: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.arange(mask.shape[1]), mask.shape)


class Packed(NamedTuple):
    """Several rows in one, without their padding."""

    embeds: jax.Array
    """[G, S, D]."""
    mask: jax.Array
    """[G, S] bool."""
    labels: jax.Array
    """[G, S] int32."""
    segments: jax.Array
    """[G, S] int32: which of the rows a token is of, from 1; 0 on padding."""
    lost: jax.Array
    """[] int32: tokens that there was no room for."""


def pack(rows: Assembled, together: int, length: int) -> Packed:
    """Puts rows behind each other, so that no time is spent on their padding.

    Args:
        rows: of `assemble`; their number is a multiple of `together`.
        together: rows that share one; static.
        length: S of the packed rows; static.

    Returns:
        Rows with segments, none of which sees another (`packed_losses`).

    Raises:
        ValueError: the number of rows is no multiple.
    """
    batch = len(rows.mask)
    if batch % together:
        raise ValueError(f"together: expected a divisor of the {batch} rows, got {together}")

    def side_by_side(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(batch // together, -1, *leaf.shape[2:])  # [G, together S', ...]

    mask = side_by_side(rows.mask)
    order = jnp.argsort(~mask, axis=1, stable=True)[:, :length]  # tokens first, in their order
    numbers = jnp.broadcast_to(jnp.arange(batch)[:, None] % together + 1, rows.mask.shape)

    def taken(leaf: jax.Array) -> jax.Array:
        return jax.vmap(lambda row, where: row[where])(side_by_side(leaf), order)

    kept = taken(rows.mask)
    return Packed(
        taken(rows.embeds),
        kept,
        jnp.where(kept, taken(rows.labels), IGNORED),
        jnp.where(kept, taken(numbers), 0),
        (jnp.sum(mask) - jnp.sum(kept)).astype(jnp.int32),
    )


def packed_losses(
    language_model: Params,
    config: DecoderConfig,
    rows: Packed,
    learned: int,
    *,
    dtype: Any = None,
    remat: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Cross entropy of every label of packed rows, which is that of the rows alone.

    Args:
        language_model: the decoder's parameters.
        config: its sizes; static.
        rows: of `pack`.
        learned: labels of a packed row, at most; static.
        dtype: of the computation; None: of the parameters.
        remat: compute layers again in the backward pass.

    Returns:
        Nats [G, learned], 0 where nothing is learned, and which are, bool.
    """
    places = jnp.argsort(rows.labels < 0, axis=1, stable=True)[:, :learned]
    labels = jnp.take_along_axis(rows.labels, places, axis=1)
    logits = decoder.forward(
        language_model,
        config,
        inputs_embeds=rows.embeds,
        mask=rows.mask,
        segments=rows.segments,
        logits_at=jnp.maximum(places - 1, 0),
        dtype=dtype,
        remat=remat,
    ).logits
    counted = labels >= 0
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(counted, labels, 0))
    return jnp.where(counted, nats, 0.0), counted


@compiled("config", "new_tokens", "end", "pad")
def respond(
    language_model: Params,
    config: DecoderConfig,
    speech: Speech,
    text: Text,
    *,
    new_tokens: int,
    end: End,
    pad: int = 0,
) -> Generated:
    """The most likely response to every row, as one program.

    Args:
        language_model: the decoder's parameters.
        config: its sizes; static.
        speech: tokens and mask of `connect`.
        text: whose suffix is the assistant's tag alone.
        new_tokens: at most that many; static.
        end: the token that ends a response; static.
        pad: what stands behind it; static.

    Returns:
        Tokens [B, new_tokens] and lengths; a row's don't depend on the rows beside it.
    """
    rows = assemble(language_model, speech, text)
    return decoder.generate(
        language_model,
        config,
        inputs_embeds=rows.embeds,
        mask=rows.mask,
        new_tokens=new_tokens,
        end=end,
        pad=pad,
    )
