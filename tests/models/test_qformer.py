"""Queries that read windows: order, masks, dropout, absorbed maps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.models import qformer
from jaxmethods.models.qformer import QFormerConfig
from tests.programs import weights

CONFIG = QFormerConfig(width=8, layers=2, heads=2, mlp_width=12, queries=1, dropout=0.5)


def params(queries=1):
    return weights(qformer.init, CONFIG.model_copy(update={"queries": queries}), 6)


read = jax.jit(qformer.read, static_argnames=("config", "absorb", "attention"))


def windows(number=3, kernel=4):
    return jax.random.normal(jax.random.key(1), (number, kernel, 6))


def test_the_order_of_frames_does_not_matter():
    found = read(params(), CONFIG, windows()).states
    turned = read(params(), CONFIG, windows()[:, ::-1]).states
    np.testing.assert_allclose(turned, found, atol=1e-5)


def test_windows_are_read_one_by_one():
    found = read(params(), CONFIG, windows()).states
    np.testing.assert_allclose(
        read(params(), CONFIG, windows()[::-1]).states, found[::-1], atol=1e-6
    )


@pytest.mark.parametrize("queries", [1, 3])
def test_absorbed_maps_give_the_same(queries):
    config = CONFIG.model_copy(update={"queries": queries})
    mask = jnp.arange(4) < jnp.asarray([[4], [2], [1]])
    for own in (None, mask):
        plain = read(params(queries), config, windows(), own, absorb=False)
        absorbed = read(params(queries), config, windows(), own)
        np.testing.assert_allclose(absorbed.states, plain.states, atol=2e-6)


def test_frames_that_are_masked_are_not_read():
    mask = jnp.arange(4) < 2
    mask = jnp.broadcast_to(mask, (3, 4))
    found = read(params(), CONFIG, windows(), mask).states
    np.testing.assert_allclose(found, read(params(), CONFIG, windows()[:, :2]).states, atol=1e-6)


def test_a_window_without_frames_is_finite():
    found = read(params(), CONFIG, windows(), jnp.zeros((3, 4), bool)).states
    assert jnp.all(jnp.isfinite(found))


def test_dropout_needs_a_key_and_absorbed_maps_keep_its_shares():
    still = read(params(), CONFIG, windows()).states
    dropped = [
        read(params(), CONFIG, windows(), key=jax.random.key(2), absorb=absorb).states
        for absorb in (True, False)
    ]
    assert not np.allclose(still, dropped[0])
    np.testing.assert_allclose(*dropped, atol=1e-5)


def test_one_query_has_no_gradient_to_its_self_attention():
    def loss(own):
        return jnp.sum(jnp.sin(read(own, CONFIG, windows()).states))

    gradient = jax.grad(loss)(params())["layers"]["attention"]
    for name in ("query", "key"):
        assert jnp.all(gradient[name]["kernel"] == 0)
    assert jnp.any(gradient["value"]["kernel"] != 0)


def test_constant_frames_are_no_nan_in_half_precision():
    flat = jnp.ones((2, 3, 6), jnp.bfloat16)
    assert jnp.all(jnp.isfinite(read(params(), CONFIG, flat).states.astype(jnp.float32)))


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="heads: expected a divisor of the width 8, got 3"):
        QFormerConfig(width=8, heads=3)
