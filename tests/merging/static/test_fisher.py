"""Fisher information and what it weighs, against NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import merging


def logits(params, inputs):
    return inputs @ params["w"].T


def test_every_entry_is_the_mean_weighted_by_its_information():
    stack = {"w": jnp.array([[1.0, 2.0], [3.0, 10.0]])}
    fisher = {"w": jnp.array([[1.0, 0.0], [3.0, 0.0]])}
    found = merging.fisher_merge(stack, fisher, normalize=False)["w"]
    np.testing.assert_allclose(found, [(1 + 3 * 3) / 4, 6], rtol=1e-5)
    found = merging.fisher_merge(stack, fisher, normalize=False, coefficients=[3.0, 1.0])["w"]
    np.testing.assert_allclose(found, [2, (3 * 2 + 10) / 4], rtol=1e-5)


def test_the_floor_is_added_to_all_information():
    """Information of one floor and of none weighs two to one, of none at all one to one."""
    stack = {"w": jnp.array([[1.0, 1.0], [4.0, 4.0]])}
    information = {"w": jnp.array([[1e-3, 0.0], [0.0, 0.0]])}
    merged = merging.fisher_merge(stack, information, normalize=False, floor=1e-3)
    np.testing.assert_allclose(merged["w"], [2.0, 2.5], rtol=1e-5)


def test_no_task_wins_by_the_scale_of_its_gradients():
    stack = {"w": jnp.array([[1.0, 2.0], [3.0, 10.0]])}
    fisher = {"w": jnp.array([[1.0, 2.0], [2.0, 1.0]])}
    scaled = {"w": fisher["w"] * jnp.array([[1.0], [1000.0]])}
    one, other = (merging.fisher_merge(stack, f)["w"] for f in (fisher, scaled))
    np.testing.assert_allclose(one, other, rtol=1e-4)
    np.testing.assert_allclose(one, [(1 + 2 * 3) / 3, (2 * 2 + 10) / 3], rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_the_batch_kind_squares_the_gradient_of_the_root_weighted_log_likelihood(chunk):
    """Per chunk (sum_x sum_y sqrt(p) d log p)^2 with sqrt(p) held still, over all samples."""
    params = {"w": jnp.array([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.2]])}
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
    found = merging.fisher_diagonal(logits, params, inputs, chunk=chunk, kind="batch")["w"]
    p = np.asarray(jax.nn.softmax(logits(params, inputs)))
    root = np.sqrt(p)
    # d log p_y / d logit_c = 1[y = c] - p_c
    of_logits = root - root.sum(1, keepdims=True) * p
    of_sample = of_logits[:, :, None] * np.asarray(inputs)[:, None]
    of_chunk = of_sample.reshape(-1, chunk, 3, 2).sum(1)
    np.testing.assert_allclose(found, (of_chunk**2).sum(0) / 4, rtol=1e-4)


def test_regmeans_jitter_is_a_ridge_of_the_mean_diagonal():
    rng = np.random.default_rng(0)
    inputs, weights = rng.normal(size=(2, 9, 3)), rng.normal(size=(2, 4, 3))
    grams = np.einsum("tni,tnj->tij", inputs, inputs) / 9
    total = grams.sum(0)
    total = total + 0.1 * np.trace(total) / 3 * np.eye(3)
    expected = np.linalg.solve(total, np.einsum("tij,toj->io", grams, weights)).T
    stack = {"w": jnp.asarray(weights, jnp.float32)}
    found = merging.regmean(stack, {"w": jnp.asarray(grams, jnp.float32)}, jitter=0.1)
    np.testing.assert_allclose(found["w"], expected, atol=1e-4)


def test_regmeans_alpha_shrinks_what_is_off_the_diagonal():
    rng = np.random.default_rng(1)
    inputs, weights = rng.normal(size=(2, 9, 3)), rng.normal(size=(2, 4, 3))
    grams = np.einsum("tni,tnj->tij", inputs, inputs) / 9
    shrunk = grams * np.where(np.eye(3), 1, 0.6)
    expected = np.linalg.solve(shrunk.sum(0), np.einsum("tij,toj->io", shrunk, weights)).T
    stack = {"w": jnp.asarray(weights, jnp.float32)}
    found = merging.regmean(stack, {"w": jnp.asarray(grams, jnp.float32)}, alpha=0.6)
    np.testing.assert_allclose(found["w"], expected, atol=1e-4)
