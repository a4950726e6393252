"""A mean and how sure it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from jaxmethods.numerics.statistics import (
    Summary,
    bootstrap_interval,
    half_sample_interval,
    markdown_table,
    mcnemar,
    mean_and_error,
    standard_error,
    student_interval,
    summarize,
)


def test_the_error_is_the_sample_deviation_over_the_root_of_the_number():
    mean, error = mean_and_error(np.asarray([1.0, 3.0, 5.0, 7.0]))
    assert mean == 4
    assert error == pytest.approx((20 / 3) ** 0.5 / 2)


def test_the_interval_of_a_few_values_is_students():
    values = np.array([0.6, 0.7, 0.65, 0.8])
    expected = scipy.stats.t.interval(0.95, 3, values.mean(), scipy.stats.sem(values))
    np.testing.assert_allclose(student_interval(values)[1:], expected)
    assert student_interval(values[:1]) == (0.6, 0.6, 0.6)


def test_one_value_has_no_error():
    assert mean_and_error(np.asarray([0.25])) == (0.25, None)
    np.testing.assert_array_equal(standard_error(np.ones((3, 1)), 1), np.zeros(3))


def test_the_error_is_over_the_first_axis_and_not_over_what_is_averaged():
    summary = summarize([[0.0, 2.0], [3.0, 5.0]])
    assert summary.mean == 2.5
    np.testing.assert_allclose(summary.error, np.std([1.0, 4.0], ddof=1) / np.sqrt(2))


def test_a_summary_is_written_with_its_error_where_there_is_one():
    assert f"{summarize([1.0, 4.0]):.1f}" == "2.5 ± 1.5"
    assert f"{summarize([2.25]):.1f}" == "2.2"
    assert str(summarize([1.0, 4.0])) == "2.5 ± 1.5"


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [
        (0.6098, 0.191, "0.61 ± 0.19"),
        (0.9988, 0.00058, "0.99880 ± 0.00058"),
        (0.5, 0.0996, "0.50 ± 0.10"),
        (1234.5, 12.3, "1234 ± 12"),
        (4.0, 0.0, "4 ± 0"),
        (4.0, None, "4"),
        (math.nan, 1.0, "nan ± 1"),
        (1e-7, 2e-8, "1e-07 ± 2e-08"),
        (3e7, 2.0, "3e+07 ± 2"),
    ],
)
def test_a_mean_ends_where_the_second_digit_of_its_error_is(mean, error, text):
    assert str(Summary(mean, error)) == text


def test_nothing_cannot_be_summarized():
    with pytest.raises(ValueError, match="expected at least one"):
        summarize([])


def test_a_table_has_a_line_for_each_row():
    expected = "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert markdown_table(["a", "b"], [["1", "2"]]) == expected


def test_what_others_wrote_neither_ends_a_cell_nor_a_row():
    table = markdown_table(["said"], [["yes | no\nmaybe"]])
    assert table.split("\n")[2] == "| yes / no maybe |"


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


def test_halves_of_the_items_vary_as_the_bootstrap_says():
    values = np.random.default_rng(0).normal(3, 2, 400)
    halves = half_sample_interval(lambda rows: float(values[rows].mean()), 400, draws=1000)
    whole = bootstrap_interval(values)
    assert np.isnan(bootstrap_interval(values[:0])).all()
    assert halves.mean == pytest.approx(whole.mean)
    assert halves.high - halves.low == pytest.approx(whole.high - whole.low, rel=0.15)
    assert halves.low < halves.mean < halves.high
    with pytest.raises(ValueError, match="items: expected at least 2, got 1"):
        half_sample_interval(lambda rows: 0.0, 1)
