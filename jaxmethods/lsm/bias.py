r"""Speech anchor bias inside the model: what a response is made from, instruction or speech.

The input falls into segments: 0 the rest (a first token), 1 the instruction, 2 speech, 3 the
assistant's tag and the response. With R the positions that predict response tokens, A_l the
attention of layer l, L the mean loss of the response and e_j an input embedding,

    attention_share[l, s] = mean over heads and r in R of sum_{j in s} A_l[h, r, j]
    saliency[l, s]        = mean over r in R, j in s, j <= r of
                            |sum_h A_l[h, r, j] dL/dA_l[h, r, j]|
    gradient_input[j]     = |e_j . dL/de_j|, and its share by segment

A model whose responses hang on speech alone has a large ratio of the mean a token of speech to that
of a token of the instruction (`anchor_ratio`). The definitions are ours: the published ones could
not be read.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmethods.lsm.model import Assembled
from jaxmethods.models import decoder
from jaxmethods.models.decoder.config import DecoderConfig
from jaxmethods.models.decoder.layer import Params

SEGMENTS = 4
OTHER, INSTRUCTION, SPEECH, RESPONSE = range(SEGMENTS)


class Attribution(NamedTuple):
    """What the responses of a batch are made from."""

    attention_share: jax.Array
    """[L, 4] float32; the four add up to 1."""
    saliency: jax.Array
    """[L, 4] float32; 0 where a segment is empty."""
    gradient_input: jax.Array
    """[B, S] float32."""
    gradient_input_share: jax.Array
    """[4] float32."""


def attribute(
    language_model: Params,
    config: DecoderConfig,
    rows: Assembled,
    segments: jax.Array,
    *,
    reference_padding: bool = False,
) -> Attribution:
    """Attention, saliency and gradient x input of a batch's responses.

    Args:
        language_model: the decoder's parameters.
        config: its sizes; static.
        rows: of `model.assemble`, with the labels that are predicted.
        segments: [B, S] int in 0 .. 3.
        reference_padding: count positions of padding; static.

    Returns:
        The measures, over all rows together.
    """
    batch, length = rows.mask.shape
    learned = rows.labels[:, 1:] >= 0  # [B, S - 1]
    labels = jnp.where(learned, rows.labels[:, 1:], 0)
    total = jnp.maximum(jnp.sum(learned), 1)
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))

    def loss(embeds: jax.Array, added: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = decoder.forward(
            language_model,
            config,
            inputs_embeds=embeds,
            mask=rows.mask,
            positions=positions if reference_padding else None,
            taps=("attention",),
            attention_added=added,
        )
        log_probabilities = jax.nn.log_softmax(found.logits[:, :-1])
        said = jnp.take_along_axis(log_probabilities, labels[..., None], -1)[..., 0]
        return -jnp.sum(jnp.where(learned, said, 0)) / total, found.attention

    # [L, B, T, H, S]: from the token that looks to the one that is seen
    added = jnp.zeros((config.layers, batch, length, config.heads, length), jnp.float32)
    gradients, attention = jax.grad(loss, argnums=(0, 1), has_aux=True)(rows.embeds, added)
    predicts = jnp.pad(learned, ((0, 0), (0, 1)))  # [B, S]
    own = jax.nn.one_hot(segments, SEGMENTS) * rows.mask[..., None]  # [B, S, 4]
    shares = jnp.einsum("lbths,bsg,bt->lg", attention, own, predicts.astype(jnp.float32))
    flow = jnp.abs(jnp.sum(attention * gradients[1], axis=3))  # [L, B, T, S]
    causal = jnp.tril(jnp.ones((length, length)))
    pairs = jnp.einsum("bt,ts,bsg->btsg", predicts.astype(jnp.float32), causal, own)
    counts = jnp.maximum(jnp.sum(pairs, axis=(0, 1, 2)), 1)  # [4]
    saliency = jnp.einsum("lbts,btsg->lg", flow, pairs) / counts
    products = jnp.abs(jnp.sum(rows.embeds * gradients[0], axis=-1)).astype(jnp.float32)
    by_segment = jnp.einsum("bs,bsg->g", products, own)
    return Attribution(
        shares / (jnp.maximum(jnp.sum(predicts), 1) * config.heads),
        saliency,
        products,
        by_segment / jnp.maximum(jnp.sum(by_segment), jnp.finfo(jnp.float32).tiny),
    )


def attribute_each(
    language_model: Params, config: DecoderConfig, rows: Assembled, segments: jax.Array
) -> Attribution:
    """The measures of every row alone, one after the other: what intervals are made of.

    Args:
        language_model: the decoder's parameters.
        config: its sizes; static.
        rows: of `model.assemble`, with the labels that are predicted.
        segments: [B, S] int in 0 .. 3.

    Returns:
        The fields of `Attribution` with an axis of rows in front, [B, ...]; `gradient_input` is
        [B, S].
    """

    def one(given: tuple[Assembled, jax.Array]) -> Attribution:
        row, own = jax.tree.map(lambda leaf: leaf[None], given)
        found = attribute(language_model, config, row, own)
        return found._replace(gradient_input=found.gradient_input[0])

    return jax.lax.map(one, (rows, segments))


def anchor_ratio(scores: jax.Array, segments: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean score of a token of speech over that of a token of the instruction.

    Args:
        scores: [B, S], at least 0: `gradient_input`, or a layer's attention.
        segments: [B, S] int.
        mask: [B, S] bool.

    Returns:
        [] float32; NaN where one of the segments is empty or scores nothing.
    """
    means = [
        jnp.mean(scores, where=(segments == one) & mask.astype(bool))
        for one in (SPEECH, INSTRUCTION)
    ]
    return means[0] / jnp.where(means[1] > 0, means[1], jnp.nan)


def segments_of(prefix: int, speech: int, suffix: int, batch: int) -> jax.Array:
    """Segments of rows of `model.assemble`: a first token, the instruction, speech, the rest.

    Args:
        prefix: P, with the first token.
        speech: N.
        suffix: R.
        batch: B.

    Returns:
        [B, P + N + R] int32.
    """
    parts = ((OTHER, 1), (INSTRUCTION, prefix - 1), (SPEECH, speech), (RESPONSE, suffix))
    row = jnp.concatenate([jnp.full(length, one, jnp.int32) for one, length in parts])
    return jnp.broadcast_to(row, (batch, len(row)))
