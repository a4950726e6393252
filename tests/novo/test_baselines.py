"""The probe and the likelihood's choice against their definitions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.novo import baselines, heads

RNG = np.random.default_rng(0)
MASK = np.array([[True, True, True], [True, True, False]] * 6)
NORMS = RNG.normal(5, 2, (12, 3, 4)).astype(np.float32)
LABELS = RNG.integers(0, 2, 12)


def standardized():
    """In NumPy: centered within a question, over the standard deviation of a head."""
    x = np.zeros_like(NORMS)
    for question, mask in enumerate(MASK):
        x[question][mask] = NORMS[question][mask] - NORMS[question][mask].mean(0)
    return x / x[MASK].std(0)


def test_norms_are_centered_within_questions_and_scaled_over_all():
    found = baselines.standardize(jnp.asarray(NORMS), jnp.asarray(MASK))
    np.testing.assert_allclose(found, standardized(), atol=1e-5)


def test_the_probe_is_stationary_for_the_penalized_cross_entropy():
    weights = jax.jit(lambda *q: baselines.probe(*q, penalty=2.0, steps=40))(NORMS, MASK, LABELS)
    x = standardized()

    def loss(weights):
        scores = jnp.where(MASK, x @ weights, -jnp.inf)
        chosen = jax.nn.log_softmax(scores)[jnp.arange(12), LABELS]
        return -jnp.sum(chosen) + 2.0 / 2 * jnp.sum(weights**2)

    assert jnp.abs(weights).max() > 0.1
    np.testing.assert_allclose(jax.grad(loss)(weights), np.zeros(4), atol=1e-2)


def test_the_most_likely_candidate_is_one_there_is():
    likelihood = jnp.array([[-3.0, -2.0, 0.0], [-1.0, -2.0, -3.0]])
    mask = jnp.array([[True, True, False], [True, True, True]])
    np.testing.assert_array_equal(baselines.most_likely(likelihood, mask), [1, 0])


def test_a_quantile_that_rounding_moves_off_its_integer_is_that_integer():
    """0.29 * 100 is 28.999..., 0.07 * 100 is 7.000...1 in binary floating point."""
    counts = jnp.stack([jnp.arange(101), jnp.zeros(101, jnp.int32)])
    strictly_above = heads.select_heads(counts, 0.29)
    np.testing.assert_array_equal(strictly_above.max_mask, np.arange(101) > 29)
    reached = heads.select_heads(counts, 0.07, rule="paper")
    np.testing.assert_array_equal(reached.max_mask, np.arange(101) >= 7)
