"""Traces from curvature at layers' products, beside the trace of the whole matrix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.interpret.curvature import hutchinson, layer_trace, operators
from jaxmethods.interpret.gradients.linear_layers import linear_layers
from jaxmethods.interpret.losses import cross_entropy, squared_error
from jaxmethods.interpret.problem import Data, make_problem
from tests.interpret.networks import classification

OPERATORS: dict[layer_trace.Matrix, Any] = {"hessian": operators.hessian, "ggn": operators.ggn}
PROBED: dict[str, layer_trace.Matrix] = {"probed": "hessian", "ggn": "ggn"}


def tokens(params, x):
    """Rows that see others, a layer without bias, a tied one, a scale, a bias of its own."""
    hidden = jax.jit(lambda x: jnp.tanh(x @ params["first"] + params["bias"]))(x)
    hidden = (hidden + hidden[:, ::-1] @ params["plain"]) * params["scale"]
    return jax.nn.softplus(hidden @ params["tied"]) @ params["tied"].T + params["alone"]


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    shapes = {"first": (4, 3), "bias": (3,), "plain": (3, 3), "scale": (3,), "tied": (3, 3)}
    params = {name: draw(*shape) for name, shape in shapes.items()} | {"alone": draw(3)}
    weight = jnp.asarray([1.0, 2.0, 0.0, 1.0, 0.5, 1.0])
    data = Data(draw(6, 5, 4), jnp.asarray(rng.integers(-1, 3, (6, 5))), weight)
    return make_problem(tokens, cross_entropy, params, data)


@jax.jit
def _of_everything(problem):
    microbatches = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), problem.data)
    split = replace(problem, data=microbatches, microbatched=True)
    return {
        matrix: (
            jnp.trace(operators.to_matrix(make(problem))),
            layer_trace.exact_trace(problem, 7, matrix=matrix),
            layer_trace.exact_trace(split, 7, matrix=matrix).value,
        )
        for matrix, make in OPERATORS.items()
    }


@pytest.mark.slow
def test_the_exact_trace_is_that_of_the_matrix(texts):
    for matrix, (whole, found, split) in _of_everything(texts).items():
        np.testing.assert_allclose(found.value, whole, rtol=2e-5, err_msg=matrix)
        np.testing.assert_allclose(split, whole, rtol=2e-5, err_msg=matrix)
        assert found.error == 0
        # 5 rows of 3 in "first" with its bias and in "plain"; 9 + 3 + 3 numbers in no layer.
        assert found.samples == 2 * 15 + 15


@jax.jit
def _of_many_keys(problem, keys):
    def one(key):
        return {
            "probed": layer_trace.trace(problem, key, 64, 64),
            "ggn": layer_trace.trace(problem, key, 64, 64, "ggn"),
            "hutchinson": hutchinson.trace(operators.hessian(problem), key, 64, 64),
        }

    return jax.lax.map(one, keys, batch_size=20)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows", "tokens"])
def test_probes_are_unbiased_their_errors_calibrated_and_smaller_than_common_probes(name, texts):
    problem = texts if name == "tokens" else classification(0, 64)
    found = _of_many_keys(problem, jax.random.split(jax.random.key(1), 200))
    for kind, matrix in PROBED.items():
        truth = layer_trace.exact_trace(problem, matrix=matrix).value
        mean, own = np.mean(found[kind].value), found[kind]
        assert abs(mean - truth) < 4 * np.std(own.value) / 200**0.5, kind
        covered = np.mean(np.abs(own.value - truth) <= 2 * own.error)
        assert 0.9 <= covered <= 0.99, (kind, covered)
    gain = np.std(found["hutchinson"].value) / np.std(found["probed"].value)
    assert gain > {"rows": 3, "tokens": 1}[name]


def test_microbatches_draw_different_signs():
    """With common signs two equal halves would have the variance of one."""
    problem = classification(0, 16)
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), problem.data)
    moved = twice._replace(inputs=twice.inputs * jnp.array([1.0, 1.001])[:, None, None])
    found = jax.jit(
        jax.vmap(
            lambda key: (
                layer_trace.trace(problem, key, 2).value,
                layer_trace.trace(replace(problem, data=moved, microbatched=True), key, 2).value,
            )
        )
    )(jax.random.split(jax.random.key(0), 400))
    one, two = (np.std(values) for values in found)
    assert abs(two / one - 0.5**0.5) < 0.12


def test_a_bias_belongs_to_the_product_it_is_added_to_and_to_no_other():
    def network(params, x):
        shared = x @ params["a"] + params["twice"]
        other = x @ params["b"] + params["twice"]
        seen = x @ params["c"]  # is read again behind the sum
        sums = jnp.sum(jnp.tanh(seen + params["read"]) * seen, 1)
        return jnp.tanh(shared * other) @ params["d"] + params["own"] + sums[:, None]

    names = {"a": (4, 3), "b": (4, 3), "c": (4, 2), "d": (3, 2), "twice": 3, "read": 2, "own": 2}
    rng = np.random.default_rng(1)
    params = {name: jnp.asarray(rng.normal(size=n), jnp.float32) for name, n in names.items()}
    inputs = jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
    problem = make_problem(network, squared_error, params, (inputs, jnp.zeros((5, 2))))

    @jax.jit
    def compute(problem):
        found = linear_layers(problem.outputs, problem.floats, problem.data.inputs)
        whole = jnp.trace(operators.to_matrix(operators.hessian(problem)))
        return found.rest, found.inputs, layer_trace.exact_trace(problem).value, whole

    rest, rows, value, whole = compute(problem)
    assert {name for name, leaf in rest.items() if leaf is None} == {*"abcd", "own"}
    assert [a.shape[-1] for a in rows] == [4, 4, 4, 3 + 1]
    np.testing.assert_allclose(value, whole, rtol=2e-5)


def test_a_network_without_layers_is_probed_as_ever():
    def scaled(params, x):
        return jnp.tanh(x * params)

    rng = np.random.default_rng(2)
    data = (jnp.asarray(rng.normal(size=(8, 3)), jnp.float32), jnp.zeros((8, 3)))
    problem = make_problem(scaled, squared_error, jnp.asarray([1.0, 2.0, -1.0]), data)

    @jax.jit
    def compute(problem):
        found = layer_trace.trace(problem, jax.random.key(0), 3)
        whole = jnp.trace(operators.to_matrix(operators.hessian(problem)))
        return found.value, layer_trace.exact_trace(problem).value, whole

    found, exact, whole = compute(problem)
    np.testing.assert_allclose([found, exact], whole, rtol=1e-5)  # its Hessian is diagonal


def test_bad_input_is_named():
    problem = classification(0)
    with pytest.raises(ValueError, match=r"most: expected at least 8, .* got 7"):
        layer_trace.exact_trace(problem, most=7)
    with pytest.raises(ValueError, match="probes: expected at least 2, got 1"):
        layer_trace.trace(problem, jax.random.key(0), 1)
    with pytest.raises(ValueError, match="matrix: expected 'hessian' or 'ggn', got 'fisher'"):
        layer_trace.exact_trace(problem, matrix="fisher")  # type: ignore[arg-type]
