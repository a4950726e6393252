"""Entropy, batches without labels, and the coefficients learned from them."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmethods import merging
from jaxmethods.merging.adaptive import adamerging, adaptation, surgery, wemoe
from jaxmethods.merging.config import AdaMergingConfig
from jaxmethods.models.clip import vit
from jaxmethods.numerics.predictions import right
from tests.merging import tiny


@given(st.integers(0, 1000), st.sampled_from([0.1, 1.0, 1e4]))
@settings(max_examples=10)
def test_entropy_is_bounded_and_padding_does_not_matter(seed, scale):
    logits = scale * np.random.default_rng(seed).normal(size=(3, 5)).astype(np.float32)
    found, gradient = jax.vmap(jax.value_and_grad(adaptation.entropy))(jnp.asarray(logits))
    assert np.isfinite(gradient).all()
    assert (found > -1e-6).all()
    assert (found < np.log(5) + 1e-5).all()
    padded = np.pad(logits, [(0, 0), (0, 2)])
    classes = jnp.arange(7) < 5
    for epsilon in (None, 1e-8):
        masked, gradient = jax.vmap(
            jax.value_and_grad(lambda x, e=epsilon: adaptation.entropy(x, classes, e))
        )(jnp.asarray(padded))
        np.testing.assert_allclose(masked, found, atol=1e-5)
        assert np.isfinite(gradient).all()
        assert not gradient[:, 5:].any()


def test_a_batch_has_no_image_twice_and_none_of_the_padding():
    data = adaptation.unlabeled([jnp.arange(1, 21), jnp.arange(100, 108)])
    batches = jax.vmap(lambda key: adaptation.draw(key, data, 8))(
        jax.random.split(jax.random.key(0), 50)
    )
    for batch in np.asarray(batches):
        assert len(set(batch[0])) == 8
        assert set(batch[1]) == set(range(100, 108))
    assert set(np.asarray(batches)[:, 0].ravel()) == set(range(1, 21))
    with pytest.raises(ValueError, match="batch_size"):
        adaptation.draw(jax.random.key(0), data, 21)


def test_a_prediction_of_nan_is_wrong_whatever_the_label():
    logits = jnp.asarray([[jnp.nan] * 3, [0.0, jnp.nan, 2.0], [0.0, 2.0, -jnp.inf]])[None]
    for label in range(3):
        found = right(logits, jnp.full((1, 3), label))
        np.testing.assert_array_equal(found, [[False, False, label == 1]])
    assert adaptation.accuracy(logits, jnp.asarray([[0, 1, 1]]), jnp.asarray([3])) == 1 / 3


def test_a_small_task_repeats_its_inputs_and_gives_no_padding():
    data = adaptation.unlabeled([jnp.arange(1, 21), jnp.arange(100, 103)])
    batch = np.asarray(adaptation.draw(jax.random.key(0), data, 8))
    assert set(batch[1]) == {100, 101, 102}


def test_the_entropys_epsilon_stands_inside_the_logarithm():
    p = np.array([0.7, 0.2, 0.1])
    found = adaptation.entropy(jnp.log(jnp.asarray(p)), epsilon=0.5)
    np.testing.assert_allclose(found, -(p * np.log(p + 0.5)).sum(), rtol=1e-5)


@pytest.mark.parametrize(("clamp", "expected"), [(True, 1.0 + 10.0), (False, 1.0 + 15.0 + 50.0)])
def test_coefficients_are_clamped_to_the_unit_interval_on_request(clamp, expected):
    """theta_0 = 1, tau = 10 and -100, Lambda = 1.5 and -0.5."""
    batch = adamerging.Batch(
        base={"w": jnp.ones(1)},
        task_vectors={"w": jnp.array([[10.0], [-100.0]])},
        unlabeled=None,
        heads=None,
    )
    config = AdaMergingConfig(clamp=clamp, layerwise=False)
    merged = adamerging.merged(jnp.array([1.5, -0.5]), batch, config)
    np.testing.assert_allclose(merged["w"], [expected], rtol=1e-6)


def test_accuracy_counts_real_inputs_alone():
    logits = jnp.asarray([[[2.0, 1.0], [0.0, 1.0], [5.0, 0.0]], [[0.0, 1.0]] * 3])
    labels = jnp.asarray([[0, 0, 0], [1, 0, 0]])
    found = adaptation.accuracy(logits, labels, jnp.asarray([3, 1]))
    np.testing.assert_allclose(found, [2 / 3, 1])


def test_no_function_of_adaptation_takes_labels():
    for module in (adamerging, wemoe, surgery):
        for _, function in inspect.getmembers(module, inspect.isfunction):
            names = inspect.signature(function).parameters
            assert not any("label" in name for name in names), function
        assert "labels" not in module.Batch._fields


def apply(params, pixels, head):
    features = vit.forward(
        params, tiny.VISION, pixels, projection=tiny.setting().projection
    ).features
    one = adaptation.Heads(*(leaf[None] for leaf in head))
    return adaptation.classify(features[None], one, jnp.asarray(1.0))[0]


@pytest.mark.parametrize("layerwise", [pytest.param(True, marks=pytest.mark.slow), False])
def test_adamerging_lowers_the_entropy(layerwise):
    config = AdaMergingConfig(layerwise=layerwise, learning_rate=1e-2, batch_size=4)
    tau = merging.task_vectors(tiny.setting().base, tiny.setting().stack)
    data = adamerging.Batch(
        tiny.setting().base, tau, tiny.setting().unlabeled, tiny.setting().heads
    )
    method = adamerging.adapter(apply, config)
    state = method.init(jax.random.key(0), data)
    if layerwise:
        names = jax.tree.leaves(state.coefficients)
        assert sum(leaf[0].size for leaf in names) == 7 + 16 * tiny.VISION.num_hidden_layers
    first = adamerging.merged(state.coefficients, data, config)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        first,
        merging.task_arithmetic(tiny.setting().base, tiny.setting().stack, 0.3),
    )
    _, metrics = jax.jit(lambda s, d: jax.lax.scan(lambda s, _: method.step(s, d), s, length=20))(
        state, data
    )
    assert metrics["loss"][-3:].mean() < metrics["loss"][:3].mean()


def test_diversity_tells_a_collapse_from_good_predictions():
    """Both have no entropy; only predictions that differ have the least objective, -log C."""
    classes = jnp.arange(6) < 4
    sure = 200.0 * jnp.eye(6)[jnp.arange(8) % 4]
    same = 200.0 * jnp.eye(6)[jnp.zeros(8, int)]
    for logits, expected in [(sure, -np.log(4)), (same, 0.0), (jnp.zeros((8, 6)), 0.0)]:
        value = adaptation.objective(logits[None], classes, diversity=1.0)
        np.testing.assert_allclose(value, [expected], atol=1e-6)
    plain = adaptation.objective(logits[None], classes)
    np.testing.assert_allclose(plain, [np.log(4)], atol=1e-6)
    padded = jnp.where(classes, sure, -jnp.inf)[None]
    total = lambda x: jnp.sum(adaptation.objective(x, classes, diversity=0.5))  # noqa: E731
    gradient = jax.jit(jax.grad(total))(padded)
    assert np.isfinite(gradient).all()
    assert not gradient[..., 4:].any()
