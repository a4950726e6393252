"""What a token sees, counted in tokens on every path that attention takes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.models import decoder
from jaxmethods.models.decoder.attention import reserve
from tests.models.decoder.decoders import CONFIGS, random_params
from tests.programs import normal, quick

ONE_LAYER = CONFIGS["mistral"].model_copy(update={"layers": 1})
TOKENS = 9


def last_logits(path, params, config, embedded):
    """Logits [3, V] of the last three of embedded tokens [T, D]."""
    if path == "plain":
        return decoder.forward(params, config, inputs_embeds=embedded[None]).logits[0, -3:]
    if path == "masked":
        padded = jnp.pad(embedded, [(2, 0), (0, 0)])[None]
        mask = jnp.arange(TOKENS + 2)[None] >= 2
        return decoder.forward(params, config, inputs_embeds=padded, mask=mask).logits[0, -3:]
    start, rest = embedded[None, :-3], embedded[None, -3:]
    cache = decoder.forward(params, config, inputs_embeds=start, keep_cache=True).cache
    cache = reserve(cache, TOKENS)
    return decoder.forward(params, config, inputs_embeds=rest, cache=cache).logits[0]


@pytest.mark.parametrize("path", ["plain", "masked", "cached"])
@pytest.mark.parametrize("window", quick([2, 4, None], 4))
def test_a_token_sees_itself_and_as_many_before_as_the_window_has(path, window):
    """Through one layer a token's logits depend on exactly the embeddings that it sees."""
    config = ONE_LAYER.model_copy(update={"sliding_window": window})
    params = random_params(config)
    embedded = normal(1, TOKENS, config.width)

    def totals(embedded):
        return jnp.sum(jnp.square(last_logits(path, params, config, embedded)), axis=-1)

    seen = np.asarray(jax.jit(jax.jacrev(totals))(embedded)).any(axis=-1)
    keys, queries = np.arange(TOKENS), np.arange(TOKENS - 3, TOKENS)[:, None]
    expected = (keys <= queries) & (keys > queries - (window or TOKENS))
    np.testing.assert_array_equal(seen, expected)
