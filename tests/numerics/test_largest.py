"""The largest of some numbers, without a sort of all."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.numerics.order_statistics import largest
from tests.programs import normal


def test_they_are_the_first_of_the_sorted_ones():
    values = normal(0, 3, 20)
    found, places = jax.jit(lambda x: largest(x, 4))(values)
    np.testing.assert_array_equal(found, -np.sort(-values)[:, :4])
    np.testing.assert_array_equal(np.take_along_axis(values, np.asarray(places), 1), found)


def test_looking_at_the_last_of_them_does_not_sort_all():
    program = jax.jit(lambda x: largest(x, 4)[0][..., -1:]).lower(jnp.ones((3, 20))).compile()
    assert "sort(" not in program.as_text()
