"""Operators of networks as people have them: convolutions, tied embeddings, many parameters."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.interpret import trees
from jaxmethods.interpret.curvature import eigenpairs, hutchinson, operators, slq
from jaxmethods.interpret.dynamics import monitor
from jaxmethods.interpret.gradients import noise_scale
from jaxmethods.interpret.losses import cross_entropy
from jaxmethods.interpret.problem import Data, Problem, make_problem
from jaxmethods.interpret.report import report
from tests.interpret.networks import mlp
from tests.interpret.test_language_model import language_problem
from tests.programs import normal


class Convolutional(nn.Module):
    """Two convolutions and a head of three classes."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
        return nn.Dense(3)(nn.relu(nn.Conv(4, (3, 3))(x)).mean((1, 2)))


def convolutional():
    model = Convolutional()
    x, y = normal(0, 8, 6, 6, 2).astype(np.float32), np.arange(8) % 3
    params = jax.jit(model.init)(jax.random.key(0), x)
    return make_problem(model.apply, cross_entropy, params, Data(x, y))


@jax.jit
def products(problem):
    vector = jax.tree.map(jnp.cos, problem.floats)
    kinds = (operators.hessian, operators.ggn, operators.empirical_fisher)
    return [kind(problem)(vector) for kind in kinds]


@pytest.mark.slow
@pytest.mark.parametrize("make", [convolutional, partial(language_problem, 11, 4, 8)])
def test_products_are_those_of_microbatches_and_of_eight_devices(make):
    problem = make()
    expected = products(problem)
    parts = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), problem.data)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    spread = replace(
        problem,
        data=jax.device_put(problem.data, rows),
        params=jax.device_put(problem.params, everywhere),
    )
    for other in (replace(problem, data=parts, microbatched=True), spread):
        for a, b in zip(products(other), expected, strict=True):
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)


def primitives(jaxpr):
    """Every equation, also those inside loops and calls."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


MANY = {
    "slq": lambda own, key: slq.spectrum(operators.hessian(own), key, 3, 1),
    "eigenpairs": lambda own, key: eigenpairs.eigenpairs(operators.ggn(own), key, 1, 3),
    "trace": lambda own, key: hutchinson.trace(operators.empirical_fisher(own), key, 2),
    "noise_scale": lambda own, key: noise_scale.noise_scale(own),
    "monitor": lambda own, key: monitor.train_monitor(2).update(
        monitor.train_monitor(2).init(key, own), own
    ),
}


@pytest.mark.parametrize("name", MANY)
def test_twelve_million_parameters_are_never_joined_into_one_array(name):
    sizes = ((3000, 3000), (3000,)), ((3000, 1000), (1000,))
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32),
        list(sizes),
        is_leaf=lambda x: isinstance(x, tuple) and isinstance(x[0], int),
    )
    data = Data(jax.ShapeDtypeStruct((4, 3000), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.int32))

    def measured(params, data, key):
        return MANY[name](Problem(mlp, cross_entropy, params, data), key)

    traced = jax.make_jaxpr(measured)(params, data, jax.random.key(0))
    ravelled = jax.make_jaxpr(trees.ravel)(params)

    def joined(traced):
        shapes = [own.aval.shape for e in primitives(traced.jaxpr) for own in e.outvars]
        return any(trees.size(params) in shape for shape in shapes)

    assert joined(ravelled)
    assert not joined(traced)


def scanned(params, x):
    """Eight equal layers and a head."""
    x, _ = jax.lax.scan(lambda x, layer: (jnp.tanh(x @ layer), None), x, params["layers"])
    return x @ params["head"]


@pytest.mark.slow
def test_a_spectrum_takes_the_memory_of_its_basis_and_six_vectors_more():
    params = {
        "layers": jax.ShapeDtypeStruct((8, 256, 256), jnp.float32),
        "head": jax.ShapeDtypeStruct((256, 10), jnp.float32),
    }
    data = Data(jax.ShapeDtypeStruct((4, 256), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.int32))

    def measured(params, data, key):
        problem = Problem(scanned, cross_entropy, params, data)
        return slq.spectrum(operators.hessian(problem), key, 32, 4, 1).nodes

    key = jax.eval_shape(lambda: jax.random.key(0))
    analysis = jax.jit(measured).lower(params, data, key).compile().memory_analysis()
    if analysis is None:
        pytest.skip("this backend doesn't say what memory a program takes")
    vectors = analysis.temp_size_in_bytes / (4 * sum(x.size for x in jax.tree.leaves(params)))
    assert 32 <= vectors <= 32 + 6 + 0.5  # activations of four examples are less than a half


def with_batch_norm(params, x):
    return mlp(params, (x - x.mean(0)) / (x.std(0) + 1e-3))


def with_dropout(params, x):
    kept = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
    return mlp(params, jnp.where(kept, x, 0))


@pytest.mark.parametrize("apply", [with_batch_norm, with_dropout])
def test_examples_that_see_each_other_get_no_report(apply):
    params = [(normal(1, 3, 4), normal(2, 4)), (normal(3, 4, 2), normal(4, 2))]
    problem = make_problem(apply, cross_entropy, params, (normal(0, 6, 3), np.arange(6) % 2))
    with pytest.raises(ValueError, match="turn off dropout and use BatchNorm's inference"):
        report(problem, problem, jax.random.key(0), "quick")
