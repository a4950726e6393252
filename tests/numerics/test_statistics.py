"""A mean and how sure it is."""

from __future__ import annotations

import numpy as np
import pytest

from jaxmethods.numerics.statistics import mean_and_error


def test_the_error_is_the_sample_deviation_over_the_root_of_the_number():
    mean, error = mean_and_error(np.asarray([1.0, 3.0, 5.0, 7.0]))
    assert mean == 4
    assert error == pytest.approx((20 / 3) ** 0.5 / 2)


def test_one_value_has_no_error():
    assert mean_and_error(np.asarray([0.25])) == (0.25, None)
