r"""A decoder learns to predict the next token of token rows.

    L = - sum_{b, i} m_{b, i} log p(x_{b, i} | x_{b, < i}) / sum_{b, i} m_{b, i}

where the mask m says which tokens are predicted: the response without its prompt, without padding.
Padding stands at the end of a row, where a causal model's earlier tokens don't see it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmethods.method import Batch, Method, Metrics, Objective, gradient_step
from jaxmethods.models import decoder
from jaxmethods.models.decoder.config import DecoderConfig


class Tokens(NamedTuple):
    """Rows of tokens."""

    ids: jax.Array
    """[B, T] int32; negative ones, such as -100, are no tokens: nothing predicts them, and at the
    end of a row, where they are padding, nothing is predicted from them."""
    mask: jax.Array | None = None
    """[B, T] bool: which tokens are predicted; the first of a row never is. None: all others."""


class LearnerState(NamedTuple):
    """A decoder under way."""

    key: jax.Array
    params: Any
    """The decoder's parameters."""
    optimizer: optax.OptState


Draw = Callable[[jax.Array, Batch], Tokens]
"""(key, batch) -> the rows of one step."""


def next_token_learner(
    model: DecoderConfig, optimizer: optax.GradientTransformation, draw: Draw
) -> Method:
    """Makes the training of a decoder on token rows.

    Args:
        model: sizes and family of the decoder.
        optimizer: any optax transformation.
        draw: makes the rows of a step from a key and the batch: `random_rows(B)` takes them from
            `Tokens`; a function that makes sentences up needs no data.

    Returns:
        `init(key, batch)`, which gives fresh parameters, and `step(state, batch)` on a
        `LearnerState`. The metric is `loss`, [] float32.
    """

    def init(key: jax.Array, batch: Batch) -> LearnerState:
        del batch
        key, params_key = jax.random.split(key)
        return begin(key, decoder.init_params(params_key, model), optimizer)

    def loss(params: Any, tokens: Tokens) -> jax.Array:
        logits = decoder.forward(params, model, _without_padding(tokens.ids[:, :-1])).logits
        return next_token_loss(logits, tokens)

    def step(state: LearnerState, batch: Batch) -> tuple[LearnerState, Metrics]:
        key, draw_key = jax.random.split(state.key)
        tokens = draw(draw_key, batch)
        value, gradient = jax.value_and_grad(loss)(state.params, tokens)
        params, moments = gradient_step(optimizer, gradient, state.optimizer, state.params)
        return LearnerState(key, params, moments), {"loss": value}

    def objective(state: LearnerState, batch: Batch) -> Objective:
        return Objective(state.params, lambda params, key: loss(params, draw(key, batch)))

    return Method(init, step, objective)


def begin(key: jax.Array, params: Any, optimizer: optax.GradientTransformation) -> LearnerState:
    """The state in which training goes on from given parameters: a pretrained model's."""
    return LearnerState(key, params, optimizer.init(params))


def next_token_loss(logits: jax.Array, tokens: Tokens) -> jax.Array:
    """Mean cross entropy of the tokens that are predicted; 0 where there is none.

    Args:
        logits: [B, T - 1, V] at all tokens but the last; float32.
        tokens: ids and mask, [B, T].

    Returns:
        [] in the type of the logits.
    """
    targets = tokens.ids[:, 1:]
    mask = targets >= 0  # -100 would be the hundredth token from the end
    if tokens.mask is not None:
        mask &= tokens.mask[:, 1:].astype(bool)
    targets = jnp.where(mask, targets, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)  # [B, T - 1]
    losses = jnp.where(mask, losses, 0)
    return jnp.sum(losses) / jnp.maximum(jnp.sum(mask, dtype=losses.dtype), 1.0)


def _without_padding(ids: jax.Array) -> jax.Array:
    """Ids whose negative ones at the end of a row are a token's, which no earlier one sees.

    Negative ids before a token stay what they are: of a text with a hole, all is NaN.
    """
    behind = jnp.cumsum((ids >= 0)[:, ::-1], axis=1)[:, ::-1] == 0
    return jnp.where(behind, 0, ids)


def random_rows(count: int) -> Draw:
    """Draws `count` rows of `Tokens` with replacement.

    Args:
        count: B, the number of rows in a step.

    Returns:
        A function (key, `Tokens` of n rows) -> `Tokens` of B rows.
    """

    def draw(key: jax.Array, batch: Tokens) -> Tokens:
        rows = jax.random.randint(key, (count,), 0, len(batch.ids))
        return jax.tree.map(lambda leaf: leaf[rows], batch)

    return draw
