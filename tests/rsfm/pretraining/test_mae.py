"""What masked autoencoders' losses depend on, and what they don't."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmethods.models.geovit import EncoderConfig
from jaxmethods.models.geovit.patches import patchify
from jaxmethods.rsfm.config import MAEConfig
from jaxmethods.rsfm.pretraining import mae, masking, satmae, targets
from tests.rsfm.small import MAE, TINY, draw, mae_params, uniform

forward = functools.partial(jax.jit, static_argnames="config")(mae.forward)
GROUPED = EncoderConfig.model_validate(
    TINY.model_dump()
    | {"embedding": "grouped", "groups": ((0, 2), (1,)), "positions": "group", "channel_width": 8}
)
GROUPS = MAE.model_copy(update={"encoder": GROUPED, "decoder_channel_width": 8})


@pytest.fixture(scope="module")
def images():
    return draw(0, 2, 16, 16, 3)


@given(ratio=st.floats(0.05, 0.9), seed=st.integers(0, 5))
@settings(max_examples=10)
def test_as_many_tokens_are_hidden_as_the_ratio_says(ratio, seed):
    noise = jnp.round(uniform(seed, 2, 12), 1)  # with ties
    kept = int(12 * (1 - ratio))
    masks = masking.random_masks(noise, ratio)
    assert masks.keep.shape == (2, kept)
    np.testing.assert_array_equal(jnp.sum(masks.hidden, axis=1), 12 - kept)
    seen = jnp.take_along_axis(masks.hidden, masks.keep, axis=1)
    np.testing.assert_array_equal(seen, 0)


def test_kept_tokens_return_to_their_places():
    masks = masking.random_masks(uniform(1, 2, 12), 0.5)
    tokens = draw(1, 2, 12, 4)
    kept = jnp.take_along_axis(tokens, masks.keep[..., None], axis=1)
    filled = masking.fill(kept, jnp.full(4, 9.0), masks)
    expected = jnp.where(masks.hidden[..., None] > 0, 9.0, tokens)
    np.testing.assert_array_equal(filled, expected)


def test_a_shared_mask_hides_the_same_places_of_all_groups():
    one = masking.random_masks(uniform(1, 2, 6), 0.5)
    three = masking.repeated(one, 3)
    hidden = three.hidden.reshape(2, 3, 6)
    np.testing.assert_array_equal(hidden, jnp.stack([one.hidden] * 3, 1))
    tokens = draw(2, 2, 18, 4)
    kept = jnp.take_along_axis(tokens, three.keep[..., None], axis=1)
    filled = masking.fill(kept, jnp.zeros(4), three)
    np.testing.assert_array_equal(filled, tokens * (three.hidden[..., None] == 0))


def test_what_is_painted_where_the_image_was_seen_does_not_matter(images):
    hidden = masking.random_masks(uniform(1, 2, 16), 0.5).hidden
    pred = draw(2, 2, 16, 48)
    other = jnp.where(hidden[..., None] > 0, pred, 7.0)
    own = [mae.pixel_loss(MAE, images, one, hidden) for one in (pred, other)]
    assert own[0] == own[1]


def test_a_constant_patch_is_a_target_of_zeros():
    target = targets.normalized(jnp.full((1, 2, 16, 3), 5.0), None, "joint")
    np.testing.assert_array_equal(target, 0)


def test_the_variance_is_unbiased_over_a_patch_or_over_each_of_its_bands():
    target = draw(3, 2, 4, 16, 3)
    joint = targets.normalized(target, None, "joint")
    np.testing.assert_allclose(jnp.var(joint, axis=(2, 3), ddof=1), 1, rtol=1e-4)
    each = targets.normalized(target, None, "per_band")
    np.testing.assert_allclose(jnp.var(each, axis=2, ddof=1), 1, rtol=1e-4)


def test_pixels_without_data_change_nothing(images):
    valid = jnp.asarray(np.random.default_rng(0).random((2, 16, 16)) < 0.8)
    hidden = masking.random_masks(uniform(1, 2, 16), 0.5).hidden
    pred = draw(2, 2, 16, 48)
    spoiled, unseen = (jnp.where(valid[..., None], images, own) for own in (1e4, jnp.nan))
    own = [mae.pixel_loss(MAE, one, pred, hidden, valid) for one in (images, spoiled, unseen)]
    np.testing.assert_allclose(own[1:], [own[0]] * 2, rtol=1e-6)
    gaps = mae.forward(mae_params(MAE), MAE, unseen, uniform(1, 2, 16), valid=valid)
    assert np.isfinite(gaps.loss)
    everywhere = jnp.ones_like(valid)
    whole = [mae.pixel_loss(MAE, images, pred, hidden, one) for one in (None, everywhere)]
    np.testing.assert_allclose(whole[0], whole[1], rtol=1e-6)


def test_a_tile_without_data_has_no_loss(images):
    nothing = jnp.zeros((2, 16, 16), bool)
    hidden = jnp.ones((2, 16))
    assert mae.pixel_loss(MAE, images, draw(2, 2, 16, 48), hidden, nothing) == 0


def test_groups_compare_every_band_with_itself(images):
    """Perfect pixels of all bands, in the order of the groups, have no loss."""
    rows = patchify(images[..., jnp.array([0, 2, 1])], 4).reshape(2, 16, 16, 3)
    pred = rows.transpose(0, 3, 1, 2)
    config = GROUPS.model_copy(update={"norm_pix": "none"})
    hidden = jnp.ones((2, 32))
    assert satmae.loss(config, images, pred, hidden) == 0
    published = config.model_copy(update={"pairing": "published"})
    assert satmae.loss(published, images, pred, hidden) > 0.1


@pytest.mark.slow
def test_groups_of_the_same_mask_hide_as_much_of_each(images):
    shared = MAEConfig.model_validate(GROUPS.model_dump() | {"masking": "shared"})
    out = forward(mae_params(GROUPS), shared, images, uniform(1, 2, 16))
    hidden = out.masks.hidden.reshape(2, 2, 16)
    np.testing.assert_array_equal(hidden[:, 0], hidden[:, 1])
    assert out.pred.shape == (2, 3, 16, 16)


@pytest.mark.slow
def test_half_precision_gives_the_loss_to_a_percent(images):
    params, noise = mae_params(MAE), uniform(1, 2, 16)
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    own, half = (forward(tree, MAE, images, noise).loss for tree in (params, narrow))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, own, rtol=1e-2)


def test_a_mask_that_keeps_nothing_is_refused():
    with pytest.raises(ValueError, match="mask_ratio: expected at least one of 16 tokens"):
        MAEConfig.model_validate(MAE.model_dump() | {"mask_ratio": 0.95})
