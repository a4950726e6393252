"""TIES of a few numbers, worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import merging
from jaxmethods.merging.static import dare


def ties(tau, base=0.0, **options):
    """theta_0 + m of task vectors [T, n] or a dict of them."""
    tau = tau if isinstance(tau, dict) else jnp.asarray(tau)
    base = jax.tree.map(lambda leaf: jnp.full(leaf.shape[1:], base), tau)
    stack = jax.tree.map(lambda origin, leaf: origin + leaf, base, tau)
    return merging.ties(base, stack, **{"coefficients": 1.0, "density": 1.0, **options})


def test_where_kept_entries_cancel_the_majority_of_all_signs_decides():
    # Totals: 0, 5, 4, -1: two positive signs, one negative.
    tau = [[2.0, 3.0, 2.0, -3.0], [-2.0, 2.0, 2.0, 2.0]]
    np.testing.assert_allclose(ties(tau), [2, 5, 4, -3])
    np.testing.assert_allclose(ties(-jnp.asarray(tau)), [-2, -5, -4, 3])


def test_without_a_majority_negative_entries_stay_as_in_the_papers_code():
    np.testing.assert_allclose(ties([[2.0, 3.0, -2.0], [-2.0, 3.0, -2.0]]), [-2, 6, -4])


def test_the_majority_is_that_of_the_whole_or_of_the_leaf():
    tau = {"one": jnp.array([[2.0, -1.0], [-2.0, -1.0]]), "other": jnp.ones((2, 3))}
    np.testing.assert_allclose(ties(tau)["one"], [2, -2])
    np.testing.assert_allclose(ties(tau, scope="leaf")["one"], [-2, -2])


def test_magnitudes_are_compared_in_the_whole_expert_or_in_the_leaf():
    tau = {"small": jnp.array([[0.1, 0.4]]), "large": jnp.array([[3.0, 2.0]])}
    whole = ties(tau, density=0.25)
    np.testing.assert_allclose(whole["small"], [0, 0])
    np.testing.assert_allclose(whole["large"], [3, 2])
    leaf = ties(tau, density=0.5, scope="leaf")
    np.testing.assert_allclose(leaf["small"], [0.1, 0.4])
    leaf = ties(tau, density=0.25, scope="leaf")
    np.testing.assert_allclose(leaf["small"], [0, 0.4])


def test_the_entry_at_the_threshold_is_merged():
    """d - floor(rho d) = 3: the third smallest magnitude is the threshold, and it stays."""
    np.testing.assert_allclose(ties([[1.0, -2.0, 3.0, 4.0]], density=0.25), [0, 0, 3, 4])


@pytest.mark.parametrize(
    ("merge", "expected"), [("sum", [3, -4, 6]), ("mean", [1.5, -4, 2]), ("max", [2, -4, 2])]
)
def test_entries_of_the_elected_sign_are_added_averaged_or_the_largest_is_taken(merge, expected):
    tau = [[1.0, -4.0, 2.0], [2.0, 1.0, 2.0], [-0.5, 2.0, 2.0]]
    np.testing.assert_allclose(ties(tau, merge=merge), expected, rtol=1e-6)


def test_mergekit_takes_a_total_of_zero_for_positive():
    tau = [[2.0, -1.0], [-2.0, -1.0]]
    np.testing.assert_allclose(ties(tau, flavor="mergekit"), [2, -1])


def test_mergekit_keeps_exactly_its_number_of_equal_magnitudes():
    np.testing.assert_allclose(
        ties([[1.0, 1.0, 1.0, 1.0]], density=0.5, flavor="mergekit"), [1, 1, 0, 0]
    )


@pytest.mark.slow
def test_dare_with_ties_is_ties_of_the_rescaled_vectors():
    base = {"w": jnp.linspace(-1, 1, 40)}
    stack = {"w": base["w"] + jax.random.normal(jax.random.key(0), (3, 40))}
    key, p = jax.random.key(1), 0.4
    found = merging.dare_ties(key, base, stack, p, density=0.5, coefficients=0.3)
    rescaled = merging.dare(key, merging.task_vectors(base, stack), p)
    expected = merging.ties(base, {"w": base["w"] + rescaled["w"]}, density=0.5, coefficients=0.3)
    np.testing.assert_allclose(found["w"], expected["w"], atol=1e-5)
    kept = dare.dare_mask(key, stack, p)["w"]
    assert 0 < kept.mean() < 1
