"""What the loss needs of a language model, and a decoder as such a model.

A model is a few pure functions and a size, so that any network fits. Logits are apart from states,
because a vocabulary of 150,000 makes them hundreds of times as large: the loss applies the head to
a few tokens at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from jaxmethods.models import decoder
from jaxmethods.models.decoder.attention import reserve
from jaxmethods.models.decoder.generation import End

Params: TypeAlias = Any
Prefix: TypeAlias = Any
"""What is kept of a prompt: keys and values."""
UNSTACKED = 12
"""Layers up to which a program for CPU that decodes has them one by one: it compiles longer and
decodes twice as fast."""


class LanguageModel(NamedTuple):
    """A causal language model; states are what `logits` makes logits of."""

    prefix: Callable[[Params, jax.Array, jax.Array, int], tuple[jax.Array, Prefix]]
    """(params, ids [B, P], mask [B, P], R) -> states of the prompts' last tokens [B, 1, D], and
    what continuing them by R tokens needs."""
    proceed: Callable[[Params, Prefix, jax.Array, jax.Array, jax.Array], jax.Array]
    """(params, prefix, ids, mask, positions [B, R] each) -> states [B, R, D]."""
    whole: Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]
    """(params, ids, mask, positions [B, T] each) -> states [B, T, D]."""
    logits: Callable[[Params, jax.Array], jax.Array]
    """(params, states [N, D]) -> logits [N, V] float32."""
    vocabulary: int
    """V."""
    generate: Callable[[Params, jax.Array, jax.Array, jax.Array, int, float], Any] | None = None
    """(params, ids [B, P], mask, typed key, R, temperature) -> `decoder.Generated` responses; only
    those who let a model write need it."""
    search: Callable[[Params, jax.Array, jax.Array, int, int], Any] | None = None
    """(params, ids [B, P], mask, K, R) -> `decoder.Beams`; only those who search need it."""


def of_decoder(
    config: decoder.DecoderConfig,
    *,
    dtype: Any = None,
    remat: bool = False,
    vocabulary: int | None = None,
    end: End = None,
) -> LanguageModel:
    """A decoder as a language model.

    Args:
        config: of the decoder.
        dtype: of the computation; default: of the parameters.
        remat: recompute layers in the backward pass.
        vocabulary: keep this many leading logits (see `language.vocabularies`).
        end: the token, or tokens, that end a response that the model generates.

    Returns:
        functions of the decoder's parameters.

    Raises:
        ValueError: a vocabulary larger than the decoder's.
    """
    size = vocabulary or config.vocab_size
    if size > config.vocab_size:
        raise ValueError(
            f"vocabulary: expected at most the model's {config.vocab_size} tokens, got {size}"
        )

    def run(params: Params, ids: jax.Array, mask: jax.Array, **options: Any) -> decoder.Outputs:
        return decoder.forward(
            params, config, ids, mask=mask, logits=False, dtype=dtype, remat=remat, **options
        )

    def prefix(params: Params, ids: jax.Array, mask: jax.Array, more: int) -> Any:
        found = run(params, ids, mask, keep_cache=True)
        return decoder.at(found.residual, last_tokens(mask)), reserve(found.cache, more)

    def proceed(params: Params, prefix: Prefix, ids: Any, mask: Any, positions: Any) -> Any:
        return run(params, ids, mask, positions=positions, cache=prefix).residual

    def whole(params: Params, ids: jax.Array, mask: jax.Array, positions: jax.Array) -> jax.Array:
        return run(params, ids, mask, positions=positions).residual

    def logits(params: Params, states: jax.Array) -> jax.Array:
        params = _first_tokens(params, config, size)
        compute = dtype or params["embed"]["tokens"].dtype
        return decoder.logits_of(params, config, states, compute)

    own = config.model_copy(update={"vocab_size": size})

    def decoding(params: Params) -> Params:
        params = _first_tokens(params, config, size)
        if config.layers <= UNSTACKED and jax.default_backend() == "cpu":
            return decoder.unstack_layers(params)
        return params

    def generate(
        params: Params, ids: jax.Array, mask: jax.Array, key: jax.Array, length: int, heat: float
    ) -> decoder.Generated:
        return decoder.generate(
            decoding(params),
            own,
            ids,
            key,
            new_tokens=length,
            mask=mask.astype(bool),
            sampling=decoder.Sampling(temperature=heat),
            end=end,
            dtype=dtype,
        )

    def search(
        params: Params, ids: jax.Array, mask: jax.Array, beams: int, length: int
    ) -> decoder.Beams:
        return decoder.beam_search(
            decoding(params),
            own,
            ids,
            beams=beams,
            new_tokens=length,
            mask=mask.astype(bool),
            end=end,
            dtype=dtype,
        )

    return LanguageModel(prefix, proceed, whole, logits, size, generate, search)


def last_tokens(mask: jax.Array) -> jax.Array:
    """The place of each row's last token, [B, 1]."""
    places = jnp.arange(mask.shape[1])
    return jnp.max(jnp.where(mask.astype(bool), places, 0), axis=1, keepdims=True)


def _first_tokens(params: Params, config: decoder.DecoderConfig, size: int) -> Params:
    """Parameters whose head has this many tokens: nothing is computed for the others."""
    if size == config.vocab_size:
        return params
    head = {name: leaf[..., :size] for name, leaf in params.get("head", {}).items()}
    embed = params["embed"] | {"tokens": params["embed"]["tokens"][:size]}
    return params | {"embed": embed} | ({"head": head} if head else {})
