"""Scale-MAE's frequencies, and the convolutions that paint them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.models.geovit import EncoderConfig
from jaxmethods.rsfm.config import ScaleMAEConfig
from jaxmethods.rsfm.pretraining import scale_mae
from tests.rsfm.small import draw

CONFIG = ScaleMAEConfig(
    encoder=EncoderConfig(
        width=16, depth=1, heads=2, patch=16, image_size=32, channels=3, positions="gsd"
    ),
    decoder_width=16,
    decoder_depth=1,
    decoder_heads=2,
    fcn_width=8,
    fcn_layers=1,
    bands=(7, 28),
)


def test_convolutions_are_those_of_xla():
    x, weight, bias = draw(0, 2, 5, 6, 8), draw(1, 4, 2, 3, 3), draw(2, 4)
    own = scale_mae.convolve({"weight": weight, "bias": bias}, x)
    expected = jax.lax.conv_general_dilated(
        x,
        weight,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        feature_group_count=4,
    )
    np.testing.assert_allclose(own, expected + bias, atol=1e-5)


def test_a_pixel_is_enlarged_to_its_own_square():
    x, weight = draw(0, 1, 2, 2, 3), draw(1, 3, 4, 2, 2)
    own = scale_mae.enlarge({"weight": weight, "bias": jnp.zeros(4)}, x)
    expected = jnp.einsum("c,coij->ijo", x[0, 1, 0], weight)
    np.testing.assert_allclose(own[0, 2:, :2], expected, atol=1e-5)


def test_a_constant_image_has_no_high_frequencies():
    high, low = scale_mae.frequencies(CONFIG, jnp.full((1, 64, 64, 3), 2.0))
    np.testing.assert_allclose(high, 0, atol=1e-6)
    np.testing.assert_allclose(low, jnp.full((1, 32, 32, 3), 2.0), rtol=1e-6)


@pytest.mark.slow
def test_a_fresh_model_paints_twice_and_once_the_size():
    params = scale_mae.init(jax.random.key(0), CONFIG)
    run = jax.jit(scale_mae.forward, static_argnames="config")
    noise, gsd = draw(2, 2, 4), jnp.array([1.0, 10.0])
    out = run(params, CONFIG, draw(0, 2, 32, 32, 3), draw(1, 2, 64, 64, 3), noise, gsd)
    assert out.pred.high.shape == (2, 64, 64, 3)
    assert out.pred.low.shape == (2, 32, 32, 3)
    assert np.isfinite(out.loss)
    other = run(params, CONFIG, draw(0, 2, 32, 32, 3), draw(1, 2, 64, 64, 3), noise, gsd * 2)
    assert np.abs(other.pred.low - out.pred.low).max() > 1e-3


def test_what_is_painted_where_nothing_was_seen_has_no_loss():
    targets, hidden = draw(0, 1, 64, 64, 3), jnp.ones((1, 4))
    valid = jnp.ones((1, 64, 64), bool).at[:, 10:20, 3:9].set(False)
    unseen = jnp.where(valid[..., None], targets, jnp.nan)
    high, low = scale_mae.frequencies(CONFIG, jnp.where(valid[..., None], targets, 0))
    perfect = scale_mae.Pyramid(high.at[:, 10:20, 3:9].set(9), low.at[:, 5:10, 2:4].set(9))
    assert scale_mae.loss(CONFIG, perfect, unseen, hidden, valid) == 0
    assert scale_mae.loss(CONFIG, perfect, jnp.nan_to_num(unseen), hidden) > 0
