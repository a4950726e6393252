"""MAE's probe: an entry of a grid is what it is alone."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.rsfm.evaluation import probes
from tests.rsfm.small import draw

N, D, CLASSES = 60, 6, 3


@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
def test_an_entry_of_the_grid_is_what_it_is_alone(optimizer):
    labels = jnp.arange(N) % CLASSES
    data = draw(0, N, D) + 0.8 * draw(1, CLASSES, D)[labels], labels
    settings = {"classes": CLASSES, "epochs": 4, "batch": 16, "warmup": 1, "optimizer": optimizer}
    many = probes.probe_sgd(*data, probes.product([0.1, 1.0], [0.0, 0.5], [3, 4]), **settings)
    one = probes.probe_sgd(*data, probes.product([1.0], [0.0], [4]), **settings)
    np.testing.assert_allclose(one.weight[0], many.weight[5], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one.objective[0], many.objective[5], rtol=1e-5)
    for other in (1, 4, 7):  # another rate, seed, decay
        assert np.abs(many.weight[other] - many.weight[5]).max() > 1e-5
