"""PyTorch's hypergradients in the benchmark are those of ours: the same work is compared."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxmethods.bilevel import Mixed, Reverse

torch = pytest.importorskip("torch")
from benchmarks import bilevel as ours  # noqa: E402
from benchmarks import torch_bilevel as theirs  # noqa: E402

pytestmark = pytest.mark.slow  # of benchmarks, not of the library

SIZES = ours.Sizes(states=5, actions=2, width=16, hidden=2, pairs=12, judged=40)


@pytest.mark.parametrize("compute", [theirs.by_reverse, theirs.by_mixed])
@pytest.mark.parametrize("mode", [Mixed(), Reverse()], ids=str)
def test_hypergradients_are_equal(compute, mode):
    """Relative to the largest entry; 8 steps of float32."""
    inputs = ours.draw(jax.random.key(1), SIZES, 8)
    loss, gradient = jax.jit(ours.hypergradient(mode))(*inputs)
    their_loss, their_gradient = compute(
        theirs.from_numpy(jax.device_get(inputs), "cpu"), ours.RATE
    )
    np.testing.assert_allclose(loss, their_loss.numpy(), rtol=1e-5)
    for own, other in zip(gradient, their_gradient, strict=True):
        scale = np.abs(own).max()
        np.testing.assert_allclose(own / scale, other.numpy() / scale, atol=2e-5)
