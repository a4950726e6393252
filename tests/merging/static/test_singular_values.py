"""Merges of singular vectors against NumPy."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxmethods import merging

RNG = np.random.default_rng(0)
BASE, TAU = RNG.normal(size=(6, 5)), RNG.normal(size=(2, 6, 5))


def merged(merge, coefficient):
    base, stack = jnp.asarray(BASE, jnp.float32), jnp.asarray(BASE + TAU, jnp.float32)
    return merge({"w": base}, {"w": stack}, coefficient)["w"]


def nearest_orthonormal(matrix):
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    return left @ right


def test_tsv_merges_the_strongest_triples_of_orthonormalized_vectors():
    """Each of T tasks keeps min(out, in) / T of its triples."""
    left, values, right = zip(*[np.linalg.svd(t, full_matrices=False) for t in TAU], strict=True)
    joint_left = nearest_orthonormal(np.concatenate([u[:, :2] for u in left], axis=1))
    joint_right = nearest_orthonormal(np.concatenate([v[:2] for v in right], axis=0))
    joint_values = np.concatenate([s[:2] for s in values])
    expected = BASE + 0.7 * joint_left @ np.diag(joint_values) @ joint_right
    np.testing.assert_allclose(merged(merging.tsv_merge, 0.7), expected, atol=1e-4)


def test_iso_c_gives_the_sum_one_singular_value_the_mean():
    left, values, right = np.linalg.svd(TAU.sum(0), full_matrices=False)
    expected = BASE + 0.7 * values.mean() * left @ right
    np.testing.assert_allclose(merged(merging.iso_c, 0.7), expected, atol=1e-4)


def test_what_is_no_matrix_is_averaged():
    base, stack = jnp.array([1.0, 2.0]), jnp.array([[2.0, 2.0], [1.0, 5.0]])
    for merge in (merging.tsv_merge, merging.iso_c):
        found = merge({"b": base}, {"b": stack}, 2.0)["b"]
        np.testing.assert_allclose(found, [2, 5], rtol=1e-6)
