"""Towns of time zones."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmethods.data.earth.places import read_places
from jaxmethods.errors import DataError

LINES = (
    "# code\tcoordinates\tTZ\n"
    "AR\t-3436-05827\tAmerica/Argentina/Buenos_Aires\tBuenos Aires\n"
    "IN\t+2232+08822\tAsia/Kolkata\n"
    "US\t+404251-0740023\tAmerica/New_York\tEastern\n"
)


def test_coordinates_are_degrees_with_signs(tmp_path):
    path = tmp_path / "zone.tab"
    path.write_text(LINES)
    own = read_places(path)
    assert own.names == ("Buenos Aires", "Kolkata", "New York")
    assert own.regions == ("America", "Asia", "America")
    assert own.countries == ("AR", "IN", "US")
    np.testing.assert_allclose(
        own.coordinates, [[-34.6, -58.45], [22.5333, 88.3667], [40.7142, -74.0064]], atol=1e-4
    )
    np.testing.assert_array_equal(own.offsets, [-3, 5.5, -5])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("AR\tnowhere\tAmerica/Lima", "line 1: expected code, coordinates and zone"),
        ("AR\t-3436-05827\tMars/Olympus", "line 1: Mars/Olympus: is no known zone"),
        ("# nothing", "expected lines of code, coordinates and zone, got none"),
    ],
)
def test_other_tables_are_refused(tmp_path, line, message):
    (tmp_path / "zone.tab").write_text(line)
    with pytest.raises(DataError, match=message):
        read_places(tmp_path / "zone.tab")
