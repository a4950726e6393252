"""Pixels are normalized by name and by a policy, or not at all."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmethods.data.earth import normalization, sensors
from jaxmethods.errors import DataError

NAMES = ("B4", "B3", "B2")
DIGITAL = np.random.default_rng(0).integers(0, 6000, (4, 5, 5, 3)).astype(np.uint16)


def test_images_have_mean_0_and_deviation_1_by_their_own_statistics():
    statistics = normalization.dataset_statistics(DIGITAL, NAMES)
    own = normalization.normalize(DIGITAL, NAMES, "dataset", statistics)
    np.testing.assert_allclose(own.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(own.std((0, 1, 2)), 1, rtol=1e-5)


def test_bands_in_another_order_are_normalized_by_their_names():
    order = [2, 0, 1]
    names = tuple(NAMES[place] for place in order)
    one = normalization.minmax_2sd(DIGITAL, NAMES, sensors.FMOW_SENTINEL)
    other = normalization.minmax_2sd(DIGITAL[..., order], names, sensors.FMOW_SENTINEL)
    np.testing.assert_array_equal(one[..., order], other)


def test_there_are_no_default_statistics():
    with pytest.raises(DataError, match="expected the model's mean and standard deviation"):
        normalization.normalize(DIGITAL, NAMES, "model", None, full_scale=10000)


def test_the_unit_is_said_and_not_guessed():
    statistics = sensors.FMOW_SENTINEL
    with pytest.raises(DataError, match="full_scale: expected the value that is full scale"):
        normalization.normalize(DIGITAL, NAMES, "model", statistics)
    scaled = DIGITAL / 10000
    with pytest.raises(DataError, match="they were scaled before"):
        normalization.normalize(scaled, NAMES, "model", statistics, full_scale=10000)
    with pytest.raises(DataError, match="they are not scaled yet"):
        normalization.normalize(DIGITAL, NAMES, "model", statistics, full_scale=1)
    one = normalization.normalize(DIGITAL, NAMES, "model", statistics, full_scale=10000)
    other = normalization.normalize(scaled, NAMES, "model", statistics, full_scale=1)
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_missing_and_surplus_bands_are_named():
    with pytest.raises(DataError, match="statistics: expected band B4, got R, G, B"):
        normalization.minmax_2sd(DIGITAL, NAMES, sensors.IMAGENET)
    with pytest.raises(DataError, match=r"expected 2 \(B4, B3\), got images of 3"):
        normalization.dataset_statistics(DIGITAL, NAMES[:2])
    with pytest.raises(DataError, match="expected a pixel with data"):
        normalization.dataset_statistics(DIGITAL, NAMES, np.zeros((4, 5, 5), bool))


def test_a_band_that_does_not_vary_is_divided_by_one_and_nan_is_refused():
    constant = np.full((1, 2, 2, 3), 5.0, np.float32)
    statistics = normalization.dataset_statistics(constant, NAMES)
    own = normalization.normalize(constant + 2, NAMES, "dataset", statistics)
    np.testing.assert_array_equal(own, np.full(own.shape, 2.0))
    # Columns of a trace gas in mol / m^2 vary by 1e-7: the unit is no sign of a constant.
    gas = 1e-9 * np.random.default_rng(0).normal(100, 30, (2, 4, 4, 3)).astype(np.float32)
    own = normalization.dataset_statistics(gas, NAMES)
    scaled = normalization.normalize(gas, NAMES, "dataset", own)
    np.testing.assert_allclose(scaled.std((0, 1, 2)), 1, rtol=1e-4)
    constant[0, 0, 0, 1] = np.nan
    with pytest.raises(DataError, match="got NaN or infinity in band B3"):
        normalization.dataset_statistics(constant, NAMES)
    valid = ~np.isnan(constant).any(-1)
    assert np.isfinite(normalization.dataset_statistics(constant, NAMES, valid).mean).all()


def test_integers_are_cast_before_anything_is_subtracted():
    statistics = normalization.dataset_statistics(DIGITAL, NAMES)
    small = np.zeros((1, 1, 1, 3), np.uint16)
    assert np.all(normalization.normalize(small, NAMES, "dataset", statistics) < 0)


def test_decibels_of_nothing_are_finite():
    own = normalization.decibels(np.array([0.0, 1e-9, 1.0, 10.0], np.float32))
    np.testing.assert_allclose(own, [-60, -60, 0, 10])


def test_every_band_has_a_wavelength():
    own = sensors.wavelengths_of(("B8A", "R", "VV"))
    np.testing.assert_allclose(own, [0.865, 0.665, 3.75])
    with pytest.raises(DataError, match="got X1"):
        sensors.wavelengths_of(("X1",))


def test_b8a_stands_last_in_eurosats_files():
    places = sensors.places_of(sensors.EUROSAT_MS, ("B8A", "B9"), "EuroSAT")
    np.testing.assert_array_equal(places, [12, 8])
    assert sorted(sensors.EUROSAT_MS) == sorted(sensors.SENTINEL2)
