"""Tokens past the vocabulary and positions past a learned table are never taken for others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.models import clip, decoder
from jaxmethods.models.clip import vit
from jaxmethods.models.lookup import rows
from tests.models.decoder.decoders import CONFIGS, LLAMA, random_ids, random_params

TABLE = jnp.arange(6.0).reshape(3, 2)


def test_rows_are_those_of_the_table():
    numbers = jnp.array([[2, 0], [1, 2]])
    np.testing.assert_array_equal(rows(TABLE, numbers, "ids"), TABLE[numbers])
    np.testing.assert_array_equal(jax.jit(lambda n: rows(TABLE, n, "ids"))(numbers), TABLE[numbers])


@pytest.mark.parametrize("wrong", [-1, 3, 9999])
def test_a_number_that_the_table_has_not_is_an_error_or_nan(wrong):
    numbers = jnp.array([0, wrong])
    with pytest.raises(ValueError, match=rf"ids: expected 0 to 2, got {wrong}"):
        rows(TABLE, numbers, "ids")
    found = jax.jit(lambda numbers: rows(TABLE, numbers, "ids"))(numbers)
    np.testing.assert_array_equal(found, [[0, 1], [np.nan, np.nan]])


def test_a_gradient_reaches_the_rows_that_were_read():
    gradient = jax.grad(lambda table: rows(table, jnp.array([1, 1]), "ids").sum())(TABLE)
    np.testing.assert_array_equal(gradient, [[0, 0], [2, 2], [0, 0]])


@pytest.mark.parametrize("token", [-1, 41])
def test_a_decoder_refuses_a_token_that_its_vocabulary_has_not(token):
    params = random_params(LLAMA)
    with pytest.raises(ValueError, match=rf"ids: expected 0 to 40, got {token}"):
        decoder.forward(params, LLAMA, jnp.array([[3, token]]))
    logits = jax.jit(lambda ids: decoder.forward(params, LLAMA, ids).logits)(
        jnp.array([[3, token], [3, 4]])
    )
    assert np.isnan(logits[0, 1]).all()
    assert np.isfinite(logits[1]).all()


def test_a_decoder_refuses_more_tokens_than_it_has_learned_positions():
    config = CONFIGS["opt"].model_copy(update={"max_positions": 4})
    params = random_params(config)
    ids = random_ids(config, 2, 6)
    with pytest.raises(ValueError, match="positions: expected 0 to 3, got 4"):
        decoder.forward(params, config, ids)
    run = jax.jit(lambda ids, mask: decoder.forward(params, config, ids, mask=mask).logits)
    assert np.isnan(run(ids, None)[:, 4:]).all()
    # Padding needs no position: four tokens of six slots fit.
    mask = jnp.array([[0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    padded = run(ids, mask)
    np.testing.assert_allclose(padded[0, 2:], run(ids[:1, 2:], None)[0], atol=1e-5)
    np.testing.assert_allclose(padded[1, :3], run(ids[1:, :3], None)[0], atol=1e-5)


def test_a_text_tower_refuses_a_token_that_its_vocabulary_has_not():
    vision = vit.VisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        image_size=8, patch_size=8,
    )  # fmt: skip
    text = clip.TextConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=4, eos_token_id=8, projection_dim=4,
    )  # fmt: skip
    config = clip.CLIPConfig(vision=vision, text=text, projection_dim=4)
    params = clip.init(jax.random.key(0), config)
    with pytest.raises(ValueError, match="ids: expected 0 to 8, got 9"):
        clip.text_features(params, config, jnp.array([[1, 9]]))
    features = jax.jit(lambda ids: clip.text_features(params, config, ids).features)(
        jnp.array([[1, 9], [1, 8]])
    )
    assert np.isnan(features[0]).all()
    assert np.isfinite(features[1]).all()
