"""Ridge and neighbors on places."""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.data.earth.places import read_places
from jaxmethods.models import location
from jaxmethods.rsfm.location import regression
from tests.rsfm.small import draw

GEOCLIP = (
    Path(os.environ.get("JAXMETHODS_SHARED", "/nowhere"))
    / "data/rs/geoclip_location/model.safetensors"
)
fit = jax.jit(regression.fit_ridge, static_argnames="lams")


def test_the_penalty_predicts_left_out_places_best():
    x, y = draw(0, 12, 3), draw(1, 12, 2)
    lams = (0.1, 10.0)

    def direct(lam):
        """One fit for each place that is left out, of centered and scaled features."""
        own = np.concatenate([(x - x.mean(0)) / x.std(0), np.ones((12, 1))], 1)
        penalty = np.diag([lam] * 3 + [0.0])
        errors = []
        for place in range(12):
            rest = np.arange(12) != place
            weight = np.linalg.solve(own[rest].T @ own[rest] + penalty, own[rest].T @ y[rest])
            errors.append(np.square(y[place] - own[place] @ weight))
        return np.mean(errors)

    best = min(lams, key=direct)
    assert best == 10.0  # of noise, which the smaller penalty fits better
    found = fit(x, y, lams)
    assert float(found.lam) == pytest.approx(best)
    own = (x - x.mean(0)) / x.std(0)
    weight = np.linalg.solve(own.T @ own + best * np.eye(3), own.T @ (y - y.mean(0)))
    np.testing.assert_allclose(found(x), own @ weight + y.mean(0), atol=1e-4)


def test_a_constant_feature_and_more_features_than_places_are_no_trouble():
    x = jnp.concatenate([draw(0, 6, 9), jnp.ones((6, 1))], axis=1)
    assert np.isfinite(fit(x, draw(1, 6, 1))(x)).all()


def test_half_precision_is_fitted_in_float32():
    x, y = (jnp.round(30 * draw(seed, 6, 10)) for seed in (0, 1))
    own = fit(x.astype(jnp.float16), y[:, :1].astype(jnp.float16))
    np.testing.assert_allclose(own.weight, fit(x, y[:, :1]).weight, rtol=1e-5)


def test_features_that_fit_every_place_are_judged_by_what_they_say_of_others():
    """Residuals and 1 - h both vanish; the second target, a class that no place has, is 0 / 0."""
    x = np.asarray(draw(0, 30, 1024), np.float64)
    y = np.concatenate([draw(1, 30, 1), np.zeros((30, 1))], axis=1)
    lams = (1e-4, 1.0, 1e4)

    def direct(lam):
        own, truth = (x - x.mean(0)) / x.std(0), y - y.mean(0)
        hat = own @ own.T @ np.linalg.inv(own @ own.T + lam * np.eye(30))
        return np.mean(np.square((truth - hat @ truth) / (1 - 1 / 30 - np.diag(hat))[:, None]))

    best = min(lams, key=direct)
    assert best == 1e4  # of noise
    assert direct(best) < 0.95 * direct(1.0)
    assert float(fit(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), lams).lam) == best


def test_a_degree_is_a_sixtieth_of_sixty_nautical_miles():
    equator = np.array([[0.0, 179.5], [0.0, -179.5], [0.0, 0.0]])
    found = regression.kilometers(equator, equator)
    assert found[0, 1] == pytest.approx(60 * 1.853, rel=1e-3)
    assert found[0, 0] == 0
    assert found[0, 2] == pytest.approx(179.5 * 111.19, rel=1e-3)


def test_neighbors_are_found_across_the_date_line():
    places = np.array([[0.0, 170.0], [0.0, 10.0], [0.0, 20.0]])
    targets = np.array([[1.0], [2.0], [4.0]])
    own = regression.nearest_places(places, targets, np.array([[0.0, -175.0], [0.0, 14.0]]), k=1)
    np.testing.assert_array_equal(own, [[1.0], [2.0]])
    with pytest.raises(ValueError, match="k: expected 1 to the 3 places, got 4"):
        regression.nearest_places(places, targets, places, k=4)


def test_a_line_is_a_perfect_correlation():
    x = np.arange(5.0)
    assert regression.squared_correlation(x, 3 - 2 * x) == pytest.approx(1)
    assert regression.squared_correlation(x, np.ones(5)) == 0


@pytest.mark.slow
@pytest.mark.skipif(not GEOCLIP.exists(), reason="needs JAXMETHODS_SHARED")
def test_geoclip_knows_regions_that_a_plane_of_coordinates_does_not():
    """Which part of the world a town lies in: 90 and 54 percent were measured over five folds."""
    places = read_places()
    known = sorted(set(places.regions))
    labels = np.array([known.index(own) for own in places.regions])
    rest = np.random.default_rng(0).permutation(len(labels)) % 5 > 0
    embedded = location.geoclip(location.load_geoclip(GEOCLIP), places.coordinates)
    right = []
    for features in (np.asarray(embedded), places.coordinates.astype(np.float32)):
        found = fit(features[rest], np.eye(len(known), dtype=np.float32)[labels[rest]])
        said = np.argmax(found(features[~rest]), axis=1)
        right.append(np.mean(said == labels[~rest]))
    assert right[0] > right[1] + 0.2


def test_a_feature_that_was_constant_says_nothing():
    """0.1 has no exact mean: what it is off by is no spread to divide by."""
    features = draw(2, 40, 3).at[:, 1].set(0.1)
    targets = features[:, :1]
    moved = features.at[:, 1].set(0.2)
    found = regression.fit_ridge(features, targets)
    np.testing.assert_allclose(found(moved), found(features), atol=1e-3)
    assert found.scale[1] == 1
