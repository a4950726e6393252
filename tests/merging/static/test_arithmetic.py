"""Linear merges and interpolations against their formulas in NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import merging


def test_an_analogy_adds_what_leads_from_the_source_to_the_destination():
    found = merging.analogy(jnp.array([1.0]), jnp.array([2.0]), jnp.array([5.0]), 0.5)
    np.testing.assert_allclose(found, [1 + 0.5 * (5 - 2)])


def test_model_stocks_ratio_follows_the_mean_cosine_between_experts():
    """t = T c / (1 + (T - 1) c) of the way from the base to the mean."""
    rng = np.random.default_rng(0)
    base, tau = rng.normal(size=(4, 3)), rng.normal(size=(3, 4, 3)) + 1
    flat = tau.reshape(3, -1)
    units = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    cosine = (units @ units.T)[np.triu_indices(3, 1)].mean()
    ratio = 3 * cosine / (1 + 2 * cosine)
    found = merging.model_stock(
        jnp.asarray(base, jnp.float32), jnp.asarray(base + tau, jnp.float32)
    )
    np.testing.assert_allclose(found, base + ratio * tau.mean(0), atol=1e-5)


def test_a_normalized_average_divides_by_the_sum_of_weights():
    stack = {"w": jnp.array([[1.0], [4.0]])}
    weights = jnp.array([1.0, 3.0])
    np.testing.assert_allclose(merging.average(stack, weights)["w"], [13])
    np.testing.assert_allclose(merging.average(stack, weights, normalize=True)["w"], [13 / 4])


def test_slerp_goes_along_the_circle_between_two_vectors():
    one, other = jnp.array([1.0, 0.0]), jnp.array([0.5, 3**0.5 / 2])
    for t in (0.25, 0.5, 0.8):
        angle = t * np.pi / 3
        found = merging.slerp(one, other, t)
        np.testing.assert_allclose(found, [np.cos(angle), np.sin(angle)], atol=1e-6)


def test_a_tree_of_coefficients_that_lacks_a_leaf_is_refused():
    base, stack = ({name: jnp.ones((*lead, 3)) for name in "vw"} for lead in ((), (2,)))
    with pytest.raises(ValueError, match="coefficients: expected a number"):
        merging.task_arithmetic(base, stack, {"w": 0.3})
