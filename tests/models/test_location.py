"""Features of places on the globe."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from jaxmethods.models import location
from jaxmethods.models.hub.folders import HubError

GEOCLIP = (
    Path(os.environ.get("JAXMETHODS_SHARED", "/nowhere"))
    / "data/rs/geoclip_location/model.safetensors"
)
PLACES = np.random.default_rng(0).uniform(-1, 1, (6, 2)) * [85, 175]


def test_harmonics_of_a_degree_have_the_same_power_everywhere():
    """Unsoeld's theorem: the sum over m of |Y_lm|^2 is (2 l + 1) / 4 pi."""
    found = location.spherical_harmonics(PLACES, 4)
    for degree in range(5):
        own = found[:, degree**2 : (degree + 1) ** 2]
        np.testing.assert_allclose((own**2).sum(1), (2 * degree + 1) / (4 * np.pi))


def test_there_is_no_seam_at_the_date_line():
    both = location.wrapped(np.array([[10.0, 180.0], [10.0, -180.0]]), 3)
    np.testing.assert_allclose(both[0], both[1], atol=1e-12)


def test_equal_earth_keeps_areas():
    """The map of a cell is as large as the cell on the sphere, times one factor."""
    step = 0.5
    corners = np.array([[0.0, 0.0], [0.0, step], [step, step], [step, 0.0]])
    shares = []
    for latitude in (0.0, 30.0, 60.0):
        x, y = location.equal_earth(corners + np.array([latitude, 20.0])).T
        area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        sine = np.diff(np.sin(np.radians([latitude, latitude + step])))[0]
        shares.append(area / sine)
    np.testing.assert_allclose(shares, shares[0], rtol=1e-3)


def test_coordinates_must_be_on_the_globe():
    with pytest.raises(ValueError, match="coordinates: expected"):
        location.wrapped(np.array([[91.0, 0.0]]), 1)


def test_another_file_is_refused():
    with pytest.raises(HubError, match="location encoder: expected the tensors"):
        location.geoclip_from_tensors({"fc.weight": np.zeros((2, 2))})


def test_codes_are_no_weights():
    with pytest.raises(HubError, match=r"LocEnc0.capsule.0.b: expected floating-point weights"):
        location.geoclip_from_tensors({"LocEnc0.capsule.0.b": np.zeros((2, 2), np.int8)})


@pytest.mark.skipif(not GEOCLIP.exists(), reason="needs JAXMETHODS_SHARED")
def test_versailles_is_nearer_to_paris_than_tokyo():
    places = np.array([[48.8566, 2.3522], [48.8014, 2.1301], [35.6762, 139.6503]])
    own = np.asarray(location.geoclip(location.load_geoclip(GEOCLIP), places))
    own = own / np.linalg.norm(own, axis=1, keepdims=True)
    assert own[0] @ own[1] > own[0] @ own[2]
