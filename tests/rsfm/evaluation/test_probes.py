"""MAE's probe: an entry of a grid is what it is alone."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxmethods.rsfm.evaluation import probes
from tests.rsfm.small import draw

N, D, CLASSES = 60, 6, 3


def test_an_entry_of_the_grid_is_what_it_is_alone():
    labels = jnp.arange(N) % CLASSES
    data = draw(0, N, D) + 0.8 * draw(1, CLASSES, D)[labels], labels
    settings = {"classes": CLASSES, "epochs": 4, "batch": 16, "warmup": 1}
    grid = probes.product([0.1, 1.0], [0.0, 1e-2], [3])
    many = probes.probe_sgd(*data, grid, **settings)
    third = probes.Grid(*(leaf[2:3] for leaf in grid))
    one = probes.probe_sgd(*data, third, **settings)
    np.testing.assert_allclose(one.weight[0], many.weight[2], atol=1e-5)
    assert np.abs(many.weight[0] - many.weight[2]).max() > 1e-4
