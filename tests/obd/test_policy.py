"""How students start."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.obd import policy


def test_the_deterministic_student_starts_as_in_the_published_code():
    """Hidden weights U(+-1/sqrt(out)), hidden biases 0.1, the last layer U(+-0.003)."""
    *hidden, last = policy.init_deterministic(jax.random.key(0), 5, 2, (40, 30))
    for (weights, biases), width in zip(hidden, (40, 30), strict=True):
        bound = width**-0.5
        assert 0.95 * bound < jnp.abs(weights).max() <= bound
        np.testing.assert_allclose(biases, np.full(width, 0.1), rtol=1e-6)
    for leaf in last:
        assert 0 < jnp.abs(leaf).max() <= 3e-3
