"""What classifiers decide."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxmethods.numerics.predictions import NOTHING, chosen, right


def test_nan_is_no_decision_and_never_right():
    logits = jnp.array([[0.0, 2.0], [jnp.nan, 1.0], [3.0, 3.0]])
    np.testing.assert_array_equal(chosen(logits), [1, NOTHING, 0])
    np.testing.assert_array_equal(right(logits, jnp.array([1, 0, 0])), [True, False, True])
    assert not right(logits, jnp.full(3, NOTHING)).any()
