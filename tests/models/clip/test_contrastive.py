"""Losses of pairs, whole and split over devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.models.clip.contrastive import clip_loss, infonce
from tests.programs import normal


def test_a_batch_that_is_split_has_the_loss_and_gradient_of_the_whole():
    first, second = normal(0, 8, 5), normal(1, 8, 5)

    def split(first, second):
        parts = (first.reshape(4, 2, 5), second.reshape(4, 2, 5))
        return jnp.mean(jax.vmap(lambda a, b: infonce(a, b, axis_name="i"), axis_name="i")(*parts))

    whole = jax.jit(jax.value_and_grad(infonce, (0, 1)))(first, second)
    own = jax.jit(jax.value_and_grad(split, (0, 1)))(first, second)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), own, whole)


def test_neither_order_nor_length_matters():
    first, second = normal(0, 6, 5), normal(1, 6, 5)
    loss = infonce(first, second)
    order = jnp.array([3, 1, 0, 5, 4, 2])
    np.testing.assert_allclose(infonce(3 * first[order], second[order]), loss, rtol=1e-5)


def test_identical_pairs_that_are_orthogonal_have_almost_no_loss():
    assert infonce(jnp.eye(4), jnp.eye(4)) < 1e-5


def test_the_scale_is_bounded():
    own = [clip_loss(normal(0, 4, 5), normal(1, 4, 5), jnp.asarray(s)) for s in (np.log(100), 9.0)]
    np.testing.assert_allclose(own[0], own[1], rtol=1e-6)
