"""`when`: the value of one of two, and no work where nobody asks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.numerics.lazily import when


def test_work_is_done_only_where_somebody_asks_also_under_vmap():
    turns = []

    def one(asked, value):
        def compute():
            jax.debug.callback(lambda: turns.append(1))
            return 2 * value

        return when(asked, compute, value)

    mapped = jax.jit(jax.vmap(one))
    values = jnp.arange(3.0)
    np.testing.assert_array_equal(mapped(jnp.zeros(3, bool), values), values)
    jax.effects_barrier()
    assert turns == []
    asked = jnp.asarray([False, True, False])
    np.testing.assert_array_equal(mapped(asked, values), [0, 2, 2])
    jax.effects_barrier()
    assert turns
