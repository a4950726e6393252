"""Distinct rows: a permutation, uniform in its first places."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmethods.numerics.sampling import distinct_rows


@settings(max_examples=12)
@given(rows=st.sampled_from([1, 2, 3, 5, 16, 17, 100, 1025]), seed=st.integers(0, 2**31))
def test_all_rows_are_a_permutation(rows, seed):
    drawn = distinct_rows(jax.random.key(seed), rows, rows)
    np.testing.assert_array_equal(np.sort(drawn), np.arange(rows))


def test_pairs_of_rows_are_uniform():
    """Chi-squared over the 37 x 36 ordered pairs, 20 000 draws; mean 1331, deviation 52."""
    rows, draws = 37, 20_000
    keys = jax.random.split(jax.random.key(3), draws)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: distinct_rows(key, rows, 2)))(keys)).astype(int)
    counts = np.bincount(drawn[:, 0] * rows + drawn[:, 1], minlength=rows**2).reshape(rows, rows)
    assert not np.diag(counts).any()
    expected = draws / (rows * (rows - 1))
    pairs = counts[~np.eye(rows, dtype=bool)]
    statistic = np.sum((pairs - expected) ** 2 / expected)
    assert abs(statistic - len(pairs)) < 5 * np.sqrt(2 * len(pairs))


def test_more_rows_than_there_are_cannot_be_drawn():
    with pytest.raises(ValueError, match="at most the 5 rows there are, got 6"):
        distinct_rows(jax.random.key(0), 5, 6)
    many = np.asarray(distinct_rows(jax.random.key(0), 3 * 2**30, 64))
    assert len(set(many.tolist())) == 64
    assert 2**31 < many.max() < 3 * 2**30
    with pytest.raises(ValueError, match=r"rows: expected fewer than 2\^32"):
        distinct_rows(jax.random.key(0), 1 << 32, 1)
