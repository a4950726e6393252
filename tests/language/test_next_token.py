"""A decoder learns token rows; what the mask leaves out plays no part."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods.language import Tokens, next_token_learner, next_token_loss, random_rows
from jaxmethods.models.decoder.config import DecoderConfig

MODEL = DecoderConfig(
    family="llama",
    vocab_size=7,
    width=8,
    mlp_width=8,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=4,
    rotary_dim=4,
    max_positions=8,
)
IDS = jnp.array([[1, 2, 3, 4, 0], [1, 5, 6, 0, 0], [1, 3, 2, 4, 5]])
MASK = jnp.array([[0, 0, 1, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)


@pytest.fixture(scope="module")
def step():
    method = next_token_learner(MODEL, optax.adam(0.02), random_rows(6))
    return method.init(jax.random.key(0), Tokens(IDS)), jax.jit(method.step)


def test_the_loss_is_the_mean_over_predicted_tokens():
    logits = jax.random.normal(jax.random.key(1), (3, 4, 7))
    logs = np.asarray(jax.nn.log_softmax(logits))
    own = [logs[b, i - 1, IDS[b, i]] for b, i in np.argwhere(np.asarray(MASK))]
    np.testing.assert_allclose(next_token_loss(logits, Tokens(IDS, MASK)), -np.mean(own), rtol=1e-6)
    everything = next_token_loss(logits, Tokens(IDS, jnp.ones_like(MASK)))
    np.testing.assert_allclose(next_token_loss(logits, Tokens(IDS)), everything, rtol=1e-6)
    marked = jnp.where(MASK, IDS, -1)  # as an index, the last token
    for mask in (MASK, None, jnp.ones_like(MASK)):
        loss = next_token_loss(logits, Tokens(marked, mask))
        np.testing.assert_allclose(loss, -np.mean(own), rtol=1e-6)


def test_without_a_predicted_token_loss_and_gradient_are_zero():
    logits = jax.random.normal(jax.random.key(1), (3, 4, 7))
    nothing = Tokens(IDS, jnp.zeros_like(MASK))
    value, gradient = jax.value_and_grad(next_token_loss)(logits, nothing)
    assert value == 0
    assert not np.asarray(gradient).any()


def test_a_learner_learns_rows_by_heart(step):
    state, step = step
    losses = []
    for _ in range(60):
        state, metrics = step(state, Tokens(IDS[:1]))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.2 < losses[0]


def test_padding_has_no_influence(step):
    state, step = step
    data = Tokens(IDS, MASK)
    other = data._replace(ids=IDS.at[:2, 4].set(6).at[1, 3].set(2))
    padded = data._replace(ids=jnp.where(IDS > 0, IDS, -100))
    own = step(state, data)[0].params
    for changed in (other, padded):
        jax.tree.map(np.testing.assert_array_equal, own, step(state, changed)[0].params)
