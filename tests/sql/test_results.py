"""When results are equal."""

from __future__ import annotations

import itertools
import random

import pytest

from jaxmethods.sql import bird_equal, results_equal


@pytest.mark.parametrize(
    ("one", "other", "unordered", "ordered", "bird"),
    [
        ([], [], True, True, True),
        ([], [(1,)], False, False, False),
        ([(1, 2)], [(2, 1)], True, True, False),
        ([(1,), (2,)], [(2,), (1,)], True, False, True),
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)], False, False, True),
        ([(1,), (1,)], [(1,)], False, False, True),
        ([(1, "a"), (2, "b")], [("a", 2), ("b", 1)], False, False, False),
        ([(1, 1), (2, 2)], [(1, 2), (2, 1)], False, False, False),
        ([(1,)], [(1.0,)], True, True, True),
        ([(1,)], [("1",)], False, False, False),
        ([(None,)], [(None,)], True, True, True),
        ([(1, 2)], [(1,)], False, False, False),
    ],
)
def test_rules(one, other, unordered, ordered, bird):
    assert results_equal(one, other, ordered=False) is unordered
    assert results_equal(one, other, ordered=True) is ordered
    assert bird_equal(one, other) is bird


@pytest.mark.parametrize("seed", range(20))
def test_some_order_of_the_columns(seed):
    """Against all orders, on small results with many equal cells."""
    chance = random.Random(seed)
    rows = [tuple(chance.choices((0, 1), k=3)) for _ in range(4)]
    other = [tuple(chance.choices((0, 1), k=3)) for _ in range(4)]
    if seed % 2:
        order = chance.sample(range(3), 3)
        other = [tuple(row[place] for place in order) for row in rows]
        chance.shuffle(other)
    orders = [
        [tuple(row[place] for place in order) for row in other]
        for order in itertools.permutations(range(3))
    ]
    assert results_equal(rows, other, ordered=True) == (rows in orders)
    expected = any(sorted(rows) == sorted(one) for one in orders)
    assert results_equal(rows, other, ordered=False) == expected


def test_many_equal_columns_take_no_time():
    """Forty columns have 10^47 orders."""
    rows = [(0,) * 39 + (place,) for place in range(3)]
    other = [(place,) + (0,) * 39 for place in range(3)]
    assert results_equal(rows, other, ordered=False)
    assert results_equal(rows, other, ordered=True)
    mixed = [tuple((row + column) % 2 for column in range(40)) for row in range(4)]
    assert not results_equal(mixed, [(0,) * 40, (1,) * 40] * 2, ordered=False)
