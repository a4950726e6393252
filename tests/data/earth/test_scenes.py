"""Generated scenes hold what their labels say."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmethods.data.earth.scenes import BUILT, CLASSES, FOREST, WATER, synthetic_scenes
from jaxmethods.data.earth.sensors import SENTINEL2


@pytest.fixture(scope="module")
def scenes():
    return synthetic_scenes(3, 24, 24)


def test_the_same_seed_gives_the_same_scenes(scenes):
    again = synthetic_scenes(3, 24, 24)
    np.testing.assert_array_equal(scenes.optical, again.optical)
    np.testing.assert_array_equal(scenes.radar, again.radar)
    assert np.any(scenes.optical != synthetic_scenes(4, 24, 24).optical)


def test_pixels_without_data_are_zero_and_no_other(scenes):
    np.testing.assert_array_equal(np.all(scenes.optical == 0, axis=-1), ~scenes.valid)
    assert 0 < np.mean(scenes.valid) < 1


def test_spectra_are_those_of_the_ground(scenes):
    names = list(SENTINEL2)

    def mean(band, own):
        chosen = (scenes.labels == own) & scenes.valid
        return scenes.optical[..., names.index(band)][chosen].mean()

    assert mean("B8", FOREST) > 3 * mean("B4", FOREST)  # the red edge
    assert mean("B8", WATER) < mean("B2", WATER)
    assert len(np.unique(scenes.labels)) == len(CLASSES)


def test_radar_is_dark_on_water_and_bright_on_buildings(scenes):
    power = [scenes.radar[scenes.labels == own].mean(0) for own in (WATER, BUILT)]
    assert np.all(power[1] > 20 * power[0])
    assert np.all(scenes.radar > 0)


def test_what_changed_is_what_is_marked(scenes):
    """Outside of a change only the season differs, which water doesn't have."""
    still = (scenes.labels == WATER) & scenes.valid & ~scenes.changed
    gone = (scenes.labels == WATER) & scenes.valid & scenes.changed
    swir = list(SENTINEL2).index("B11")
    before, after = (own[..., swir].astype(int) for own in (scenes.optical, scenes.later))
    assert np.median(np.abs(after - before)[still]) < 200
    assert np.median(np.abs(after - before)[gone]) > 600


def test_buildings_are_built(scenes):
    for corners, labels in zip(scenes.boxes[:, -1], scenes.labels, strict=True):
        x, y = corners.mean(0)
        assert labels[int(y), int(x)] == BUILT


def test_captions_name_the_two_largest_classes(scenes):
    first = scenes.captions[0]
    counts = np.bincount(scenes.labels[0].reshape(-1), minlength=5)
    assert CLASSES[np.argmax(counts)] in first
    assert scenes.main_pairs().min() >= 0


def test_coarser_pixels_are_means():
    fine, coarse = synthetic_scenes(5, 2, 16), synthetic_scenes(5, 2, 8, gsd=20.0)
    assert coarse.optical.shape == (2, 8, 8, 13)
    assert coarse.gsd == 20
    means = fine.optical.astype(float).reshape(2, 8, 2, 8, 2, 13).mean((2, 4))
    seen = fine.valid.reshape(2, 8, 2, 8, 2).all((2, 4)) & coarse.valid
    np.testing.assert_allclose(coarse.optical[seen], means[seen], atol=1)
    with pytest.raises(ValueError, match="gsd: expected a multiple of 10 meters, got 15"):
        synthetic_scenes(0, 1, 8, gsd=15.0)
