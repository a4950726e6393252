"""MAE's probe: an entry of a grid is what it is alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.rsfm import schedules
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


def test_float32_stays_what_it_is_where_float64_is_there_and_half_precision_is_widened():
    labels, settings = jnp.arange(8) % CLASSES, {"classes": CLASSES, "epochs": 2, "batch": 4}
    with jax.enable_x64(True):
        grid = probes.product([0.1], [0.1], [0])
        for kind in (jnp.float32, jnp.float16):
            own = probes.probe_sgd(draw(0, 8, D).astype(kind), labels, grid, **settings)
            assert own.weight.dtype == jnp.float32


@pytest.mark.parametrize("classes", [2, 3, probes.FEW + 2])
def test_slopes_are_those_of_the_cross_entropy_of_all_classes(classes):
    settings, size = 2, 5
    params = {"weight": draw(0, classes, settings, D), "bias": draw(1, classes, settings)}
    rows, targets = draw(2, size, D), jax.nn.one_hot(jnp.arange(size) % classes, classes)

    def losses(params):
        logits = jnp.einsum("bd,cgd->gbc", rows, params["weight"]) + params["bias"].T[:, None]
        return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * targets, axis=-1), axis=-1)

    @jax.jit
    def both(params):
        expected, pull = jax.vjp(losses, params)
        return probes._gradients(params, rows, targets), (expected, pull(jnp.ones(settings))[0])

    found, expected = both(params)
    more = jnp.concatenate([rows, draw(3, 2, D)]), jnp.pad(targets, ((0, 2), (0, 0)))
    unlabeled = jax.jit(probes._gradients)(params, *more)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), unlabeled, found)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    for name, slope in found[1].items():
        np.testing.assert_allclose(slope, expected[1][name], atol=1e-6)


def test_logits_too_large_for_an_exponential_have_finite_slopes():
    params = {"weight": jnp.zeros((3, 1, D)), "bias": jnp.array([[-300.0], [0.0], [300.0]])}
    targets = jnp.eye(3)[np.array([0, 1, 2, 0])]
    found, slopes = jax.jit(probes._gradients)(params, draw(2, 4, D), targets)
    np.testing.assert_allclose(found, 375.0, rtol=1e-6)  # the mean of 600, 300, 0 and 600
    assert all(np.isfinite(slope).all() for slope in slopes.values())


def test_a_probe_of_one_class_is_refused():
    with pytest.raises(ValueError, match="classes: expected at least 2, got 1"):
        probes.probe_sgd(draw(0, N, D), jnp.zeros(N, int), probes.product([1], [0], [0]), classes=1)


def test_a_rate_stays_at_its_smallest_behind_the_last_epoch():
    own = schedules.warmup_cosine(jnp.array([4.0, 10.0, 15.0, 20.0]), 1.0, 10, 4, 0.25)
    np.testing.assert_allclose(own, [1, 0.25, 0.25, 0.25], rtol=1e-6)
    without = schedules.warmup_cosine(jnp.array([2.0, 4.0, 5.0]), 1.0, 4, 4)
    np.testing.assert_allclose(without, [0.5, 0, 0], atol=1e-7)
