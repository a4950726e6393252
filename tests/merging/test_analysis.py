"""How far fine-tuning moved a module, in three numbers of which each has its definition."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.merging import analysis

BASE = {"mlp": jnp.array([3.0, 4.0]), "norm": jnp.array([0.3, 0.4])}
STACK = {
    "mlp": jnp.array([[5.0, 4.0], [3.0, 4.0]]),
    "norm": jnp.array([[0.3, 0.9], [0.8, -0.1]]),
}
MODULES = {"mlp": "mlp", "norms": "norm"}


def test_variation_is_distance_share_cosine_and_conflict():
    found = analysis.variation(BASE, STACK, MODULES)
    np.testing.assert_allclose(found["mlp"].distance, [2, 0], atol=1e-6)
    np.testing.assert_allclose(found["mlp"].relative, [0.4, 0], atol=1e-6)
    cosine = (3 * 5 + 4 * 4) / (5 * np.sqrt(41))
    np.testing.assert_allclose(found["mlp"].cosine, [cosine, 1], rtol=1e-6)
    # tau of the norms: (0, 0.5) and (0.5, -0.5): one of two entries has both signs.
    assert found["mlp"].conflict == 0
    assert found["norms"].conflict == pytest.approx(0.5)


def test_the_critical_modules_are_those_that_moved_most_for_their_size():
    assert analysis.critical_modules(BASE, STACK, MODULES) == ["norms", "mlp"]
