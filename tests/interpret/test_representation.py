"""Kernels, representations, attention, linear regions, values by name."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from jaxmethods.interpret.expressivity import in_context, linear_regions
from jaxmethods.interpret.kernels import kernel_statistics, linearized, ntk
from jaxmethods.interpret.representation import (
    attention,
    capture,
    cka,
    geometry,
    intrinsic_dimension,
    neural_collapse,
)
from tests.interpret.networks import mlp, random_layers
from tests.programs import once

SIZES = (3, 4, 2)


@once
def params():
    return random_layers(jax.random.key(0), SIZES)


def rows(seed, n, d):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, d)), jnp.float32)


@jax.jit
def _kernels(params, x, keys):
    kernels = [
        ntk.ntk(mlp, params, x, kind=kind, method=method, chunk=chunk)
        for kind, method, chunk in (
            ("full", "jacobian", 1),
            ("full", "jacobian", 3),
            ("full", "products", 5),
            ("pseudo", "products", 2),
            ("pseudo", "layers", 3),
            ("traced", "layers", 2),
        )
    ]

    def sketched(key):
        features = ntk.features(mlp, params, x, key, 32)
        return jnp.einsum("nck,mdk->nmcd", features, features)

    return kernels, jax.lax.map(sketched, keys)


def test_kernels_agree_in_all_ways_and_chunks_and_sketches_in_the_mean():
    full, sketches = _kernels(params(), rows(0, 5, 3), jax.random.split(jax.random.key(1), 64))
    for other in full[1:3]:
        np.testing.assert_allclose(other, full[0], rtol=1e-5, atol=1e-5)
    pseudo = np.sum(full[0], axis=(2, 3)) / 2
    for other in full[3:5]:
        np.testing.assert_allclose(pseudo, other, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(full[5], np.trace(full[0], axis1=2, axis2=3) / 2, rtol=1e-4)
    matrix = full[0].transpose(0, 2, 1, 3).reshape(10, 10)
    assert np.linalg.eigvalsh(matrix).min() > -1e-4
    error = np.std(sketches, axis=0, ddof=1) / 8
    assert np.mean(np.abs(np.mean(sketches, axis=0) - full[0]) <= 2 * error) > 0.9
    assert np.all(np.abs(np.mean(sketches, axis=0) - full[0]) <= 5 * error)


def linear(params, x):
    return x @ params["w"] + params["b"]


@jax.jit
def _linear(x, before, after):
    kernel = ntk.ntk(linear, before, x)
    return kernel, linearized.linearized(linear, before)(after, x), linear(after, x)


def test_a_linear_model_has_the_kernel_of_its_inputs_and_is_its_own_linearization():
    x = rows(0, 5, 3)
    before = {"w": rows(1, 3, 2), "b": jnp.zeros(2)}
    kernel, lazy, exact = _linear(x, before, {"w": rows(2, 3, 2), "b": jnp.ones(2)})
    np.testing.assert_allclose(kernel, x @ x.T + 1, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(lazy, exact, rtol=1e-5, atol=1e-5)


def test_bad_kernels_are_named():
    with pytest.raises(ValueError, match="kind: expected one of full, traced, pseudo, got 'half'"):
        ntk.ntk(mlp, params(), rows(0, 2, 3), kind="half")
    with pytest.raises(ValueError, match='"layers" makes the kernel of inputs with themselves'):
        ntk.ntk(mlp, params(), rows(0, 2, 3), kind="full", method="layers")
    with pytest.raises(ValueError, match="method: expected"):
        ntk.ntk(mlp, params(), rows(0, 2, 3), method="fast")


def test_a_kernel_that_only_grows_drifts_but_has_no_distance():
    kernel = rows(0, 4, 4)
    kernel = kernel @ kernel.T
    for unit in (1, 1e-24, 1e24):
        own = unit * kernel
        np.testing.assert_allclose(kernel_statistics.drift(own, 3 * own), 2, rtol=1e-5)
        np.testing.assert_allclose(kernel_statistics.distance(own, 3 * own), 0, atol=1e-6)
        rank = kernel_statistics.kernel_statistics(own).participation_ratio
        np.testing.assert_allclose(rank, np.trace(kernel) ** 2 / np.sum(kernel**2), rtol=1e-4)


@jax.jit
def _similarities(x, y):
    return [
        cka.linear_cka(x, y),
        cka.kernel_cka(cka.rbf_kernel(x), cka.rbf_kernel(y)),
        cka.unbiased_cka(x, y),
        cka.svcca(x, y),
        1 - cka.procrustes(x, y) / 2,
    ]


def test_similarities_ignore_rotation_and_scale_and_find_nothing_in_noise():
    x = rows(0, 40, 6)
    rotation = np.linalg.qr(rows(1, 6, 6))[0]
    for scale in (3, 1e-14, 1e14):  # whose squares' squares float32 cannot hold
        np.testing.assert_allclose(_similarities(x, scale * x @ rotation), 1, atol=2e-4)
    linear_, _, unbiased, _, _ = _similarities(x, rows(2, 40, 6))
    assert linear_ > 0.05
    assert abs(unbiased) < 0.1
    with pytest.raises(ValueError, match="as many rows"):
        cka.linear_cka(x, x[:5])


@jax.jit
def _geometry(x):
    return geometry.geometry(x), geometry.mean_cosine(x)


def test_isotropic_features_of_k_dimensions_have_rank_k():
    x = rows(0, 400, 8) * (np.arange(8) < 3)
    for scale in (1, 1e-12, 1e12):
        found, _ = _geometry(scale * x)
        for value in (found.effective_rank, found.spectral_entropy_rank, found.participation_ratio):
            assert abs(value - 3) < 0.1
    _, cosine = _geometry(jnp.ones((400, 8)))
    np.testing.assert_allclose(cosine, 1, rtol=1e-5)


@jax.jit
def _dimensions(x):
    return intrinsic_dimension.two_nn(x), intrinsic_dimension.levina_bickel(x)


def test_a_square_in_eight_dimensions_has_dimension_two_and_duplicates_are_counted():
    rng = np.random.default_rng(0)
    flat = rng.random((600, 2)) @ np.linalg.qr(rng.normal(size=(8, 8)))[0][:2]
    flat[:300] = flat[300:]
    alone = _dimensions(jnp.asarray(flat[300:], jnp.float32))
    for scale in (1, 1e-25):
        found = _dimensions(jnp.asarray(scale * flat, jnp.float32))
        for own, expected in zip(found, alone, strict=True):
            assert abs(own.value - 2) < 0.25
            np.testing.assert_allclose(own[:2], expected[:2], rtol=1e-4)
            assert own.duplicates == 300
    assert np.isnan(_dimensions(jnp.ones((600, 8)))[0].value)
    with pytest.raises(ValueError, match="k: expected 1 to 3"):
        intrinsic_dimension.nearest_distances(jnp.zeros((4, 2)), 4)


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [1, 3, 6])
def test_two_nearest_neighbors_find_the_dimension_of_a_cube(dimension):
    rng = np.random.default_rng(dimension)
    cube = rng.random((4000, dimension)) @ rng.normal(size=(dimension, 10))
    found = intrinsic_dimension.two_nn(jnp.asarray(cube, jnp.float32))
    assert abs(found.value / dimension - 1) < 0.1


def test_a_simplex_is_collapsed_and_an_empty_class_has_no_number():
    classes = 4
    simplex = (np.eye(classes) - 1 / classes) @ np.linalg.qr(rows(0, classes, classes))[0]
    labels = np.arange(3 * classes) % classes
    for features in (simplex[labels] + 5, 1e-12 * simplex[labels], 1e12 * simplex[labels]):
        found = neural_collapse.neural_collapse(
            jnp.asarray(features, jnp.float32), labels, classes, jnp.asarray(simplex.T)
        )
        numbers = [found.nc1, found.nc2_norms, found.nc2_angles, found.nc2_etf, found.nc3]
        np.testing.assert_allclose(numbers, 0, atol=1e-5)
    empty = neural_collapse.neural_collapse(
        jnp.asarray(simplex[labels], jnp.float32), labels % 3, classes, jnp.asarray(simplex.T)
    )
    assert empty.empty == 1
    assert np.all(np.isnan([empty.nc1, empty.nc2_norms, empty.nc2_angles, empty.nc3, empty.nc4]))
    with pytest.raises(ValueError, match="classes: expected at least 2"):
        neural_collapse.neural_collapse(jnp.zeros((2, 2)), np.zeros(2, int), 1)


def test_what_has_no_label_changes_no_measure_of_collapse():
    features, weights = jnp.asarray(rows(0, 8, 3), jnp.float32), jnp.asarray(rows(1, 3, 2))
    labels = np.array([0, 1, 0, 1, 0, 1, -1, -1])
    features = features.at[6].set(50).at[7].set(jnp.nan)
    found = neural_collapse.neural_collapse(features, labels, 2, weights)
    alone = neural_collapse.neural_collapse(features[:6], labels[:6], 2, weights)
    for own, expected in zip(found, alone, strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-5)


@jax.jit
def _attention(queries, keys, tokens):
    weights = attention.attention_weights(queries, keys)
    return {
        "residual": attention.rank_residual(weights @ tokens),
        "entropy": attention.entropy(weights),
        "sink": attention.sink_mass(weights),
        "rank": attention.effective_rank(weights),
    }


def test_identity_attention_keeps_the_residual_and_uniform_attention_ends_it():
    tokens = np.asarray(rows(0, 5, 4))
    far = 1e3 * np.linalg.qr(rows(1, 5, 5))[0]
    uniform, identity = _attention(0 * far, far, tokens), _attention(far, far, tokens)
    off = tokens - tokens.mean(0)
    residual = np.linalg.norm(off) / np.linalg.norm(tokens)
    np.testing.assert_allclose(identity["residual"], residual, rtol=1e-5)
    np.testing.assert_allclose(uniform["residual"], 0, atol=1e-6)
    np.testing.assert_allclose(identity["entropy"], 0, atol=1e-5)
    np.testing.assert_allclose(uniform["entropy"], np.log(5), rtol=1e-5)
    np.testing.assert_allclose(uniform["sink"], 0.2, rtol=1e-5)
    np.testing.assert_allclose(identity["rank"], 5, rtol=1e-4)


def test_an_affine_network_has_one_region_an_absolute_value_two():
    identity, zero = np.eye(1), np.zeros(1)
    regions = linear_regions.linear_regions
    assert regions([(identity, zero)], [-1.0], [2.0]).count == 1
    absolute = [(np.array([[1.0, -1.0]]), np.zeros(2)), (np.ones((2, 1)), zero)]
    found = regions(absolute, [-1.0], [2.0])
    assert found.count == 2
    np.testing.assert_allclose(found.breakpoints, [0, 1 / 3, 1])
    rng = np.random.default_rng(0)
    one_hidden = [(rng.normal(size=(3, 7)), rng.normal(size=7)), (rng.normal(size=(7, 2)), zero)]
    assert regions(one_hidden, rng.normal(size=3), rng.normal(size=3)).count <= 8
    with pytest.raises(ValueError, match="start, end: expected"):
        regions(one_hidden, [0.0], [1.0])


@jax.jit
def _probe(inputs, targets, queries):
    own = lambda x, y, q: in_context.in_context_descent(x, y, q, 0.1, 3)[-1]  # noqa: E731
    return in_context.probe(own, inputs, targets, queries, 0.1, 3)[1:]


def test_the_probe_recognizes_gradient_descent():
    rng = np.random.default_rng(0)
    inputs, queries = rng.normal(size=(16, 6, 2)), rng.normal(size=(16, 2))
    targets = np.einsum("pnd,pd->pn", inputs, rng.normal(size=(16, 2)))
    distance, cosine = _probe(inputs, targets, queries)
    np.testing.assert_allclose(distance[0], 0, atol=1e-10)
    np.testing.assert_allclose(cosine[0], 1, rtol=1e-5)
    assert distance[1] > 0.1
    assert distance[2] > 0.1


def named(params, x):
    def inner(x):
        return checkpoint_name(jnp.tanh(x @ params[0][0]), "hidden")

    return jax.jit(inner)(x) @ params[1][0]


def test_named_values_are_read_and_replaced_inside_jit_and_grad():
    own, x = params(), rows(0, 5, 3)
    hidden = jnp.tanh(x @ own[0][0])
    (found,) = jax.jit(capture.capture(named, ["hidden"]))(own, x)["hidden"]
    np.testing.assert_allclose(found, hidden, rtol=1e-5, atol=1e-6)

    @jax.jit
    @jax.value_and_grad
    def loss(factor):
        return jnp.sum(capture.intervene(named, {"hidden": lambda h: factor * h})(own, x))

    value, slope = loss(2.0)
    np.testing.assert_allclose(value, 2 * np.sum(hidden @ own[1][0]), rtol=1e-5)
    np.testing.assert_allclose(slope, value / 2, rtol=1e-5)
    with pytest.raises(ValueError, match="names: expected some of hidden; 'other' is not there"):
        capture.capture(named, ["other"])(own, x)
    with pytest.raises(ValueError, match=r"changes\['hidden'\]: expected shape \(5, 4\)"):
        capture.intervene(named, {"hidden": lambda h: h[:2]})(own, x)


def looped(x):
    step = lambda x, _: (checkpoint_name(x + 1, "state"), None)  # noqa: E731
    return jax.lax.scan(step, x, None, length=3)[0]


def test_a_name_inside_a_loop_is_said_to_be_there():
    with pytest.raises(ValueError, match="'state' is only inside a loop"):
        capture.capture(looped, ["state"])(jnp.zeros(2))


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="last")(nn.relu(nn.Dense(3, name="first")(x)))


def test_values_of_a_linen_module_are_named_by_its_submodules():
    module, x = Small(), rows(0, 4, 3)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    found = capture.flax_intermediates(module, variables, x, keep=lambda path: "first" in path)
    assert set(found) == {"first"}
    first = variables["params"]["first"]
    np.testing.assert_allclose(found["first"], x @ first["kernel"] + first["bias"], rtol=1e-5)


def test_features_that_are_nan_are_not_collapsed():
    broken = jnp.full((4, 3), jnp.nan)
    found = neural_collapse.neural_collapse(broken, jnp.arange(4) % 2, 2, jnp.ones((3, 2)))
    assert jnp.isnan(found.nc4)


def test_attention_in_half_precision_has_the_ranks_of_its_numbers():
    tokens = jnp.full((4, 64), 300, jnp.float16).at[0].set(3)
    for measure in (attention.rank_residual, attention.effective_rank):
        np.testing.assert_allclose(measure(tokens), measure(tokens.astype(jnp.float32)), rtol=1e-3)


def test_similarities_are_those_of_the_features_wherever_these_are():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(12, 3)), jnp.float32)
    y = x + 0.3 * x[::-1]
    np.testing.assert_allclose(cka.rbf_kernel(x + 1000), cka.rbf_kernel(x), atol=1e-3)
    far = cka.unbiased_cka(x + 1000, y - 1000)
    np.testing.assert_allclose(far, cka.unbiased_cka(x, y), atol=1e-3)


def test_spectra_of_half_precision_are_those_of_the_numbers():
    matrix = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)), jnp.bfloat16)
    kernel = matrix @ matrix.T
    own, exact = (kernel_statistics.kernel_statistics(k) for k in (kernel, kernel.astype(float)))
    np.testing.assert_allclose(own.effective_rank, exact.effective_rank, rtol=1e-5)
