"""What is dropped from task vectors, and with which probability."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods import merging

KEYS = jax.random.split(jax.random.key(0), 4000)


def test_dellas_probabilities_rise_by_two_epsilon_from_the_smallest_to_the_largest():
    """rho - epsilon + 2 epsilon (r - 1) / (n - 1), whatever the order and the sign."""
    tau = {"w": jnp.array([[3.0, -1.0, 0.5, -2.0]])}
    kept = jax.vmap(lambda key: merging.della(key, tau, 0.5, 0.3, rescale=False)["w"][0] != 0)(KEYS)
    np.testing.assert_allclose(kept.mean(0), [0.8, 0.4, 0.2, 0.6], atol=0.03)


def test_dellas_ranks_are_within_a_row():
    tau = {"w": jnp.array([[[1.0, 2.0], [30.0, 40.0]]])}
    kept = jax.vmap(lambda key: merging.della(key, tau, 0.5, 0.4, rescale=False)["w"][0] != 0)(KEYS)
    np.testing.assert_allclose(kept.mean(0), [[0.1, 0.9], [0.1, 0.9]], atol=0.03)


def test_dare_keeps_its_share_and_divides_by_it():
    tau = {"w": jnp.full((1, 2000), 3.0)}
    found = np.asarray(merging.dare(jax.random.key(0), tau, 0.7)["w"])
    np.testing.assert_allclose(found[found != 0], 10, rtol=1e-5)
    np.testing.assert_allclose((found != 0).mean(), 0.3, atol=0.04)


def test_masks_of_different_leaves_are_independent():
    tau = {"one": jnp.ones((1, 2000)), "other": jnp.ones((1, 2000))}
    masks = merging.dare(jax.random.key(0), tau, 0.5, rescale=False)
    np.testing.assert_allclose((masks["one"] * masks["other"]).mean(), 0.25, atol=0.05)


def test_breadcrumbs_keep_their_density_before_they_drop_outliers():
    tau = jnp.asarray([[5.0, -4.0, 3.0, -2.0, 1.0]])
    for density, gamma, kept in [
        (0.4, 0.2, [1, 2]),
        (0.6, 0.2, [1, 2, 3]),
        (0.8, 0.6, [1, 2, 3, 4]),
    ]:
        found = np.asarray(merging.breadcrumbs(tau, density, gamma))[0]
        np.testing.assert_array_equal(np.flatnonzero(found), kept)


def test_a_quantile_that_is_an_entry_falls_itself():
    values = jnp.array([[4.0, -2.0, 3.0, 1.0, 5.0]])
    np.testing.assert_array_equal(merging.magnitude_prune(values, 0.5), [[4, 0, 0, 0, 5]])
    np.testing.assert_array_equal(merging.magnitude_prune(values, 0.0), [[4, -2, 3, 0, 5]])
