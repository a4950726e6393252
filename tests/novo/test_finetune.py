"""The head on norms that is trained with an encoder."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.novo import finetune


def test_norms_have_a_gradient_where_heads_are_silent():
    outputs = jnp.zeros((2, 3, 4, 5)).at[1, :, 2].set(2.0)  # [L, B, H, d]
    norms = finetune.differentiable_norms(outputs)
    assert norms.shape == (3, 8)
    expected = np.linalg.norm(outputs, axis=-1).transpose(1, 0, 2).reshape(3, 8)
    np.testing.assert_allclose(norms, expected, atol=1.1e-3)
    gradient = jax.grad(lambda x: finetune.differentiable_norms(x).sum())(outputs)
    assert np.isfinite(gradient).all()


def test_candidates_are_scored_alone_and_masked_ones_have_no_share():
    params = finetune.init_head(jax.random.key(0), 8, 6)
    norms = jax.random.uniform(jax.random.key(1), (2, 3, 8))
    logits = finetune.candidate_logits(params, norms)
    np.testing.assert_allclose(
        finetune.candidate_logits(params, norms[:, ::-1]), logits[:, ::-1], rtol=1e-6
    )
    mask = jnp.array([[True, True, False]] * 2)
    labels = jnp.array([0, 1])
    loss = finetune.candidate_loss(logits, mask, labels)
    changed = finetune.candidate_loss(logits.at[:, 2].set(50.0), mask, labels)
    np.testing.assert_array_equal(loss, changed)
    expected = -jax.nn.log_softmax(logits[:, :2])[jnp.arange(2), labels].mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_dropout_keeps_the_mean_and_needs_a_key():
    params = finetune.init_head(jax.random.key(0), 8, 6)
    norms = jnp.ones((1, 1, 8))
    keys = jax.random.split(jax.random.key(2), 2000)
    options = {"dropout": (0.0, 0.5)}
    drawn = jax.vmap(lambda key: finetune.candidate_logits(params, norms, key=key, **options))(keys)
    plain = finetune.candidate_logits(params, norms, **options)
    assert drawn.std() > 0
    np.testing.assert_allclose(drawn.mean(), plain[0, 0], atol=5 * drawn.std() / 2000**0.5)
