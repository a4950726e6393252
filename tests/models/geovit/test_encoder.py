"""What an encoder of Earth observation keeps whatever it is asked for."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.models import geovit
from jaxmethods.models.geovit import Context, EncoderConfig, positions, wavelength
from tests.rsfm.small import TINY, draw, encoder_params

encode = functools.partial(jax.jit, static_argnames=("config", "taps"))(geovit.encode)


def close(own, other, tolerance=1e-5):
    np.testing.assert_allclose(own, other, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def images():
    return draw(0, 3, 16, 16, 3)


def test_keeping_all_patches_in_any_order_changes_no_token(images):
    params = encoder_params(TINY)
    whole = encode(params, TINY, images)
    order = jnp.asarray(np.random.default_rng(1).permuted(np.tile(np.arange(16), (3, 1)), axis=1))
    shuffled = encode(params, TINY, images, keep=order)
    close(shuffled.cls, whole.cls)
    close(shuffled.patches, jnp.take_along_axis(whole.patches, order[..., None], 1))


def test_an_image_is_encoded_as_it_would_be_alone(images):
    params = encoder_params(TINY)
    close(encode(params, TINY, images[1:2]).cls[0], encode(params, TINY, images).cls[1])


def test_the_residual_stream_has_a_layer_more_than_there_are_blocks(images):
    hidden = encode(encoder_params(TINY), TINY, images, taps=("hidden",)).hidden
    assert hidden.shape == (2, 3, 17, 16)


def test_one_meter_gives_the_plain_table_and_two_meters_every_second_row():
    one = positions.ground(16, 8, jnp.array([1.0, 2.0]))
    close(one[0], positions.plain(16, 8), 1e-6)
    grids = one[:, 1:].reshape(2, 8, 8, 16)
    close(grids[1, :4, :4], grids[0, ::2, ::2], 1e-6)


def test_whole_meters_are_not_counted_in_their_type():
    wide, narrow = (positions.ground(16, 8, jnp.array([60], t)) for t in ("float32", "uint8"))
    close(narrow, wide, 0)


def test_ground_sampling_distance_has_no_default(images):
    config = TINY.model_copy(update={"positions": "gsd"})
    with pytest.raises(ValueError, match="gsd: expected meters"):
        geovit.encode(encoder_params(TINY), config, images)


def test_bands_and_wavelengths_reordered_together_give_the_same_tokens():
    fields = {"embedding": "wavelength", "wave_width": 8, "wave_tokens": 3, "wave_hidden": 8}
    config = TINY.model_copy(update=fields | {"channels": 4, "padding": 1})
    params, images = encoder_params(config), draw(2, 2, 16, 16, 4)
    waves, order = jnp.array([0.49, 0.56, 0.665, 0.842]), jnp.array([2, 0, 3, 1])

    encode = jax.jit(geovit.encode, static_argnums=1)

    def tokens(config, order):
        context = Context(wavelengths=waves[order])
        return encode(params, config, images[..., order], context).patches

    straight = jnp.arange(4)
    close(tokens(config, order), tokens(config, straight))
    mixed = config.model_copy(update={"kernel_layout": "raw_view"})
    assert np.abs(tokens(mixed, order) - tokens(mixed, straight)).max() > 1e-3


def test_an_encoder_of_fixed_bands_gives_the_generated_tokens():
    fields = {"embedding": "wavelength", "wave_width": 8, "wave_tokens": 3, "wave_hidden": 8}
    config = TINY.model_copy(update=fields)
    params, images = encoder_params(config), draw(2, 2, 16, 16, 3)
    waves = jnp.array([0.665, 0.56, 0.49])
    own = geovit.encode(params, config, images, Context(wavelengths=waves))
    fixed, plain = wavelength.fixed_bands(params, config, waves)
    assert plain.embedding == "conv"
    close(geovit.encode(fixed, plain, images).cls, own.cls)


def test_frames_in_another_order_with_their_dates_give_the_same_mean():
    config = EncoderConfig(
        **TINY.model_dump(exclude={"positions", "frames", "date_width"}),
        positions="temporal",
        frames=3,
        date_width=4,
    )
    params, images = encoder_params(config), draw(3, 2, 3, 16, 16, 3)
    dates = jnp.asarray(np.random.default_rng(4).integers(0, 12, (2, 3, 3)))
    own = encode(params, config, images, Context(timestamps=dates))
    order = jnp.array([2, 0, 1])
    other = encode(params, config, images[:, order], Context(timestamps=dates[:, order]))
    close(own.cls, other.cls)
    close(own.patches.reshape(2, 3, 16, 16)[:, order], other.patches.reshape(2, 3, 16, 16))


def test_sensors_share_the_trunk_and_have_embeddings_of_their_own():
    sensors = (("optical", 4), ("radar", 2))
    fields = {"embedding": "per_sensor", "sensors": sensors}
    config = EncoderConfig.model_validate(TINY.model_dump() | fields)
    params = encoder_params(config)
    for name, bands in sensors:
        own = geovit.encode(params, config, draw(5, 2, 16, 16, bands), sensor=name)
        assert own.cls.shape == (2, 16)
    with pytest.raises(ValueError, match="sensor: expected one of optical, radar, got 'sonar'"):
        geovit.encode(params, config, draw(5, 2, 16, 16, 4), sensor="sonar")


def test_images_of_another_shape_are_refused(images):
    with pytest.raises(ValueError, match=r"expected \[B, 16, 16, 3\], got \(3, 12, 16, 3\)"):
        geovit.encode(encoder_params(TINY), TINY, images[:, :12])


def test_cutting_into_patches_is_undone():
    images = draw(6, 2, 8, 8, 3)
    for order in ("channel_first", "channel_last"):
        rows = geovit.patches.patchify(images, 4, order)
        np.testing.assert_array_equal(geovit.patches.unpatchify(rows, 4, 3, order), images)


def test_a_table_that_is_learned_is_resized_with_the_images(images):
    config = TINY.model_copy(update={"positions": "learned"})
    params, larger = geovit.at_size(encoder_params(config), config, 32)
    assert params["positions"].shape == (65, 16)
    assert geovit.encode(params, larger, jnp.tile(images, (1, 2, 2, 1))).patches.shape[1] == 64


def test_means_of_areas_and_neighbors():
    ramp = jnp.arange(6.0).reshape(1, 6, 1, 1)
    own = {how: geovit.resize.resize(ramp, (3, 1), how)[0, :, 0, 0] for how in FILTERS}
    close(own["area"], [0.5, 2.5, 4.5])
    close(own["nearest"], [0, 2, 4])
    close(own["bilinear"], [0.5, 2.5, 4.5])
    with pytest.raises(ValueError, match="images: expected floating-point ones, got int32"):
        geovit.resize.resize(ramp.astype(int), (3, 1), "area")
    narrow = (3 + draw(0, 6, 6, 2)).astype(jnp.bfloat16)
    exact = geovit.resize.resize(narrow.astype(jnp.float32), (7, 7), "bicubic")
    rounded = geovit.resize.resize(narrow, (7, 7), "bicubic")
    np.testing.assert_array_equal(rounded, exact.astype(jnp.bfloat16))


FILTERS = ("area", "nearest", "bilinear")


def test_features_are_named_by_what_is_pooled():
    encoded = geovit.Encoded(draw(5, 2, 16), draw(6, 2, 4, 16))
    patches = np.asarray(encoded.patches)
    own = geovit.pool({}, TINY, encoded, "mean+std")
    np.testing.assert_allclose(own, np.concatenate([patches.mean(1), patches.std(1)], 1), atol=1e-6)
    both = geovit.pool({}, TINY, encoded, "cls+mean")
    np.testing.assert_array_equal(both[:, :16], encoded.cls)
    np.testing.assert_array_equal(both[:, 16:], own[:, :16])
    np.testing.assert_array_equal(geovit.pool({}, TINY, encoded, "cls"), encoded.cls)
