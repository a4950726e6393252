"""Sums and products keep exactly what rounding drops, in every mode of compilation."""

from __future__ import annotations

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from jaxmethods.numerics.precision import halves, sums_by_place, two_product, two_sum

numbers = st.lists(
    st.floats(2.0**-20, 2.0**20, width=32) | st.floats(-(2.0**20), -(2.0**-20), width=32),
    min_size=8,
    max_size=8,
)


@pytest.mark.parametrize("compiled", [False, True])
@given(numbers, numbers)
@settings(max_examples=30)
def test_the_parts_add_up_exactly(compiled, a, b):
    a, b = np.float32(a), np.float32(b)
    for function, exact in ((two_sum, np.add), (two_product, np.multiply)):
        rounded, rest = (jax.jit(function) if compiled else function)(jnp.asarray(a), b)
        np.testing.assert_array_equal(rounded, exact(a, b))
        right = exact(np.float64(a), np.float64(b))
        np.testing.assert_array_equal(np.float64(rounded) + np.float64(rest), right)


def test_halves_have_half_of_the_bits():
    number = jnp.float32(np.pi)
    high, low = halves(number)
    assert float(high) + float(low) == float(number)
    for half in (np.float32(high), np.float32(low)):
        assert np.float32(half * half) == np.float64(half) ** 2


def test_more_ones_than_float32_can_count_one_by_one():
    many = 2**24 + 2**20
    place = jnp.zeros(many, jnp.int8).at[-3:].set(jnp.array([-1, 1, 2], jnp.int8))
    found = jax.jit(sums_by_place, static_argnums=2)(jnp.ones(many, jnp.bfloat16), place, 2)
    np.testing.assert_allclose(found, [many - 3, 1], rtol=1e-6)
