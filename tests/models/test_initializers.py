"""Orthogonal weights: the distribution's invariants, and no waiting for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmethods.models.initializers import orthogonal

ROOT = Path(__file__).parents[2]
MANY_AT_ONCE = """
import jax
from jaxmethods.models.initializers import orthogonal

def layers(keys):
    return [jax.vmap(lambda key: orthogonal()(key, (64, 64)))(of_layer) for of_layer in keys]

keys = jax.random.split(jax.random.key(0), (3, 16, 4))
draw = jax.jit(jax.vmap(layers))
for _ in range(5):
    jax.block_until_ready(draw(keys))
"""


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5), (2, 3, 4)])
def test_rows_or_columns_are_orthonormal_times_the_scale(shape):
    weights = np.asarray(orthogonal(3.0)(jax.random.key(0), shape)).reshape(-1, shape[-1])
    small = weights @ weights.T if weights.shape[0] < weights.shape[1] else weights.T @ weights
    np.testing.assert_allclose(small, 9 * np.eye(len(small)), atol=1e-4)


def test_the_numbers_are_those_of_jax_mapped_or_not():
    keys = jax.random.split(jax.random.key(1), 3)
    ours = jax.jit(jax.vmap(lambda key: orthogonal(2.0)(key, (6, 4))))(keys)
    for mine, key in zip(ours, keys, strict=True):
        theirs = jax.nn.initializers.orthogonal(2.0)(key, (6, 4))
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_many_layers_of_many_models_are_drawn_side_by_side_without_waiting_for_ever():
    subprocess.run(
        [sys.executable, "-c", MANY_AT_ONCE],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        timeout=240,
        check=True,
    )
