"""A mean and how sure it is."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from jaxmethods.numerics.statistics import mcnemar, mean_and_error


def test_the_error_is_the_sample_deviation_over_the_root_of_the_number():
    mean, error = mean_and_error(np.asarray([1.0, 3.0, 5.0, 7.0]))
    assert mean == 4
    assert error == pytest.approx((20 / 3) ** 0.5 / 2)


def test_one_value_has_no_error():
    assert mean_and_error(np.asarray([0.25])) == (0.25, None)


def test_mcnemar_is_a_fair_coin_for_each_verdict_that_differs():
    first = np.array([1] * 9 + [0] * 2 + [1] * 30)
    second = np.array([0] * 9 + [1] * 2 + [1] * 30)
    found = mcnemar(first, second)
    assert found[:2] == (9, 2)
    assert found.p == pytest.approx(scipy.stats.binomtest(2, 11).pvalue)
    assert mcnemar(second, first).p == found.p
    assert mcnemar(first, first) == (0, 0, 1.0)
    many = np.arange(5000) < 4000
    assert 0 <= mcnemar(many, ~many).p < 1e-300
    with pytest.raises(ValueError, match="verdicts"):
        mcnemar(first, second[:3])
