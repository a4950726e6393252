"""Imperfect data: gold responses in which a few tokens are the student's own predictions.

    masking      choose k = max(1, floor(alpha n + 1/2)) of the n response tokens, the end token
                 apart, and put a mask token there
    predicting   run the student once on the masked response; token t is predicted at t - 1
    rewriting    put the predictions in place of the masks

Zhong et al., "Learning from Imperfect Data: Towards Efficient Knowledge Distillation of
Autoregressive Language Models for Text-to-SQL", EMNLP 2024 Findings, arXiv 2410.11371, section 3.2.
One forward pass in place of a generation with as many. All of it is data: no gradient flows.

Every row draws from its own key, so that it doesn't matter which rows are beside it.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxmethods.kid.config import ImperfectConfig, Strategy
from jaxmethods.language.divergences import entropy
from jaxmethods.numerics.keys import named

FIRST_BITS = 1 << 10
"""Steps of the part of a share whose product with up to 16384 tokens is exact in float32."""


def num_masked(number: jax.Array, alpha: float) -> jax.Array:
    """How many of `number` [...] tokens are masked: round(alpha n), at least 1 of any."""
    # In float32, 0.53 * 350 lies below the half that it is. The product with the first bits of
    # alpha is exact, and that with the others is small; the slack is its rounding.
    first = math.floor(alpha * FIRST_BITS) / FIRST_BITS
    exact = jnp.asarray(first * number, jnp.float32)
    rest = exact - jnp.floor(exact) + (alpha - first) * number
    rounded = (jnp.floor(exact) + jnp.floor(rest + 0.5 + 1e-6)).astype(jnp.int32)
    return jnp.minimum(number, jnp.maximum(1, rounded))


def select_tokens(
    key: jax.Array | None,
    maskable: jax.Array,
    alpha: float,
    strategy: Strategy = "random",
    *,
    entropies: jax.Array | None = None,
    draws: jax.Array | None = None,
    span: int = 1,
) -> jax.Array:
    """Which tokens are masked.

    Args:
        key: typed random key, or one for each row [B]; only random strategies need one.
        maskable: [B, T], the response's tokens but for its end.
        alpha: share of them; 0 masks nothing.
        strategy: see `ImperfectConfig`. Ties go to the earlier token.
        entropies: [B, T], of the student's prediction OF each token; `hard` and `easy` need them.
        draws: [B, T] numbers in [0, 1) in place of random ones.
        span: tokens of a run, of `spans`; the last one that is chosen may be cut.

    Returns:
        [B, T] bool: k of each row's maskable tokens (`bernoulli`: each with probability alpha).

    Raises:
        ValueError: no key, draws or entropies where the strategy needs them.
    """
    allowed = maskable.astype(bool)
    if alpha == 0:
        return jnp.zeros_like(allowed)
    number = jnp.sum(allowed, 1, keepdims=True, dtype=jnp.int32)  # [B, 1]
    count = num_masked(number, alpha)
    rank = jnp.cumsum(allowed, 1) - 1
    if strategy == "uniform":
        return allowed & _evenly_spaced(rank, number, count)
    if strategy in ("hard", "easy"):
        if entropies is None:
            raise ValueError(f"entropies: are needed for the strategy {strategy!r}")
        scores = -entropies if strategy == "hard" else entropies
    else:
        scores = _uniform(key, allowed.shape) if draws is None else draws
    if strategy == "bernoulli":
        return allowed & (scores < alpha)
    if strategy == "spans":
        # Runs begin anywhere: by a number that no run is scored by.
        offset = jnp.floor(span * scores[:, -1:]).astype(jnp.int32)
        scores = jnp.take_along_axis(scores, jnp.maximum(rank + offset, 0) // span, axis=1)
    order = jnp.argsort(jnp.where(allowed, scores, jnp.inf), axis=1, stable=True)
    place = jnp.argsort(order, axis=1)  # the rank of each token's score
    return allowed & (place < count)


def predicted(
    logits: jax.Array,
    temperature: float = 0.0,
    key: jax.Array | None = None,
    *,
    gumbel: jax.Array | None = None,
) -> jax.Array:
    """The student's token for each position.

    Args:
        logits: [B, N, V], those that predict the N tokens.
        temperature: 0 takes the most likely token.
        key: typed random key, or one for each row [B], where tokens are drawn.
        gumbel: [B, N, V] noise in place of the key's.

    Returns:
        [B, N] int32.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if temperature == 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    if gumbel is None:
        keys = row_keys(key, logits.shape[0])
        gumbel = jax.vmap(lambda k: jax.random.gumbel(k, logits.shape[1:], logits.dtype))(keys)
    return jnp.argmax(logits / temperature + gumbel, -1).astype(jnp.int32)


def mask_tokens(
    key: jax.Array | None,
    ids: jax.Array,
    selected: jax.Array,
    config: ImperfectConfig,
    vocabulary: int,
) -> tuple[jax.Array, jax.Array]:
    """Puts mask tokens in place of those that are selected.

    Args:
        key: typed random key, or one for each row [B]; for `mask_token: random`.
        ids: [B, T] int.
        selected: [B, T] bool.
        config: which mask token.
        vocabulary: random tokens are below this.

    Returns:
        ids [B, T], and which tokens others may see [B, T] bool: all but those that are hidden.
    """
    masks = jnp.full_like(ids, config.mask_token_id)
    if config.mask_token == "random":
        keys = row_keys(key, ids.shape[0])
        draw = jax.vmap(lambda k: jax.random.randint(k, ids.shape[1:], 0, vocabulary, ids.dtype))
        masks = draw(keys)
    elif config.mask_token == "previous":
        masks = jnp.concatenate([ids[:, :1], ids[:, :-1]], axis=1)
    visible = ~selected if config.mask_token == "hide" else jnp.ones_like(selected)
    return jnp.where(selected, masks, ids), visible


def rewrite(
    ids: jax.Array,
    masked: jax.Array,
    filled: jax.Array,
    selected: jax.Array,
    config: ImperfectConfig,
) -> jax.Array:
    """The imperfect response: predictions where tokens are selected, gold ones elsewhere.

    Args:
        ids, masked, filled: [B, T], gold tokens, those with masks, and predictions.
        selected: [B, T] bool.
        config: `masking_only` keeps the masks, `vanilla` the gold tokens.

    Returns:
        [B, T], without a gradient.
    """
    if config.rewrite == "vanilla":
        return ids
    new = masked if config.rewrite == "masking_only" else filled
    return lax.stop_gradient(jnp.where(selected, new, ids))


def fill_accuracy(ids: jax.Array, imperfect: jax.Array, selected: jax.Array) -> jax.Array:
    """The share of selected tokens whose fill is the gold one; 0 where none is selected.

    Near 1 the method is plain distillation; then sample the fills, or mask more.
    """
    return jnp.sum(selected & (ids == imperfect)) / jnp.maximum(jnp.sum(selected), 1)


def token_entropies(logits: jax.Array) -> jax.Array:
    """The entropy of the student's prediction of each token: [B, N, V] at t - 1 -> [B, N]."""
    return lax.stop_gradient(entropy(logits))


def row_keys(key: jax.Array | None, rows: int) -> jax.Array:
    """A key for each row: those that are given, or splits of one.

    Raises:
        ValueError: there is none, or as many as neither.
    """
    if key is None:
        raise ValueError("key: is needed to draw tokens")
    if key.shape not in ((), (rows,)):
        raise ValueError(f"key: expected one, or one for each of {rows} rows, got {key.shape}")
    return jax.random.split(key, rows) if key.ndim == 0 else key


def purpose(keys: jax.Array, name: str) -> jax.Array:
    """Keys [B] of one purpose ("select", "mask", "fill")."""
    return jax.vmap(lambda key: named(key, name))(keys)


def _evenly_spaced(rank: jax.Array, number: jax.Array, count: jax.Array) -> jax.Array:
    """Whether a rank is floor((j + 1/2) n / k) for some j."""
    # All in integers: (2 j + 1) n // (2 k), with the smallest j whose value is >= rank.
    number, count = jnp.maximum(number, 1), jnp.maximum(count, 1)
    j = -((number - 2 * rank * count) // (2 * number))
    return ((2 * j + 1) * number) // (2 * count) == rank


def _uniform(key: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
    keys = row_keys(key, shape[0])
    return jax.vmap(lambda k: jax.random.uniform(k, shape[1:]))(keys)
