"""Operators and their spectra: known answers, error bars, and where data lies."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.interpret import streams, trees
from jaxmethods.interpret.curvature import (
    eigenpairs,
    hutchinson,
    lanczos,
    marchenko_pastur,
    operators,
    slq,
)
from jaxmethods.interpret.losses import Loss, cross_entropy, squared_error
from jaxmethods.interpret.problem import (
    Data,
    check_independent,
    make_problem,
    mean_loss,
    one_batch,
)
from tests.interpret.networks import classification, mlp
from tests.programs import FUSED

P = 24


def symmetric(values, seed=0):
    """A matrix with these eigenvalues."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return jnp.asarray((q * np.asarray(values)) @ q.T, jnp.float32)


@cache
def problem():
    return classification(0)


SPECTRA = {
    "zero": np.zeros(P),
    "rank three": np.append(np.zeros(P - 3), [1.0, 2, 4]),
    "two eigenvalues": np.append(np.full(P - 4, -1.0), np.full(4, 3.0)),
    "distinct": np.linspace(-1, 3, P),
    "tiny": 1e-24 * np.linspace(1, 3, P),
    "huge": 1e24 * np.linspace(1, 3, P),
}


@jax.jit
def _spectrum_and_pairs(operator):
    spectrum = slq.spectrum(operator, jax.random.key(1), steps=P, probes=4)
    return spectrum, eigenpairs.eigenpairs(operator, jax.random.key(2), 20, P)


@pytest.mark.parametrize("name", SPECTRA)
def test_degenerate_spectra_have_no_ghosts_and_no_nan(name):
    values = SPECTRA[name]
    operator = operators.dense(symmetric(values))
    spectrum, pairs = _spectrum_and_pairs(operator)
    largest = np.abs(values).max() or 1e-20
    np.testing.assert_allclose(np.sum(spectrum.weights, axis=1), 1, atol=1e-5)
    nodes = np.asarray(spectrum.nodes)[np.asarray(spectrum.weights) > 1e-3]
    distance = np.abs(nodes[:, None] - values).min(axis=1)
    assert np.all(distance < 2e-3 * largest)  # float32, and no node beside an eigenvalue
    np.testing.assert_allclose(pairs.values, values[np.argsort(-values)][:20], atol=3e-5 * largest)
    gram = pairs.vectors @ pairs.vectors.T
    np.testing.assert_allclose(gram, np.eye(20), atol=1e-4)


def test_a_start_among_the_eigenvectors_hides_none_of_the_others():
    # Every vector of two signs is an eigenvector here: the recurrence ends at once, and goes on.
    operator = operators.dense(jnp.asarray([[2.0, 1.0], [1.0, 2.0]]))
    keys = jax.random.split(jax.random.key(0), 16)
    found = jax.vmap(lambda key: eigenpairs.eigenpairs(operator, key, 2, 2).values)(keys)
    np.testing.assert_allclose(found, np.tile([3.0, 1.0], (16, 1)), rtol=1e-6)


@jax.jit
def _quadrature(operator, key):
    spectrum = slq.spectrum(operator, key, steps=4, probes=3)
    probes = jax.vmap(lambda key: trees.random_like(key, operator.like))(jax.random.split(key, 3))
    moments = [jnp.sum(spectrum.weights * spectrum.nodes**j, axis=1) for j in range(8)]
    matrix, own, exact = operator.context, probes, []
    for _ in range(8):
        exact.append(jnp.sum(probes * own, axis=1) / P)
        own = own @ matrix
    return jnp.stack(moments), jnp.stack(exact)


def test_a_quadrature_of_m_steps_has_the_first_2m_moments_of_its_probe():
    moments, exact = _quadrature(operators.dense(symmetric(SPECTRA["distinct"])), jax.random.key(0))
    np.testing.assert_allclose(moments, exact, rtol=2e-4, atol=2e-4)


def test_trace_of_a_diagonal_operator_is_exact():
    found = hutchinson.trace(operators.dense(jnp.diag(jnp.arange(8.0))), jax.random.key(0), 2)
    assert found.value == 28
    assert found.error == 0


@jax.jit
def _estimates(operator, keys):
    def one(key):
        spectrum = slq.spectrum(operator, key, steps=P, probes=24)
        return {
            "trace": hutchinson.trace(operator, key, 24, 24),
            "hutch++": hutchinson.hutch_plus_plus(operator, key, 72, 24),
            "frobenius": hutchinson.frobenius_squared(operator, key, 24, 24),
            "trace of squares": slq.spectral_sum(spectrum, jnp.square),
            "negative": slq.spectral_sum(spectrum, lambda t: (t < 0).astype(t.dtype)),
            "diagonal": hutchinson.diagonal(operator, key, 24),
        }

    return jax.lax.map(one, keys, batch_size=50)


@pytest.mark.slow
def test_standard_errors_are_calibrated():
    values = np.exp(np.linspace(-3, 2, 48)) - 1
    matrix = symmetric(values)
    found = _estimates(operators.dense(matrix), jax.random.split(jax.random.key(3), 200))
    squares = float(np.sum(values**2))
    exact = {
        "trace": float(np.sum(values)),
        "hutch++": float(np.sum(values)),
        "frobenius": squares,
        "trace of squares": squares,
        "negative": float(np.sum(values < 0)),
        "diagonal": np.diag(matrix),
    }
    for name, truth in exact.items():
        covered = np.mean(np.abs(found[name].value - truth) <= 2 * found[name].error)
        assert 0.9 <= covered <= 0.99, (name, covered)
    # A third of the products is spent on probes, and the rest pays: the error is far smaller.
    assert np.mean(found["hutch++"].error) < 0.2 * np.mean(found["trace"].error)


def test_errors_of_a_large_diagonal_are_those_of_what_is_beside_it():
    beside = symmetric(np.linspace(-1e-2, 1e-2, P))
    beside = beside - jnp.diag(jnp.diag(beside))
    operator = operators.dense(beside + 100 * jnp.eye(P))
    found = hutchinson.diagonal(operator, jax.random.key(0), 64)
    expected = jnp.sqrt(jnp.sum(beside**2, axis=1) / 64)
    np.testing.assert_allclose(found.error, expected, rtol=0.5)


def test_a_trace_goes_on_until_its_error_is_small_enough():
    operator = operators.dense(symmetric(np.linspace(0.5, 1.5, P)))
    few = hutchinson.trace(operator, jax.random.key(0), 8, 8)
    many = hutchinson.trace(operator, jax.random.key(0), 8, 8, tolerance=0.005, most=512)
    assert many.samples > few.samples
    assert many.error <= 0.005 * many.value


@jax.jit
def _matrices(own, key):
    made = {
        "hessian": operators.hessian(own),
        "ggn": operators.ggn(own),
        "fisher": operators.fisher(own, key, 2000),
        "empirical": operators.empirical_fisher(own),
    }
    return {name: operators.to_matrix(operator) for name, operator in made.items()}


@pytest.mark.slow
def test_ggn_is_positive_and_is_the_fisher_information_in_the_mean():
    own = _matrices(problem(), jax.random.key(5))
    assert np.linalg.eigvalsh(own["ggn"]).min() > -1e-6
    apart = np.linalg.norm(own["fisher"] - own["ggn"]) / np.linalg.norm(own["ggn"])
    assert apart < 0.05
    assert np.linalg.norm(own["hessian"] - own["ggn"]) > 0.1 * np.linalg.norm(own["ggn"])
    assert np.linalg.norm(own["empirical"] - own["ggn"]) > 0.1 * np.linalg.norm(own["ggn"])


def linear(params, x):
    return x @ params["w"] + params["b"]


@jax.jit
def _linear(x, y, params):
    softmax = make_problem(linear, cross_entropy, params, (x, jnp.argmax(y, axis=1)))
    squares = make_problem(linear, squared_error, params, (x, y))
    plain = make_problem(linear, Loss(squared_error.value), params, (x, y))
    return [
        [operators.to_matrix(kind(own)) for kind in (operators.hessian, operators.ggn)]
        for own in (softmax, squares, plain)
    ]


def test_ggn_of_a_linear_model_is_the_hessian():
    x, y = np.random.default_rng(0).normal(size=(2, 12, 3)).astype(np.float32)
    params = {"b": jnp.zeros(3), "w": jnp.asarray(y[:3])}
    softmax, squares, plain = _linear(x, y, params)
    for hessian, ggn in (softmax, squares, plain):
        np.testing.assert_allclose(hessian, ggn, atol=1e-6)
    design = np.concatenate([np.ones((12, 1)), x], axis=1)
    gram = design.T @ design / 12
    np.testing.assert_allclose(squares[0], np.kron(gram, np.eye(3)), atol=1e-5)
    # A shift of all logits changes nothing: three inputs and the bias make four null directions.
    assert np.sum(np.abs(np.linalg.eigvalsh(softmax[0])) < 1e-6) >= 4


@jax.jit
def _products(problem, vector):
    made = (
        operators.hessian(problem),
        operators.ggn(problem),
        operators.empirical_fisher(problem),
        operators.shift(operators.block(operators.hessian(problem), lambda n: "[0]" in n), 0.5),
    )
    return [operator(trees.merge(operator.like, vector)) for operator in made[:3]] + [
        made[3](made[3].like),
        mean_loss(problem),
    ]


def close_trees(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@pytest.mark.slow
def test_microbatches_and_devices_change_nothing():
    own = problem()
    weight = jnp.arange(24.0) % 3
    own = replace(own, data=own.data._replace(weight=weight))
    vector = jax.tree.map(jnp.cos, own.floats)
    expected = _products(own, vector)
    parts = jax.tree.map(lambda x: x.reshape(3, 8, *x.shape[1:]), own.data)
    close_trees(_products(replace(own, data=parts, microbatched=True), vector), expected, 1e-5)
    host = jax.tree.map(np.asarray, parts)
    fetched = streams.stream_of(lambda k: jax.tree.map(lambda x: x[k], host), 3)
    again = streams.from_iterator(lambda: map(fetched.fetch, range(3)), 3)
    for stream in (fetched, again):
        streamed = make_problem(mlp, cross_entropy, own.params, stream)
        close_trees(_products(streamed, vector), expected, 1e-5)
    close_trees(one_batch(streamed).data, own.data, 0)
    mesh = jax.make_mesh((8,), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    spread = replace(
        own, data=jax.device_put(own.data, rows), params=jax.device_put(own.params, everywhere)
    )
    close_trees(_products(spread, jax.device_put(vector, everywhere)), expected, 1e-5)


@pytest.mark.slow
def test_sharded_parameters_stay_sharded_and_change_nothing():
    own = classification(0, 16, (8, 16, 8))
    vector = jax.tree.map(jnp.cos, own.floats)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("fsdp",))

    def split(leaf):
        axes = ("fsdp", None)[: leaf.ndim]
        return jax.device_put(
            leaf, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        )

    spread = replace(own, params=jax.tree.map(split, own.params))
    product = jax.jit(lambda problem, vector: operators.hessian(problem)(vector))
    found = product(spread, jax.tree.map(split, vector))
    close_trees(found, product(own, vector), 1e-5)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(found)} == {8}
    pairs = eigenpairs.eigenpairs(operators.hessian(spread), jax.random.key(0), 2, 12)
    alone = eigenpairs.eigenpairs(operators.hessian(own), jax.random.key(0), 2, 12)
    np.testing.assert_allclose(pairs.values, alone.values, rtol=1e-4)


def test_other_parameters_of_the_same_shapes_compile_nothing():
    own = problem()
    before = slq.spectrum._cache_size()
    for factor in (1.0, 2.0):
        scaled = replace(own, params=jax.tree.map(lambda x, f=factor: f * x, own.params))
        slq.spectrum(operators.ggn(scaled), jax.random.key(0), steps=4, probes=2)
    assert slq.spectrum._cache_size() == before + 1


def test_leaves_that_are_not_floating_stay_as_they_are():
    own = problem()

    def apply(params, x):
        assert params["steps"].dtype == jnp.int32
        assert params["none"] is None
        return mlp(params["layers"], x) * params["steps"]

    params = {"layers": own.params, "none": None, "steps": jnp.int32(1)}
    other = make_problem(apply, cross_entropy, params, own.data)
    operator = operators.hessian(other)
    assert operator.dimension == operators.hessian(own).dimension
    call = jax.jit(lambda operator: operator(operator.like))
    plain, product = call(operators.hessian(own)), call(operator)
    assert product["steps"] is None
    close_trees(product["layers"], plain, 1e-6)


@jax.custom_vjp
def reverse_only(x):
    return jnp.tanh(x)


reverse_only.defvjp(
    lambda x: (jnp.tanh(x), x), lambda x, cotangent: (cotangent * (1 - jnp.tanh(x) ** 2),)
)


def mlp_with_its_own_rule(params, x):
    (w, b), (last, offset) = params
    return reverse_only(x @ w + b) @ last + offset


def test_a_network_with_a_reverse_rule_of_its_own_has_the_same_products():
    own = problem()
    vector = jax.tree.map(jnp.cos, own.floats)
    other = make_problem(mlp_with_its_own_rule, cross_entropy, own.params, own.data)
    for a, b in zip(_products(own, vector)[:3], _products(other, vector)[:3], strict=True):
        close_trees(a, b, 1e-5)


def test_half_precision_parameters_are_differentiated_in_single_precision():
    own = problem()
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), own.params)
    half = make_problem(mlp, cross_entropy, params, own.data)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.floats)} == {jnp.dtype("float32")}


def batch_norm(params, x):
    return mlp(params, (x - x.mean(0)) / (x.std(0) + 1e-3))


BAD = {
    "params: expected at least one floating leaf": lambda own: make_problem(
        mlp, cross_entropy, {"a": jnp.arange(3)}, own.data
    ),
    "data: expected 1 equal leading axes": lambda own: make_problem(
        mlp, cross_entropy, own.params, Data(own.data.inputs, own.data.targets[:-1])
    ),
    "data: expected at least one example": lambda own: make_problem(
        mlp, cross_entropy, own.params, jax.tree.map(lambda x: x[:0], own.data)
    ),
    "apply: expected one array of outputs, got a tuple": lambda own: make_problem(
        lambda p, x: (mlp(p, x), {"mean": x.mean(0)}), cross_entropy, own.params, own.data
    ),
    "apply: expected outputs with a leading axis of 24 examples": lambda own: make_problem(
        lambda p, x: mlp(p, x)[0], cross_entropy, own.params, own.data
    ),
    r"loss: expected one number for each example, \(24,\), got \(\)": lambda own: make_problem(
        mlp, lambda f, y: jnp.mean(cross_entropy.value(f, y)), own.params, own.data
    ),
    "BatchNorm's inference statistics": lambda own: check_independent(
        make_problem(batch_norm, cross_entropy, own.params, own.data)
    ),
    r"keep: expected to keep a leaf, got none of \[0\]\[0\]": lambda own: operators.block(
        operators.hessian(own), lambda name: False
    ),
    "sample=None": lambda own: operators.fisher(
        replace(own, loss=Loss(cross_entropy.value)), jax.random.key(0)
    ),
    "probes: expected at least 2": lambda own: hutchinson.trace(
        operators.hessian(own), jax.random.key(0), 1
    ),
    "k: expected 1 to steps": lambda own: eigenpairs.eigenpairs(
        operators.hessian(own), jax.random.key(0), 9, 8
    ),
    "which: expected": lambda own: eigenpairs.eigenpairs(
        operators.hessian(own), jax.random.key(0), which="top"
    ),
    "steps: expected at least 1": lambda own: lanczos.lanczos(
        operators.hessian(own), own.floats, 0
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message](problem())


def test_independent_examples_are_accepted():
    check_independent(problem())


def test_products_of_many_vectors_at_once_are_those_of_each_in_programs_as_users_compile_them():
    rng = np.random.default_rng(0)
    logits = jnp.asarray(3 * rng.normal(size=(1400, 10)), jnp.float32)
    tangents = jnp.asarray(rng.normal(size=(8, 1400, 10)), jnp.float32)
    targets = jnp.zeros(1400, jnp.int32)

    def together(logits, tangents):
        return jax.vmap(lambda own: cross_entropy.hessian(logits, targets, own))(tangents)

    p = np.asarray(jax.nn.softmax(logits))
    expected = p * (tangents - np.sum(p * np.asarray(tangents), axis=-1, keepdims=True))
    found = jax.jit(together, compiler_options=FUSED)(logits, tangents)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_ignored_targets_have_no_loss_and_no_curvature():
    @jax.jit
    def compute(logits, targets):
        short = [cross_entropy.value(logits[:1, :2], targets[:1, :2])[0]]
        short.append(cross_entropy.value(logits[1:, :1], targets[1:, :1])[0])
        products = [
            operators.output_hessian(loss, logits, targets, 2 * logits + 1)
            for loss in (cross_entropy, Loss(cross_entropy.value))
        ]
        return cross_entropy.value(logits, targets), jnp.stack(short), products

    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    value, short, products = compute(logits, np.array([[1, 2, -1], [3, -1, -1]]))
    np.testing.assert_allclose(value, short, rtol=1e-6)
    np.testing.assert_allclose(*products, atol=1e-6)


@pytest.mark.slow
def test_slq_of_a_wishart_matrix_is_the_marchenko_pastur_law():
    d, n = 2000, 4000
    x = jax.random.normal(jax.random.key(0), (n, d))
    spectrum = slq.spectrum(operators.dense(x.T @ x / n), jax.random.key(1), 64, 8)
    low, high = marchenko_pastur.edges(0.5)
    grid = jnp.linspace(low - 0.5, high + 0.5, 2000)
    law = marchenko_pastur.density(grid, 0.5)
    density = slq.density(spectrum, grid, 1e-3, within=True).value
    assert jnp.trapezoid(jnp.abs(density - law), grid) < 0.05
    np.testing.assert_allclose(jnp.trapezoid(density, grid), 1, atol=1e-2)
    counted = slq.spectral_sum(spectrum, lambda t: (t < 1).astype(t.dtype)).value / d
    inside = (grid < 1).astype(grid.dtype)
    assert abs(counted - jnp.trapezoid(law * inside, grid)) < 0.02


def test_the_marchenko_pastur_law_of_whole_numbers_is_that_of_the_numbers():
    whole = jnp.arange(3)
    exact = marchenko_pastur.density(whole.astype(float), 0.5)
    np.testing.assert_array_equal(marchenko_pastur.density(whole, 0.5), exact)
    assert exact[1] > 0
