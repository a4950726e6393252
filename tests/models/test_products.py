"""Products of rows, Gaussian error linear units, what a layer keeps for its gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from jaxmethods.models.products import gelu, keep_products, rows_product
from tests.programs import normal


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 2, 3), (0, 3), (2, 0)])
def test_rows_are_multiplied_wherever_they_stand(leading: tuple[int, ...]):
    x, kernel = normal(0, *leading, 4), normal(1, 4, 5)
    found = rows_product(jnp.asarray(x), jnp.asarray(kernel))
    assert found.shape == (*leading, 5)
    np.testing.assert_allclose(found, x @ kernel, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_gelu_is_the_exact_one(dtype: str):
    x = jnp.linspace(-6, 6, 101).astype(dtype)
    wide = np.asarray(x, "float64")
    found = gelu(x)
    assert found.dtype == x.dtype
    rounding = float(jnp.finfo(x.dtype).eps)
    np.testing.assert_allclose(np.asarray(found, "float64"), wide * norm.cdf(wide), rounding, 1e-6)


def stacked(layer: jax.Array, keep: bool) -> tuple[jax.Array, list[tuple[int, ...]]]:
    """Gradient of three layers, and the shapes that their loop keeps."""

    def body(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
        centered = x - jnp.mean(x, axis=-1, keepdims=True)
        return gelu(rows_product(jnp.tanh(centered), kernel)), None

    def loss(kernels: jax.Array) -> jax.Array:
        x = jnp.asarray(normal(2, 2, 7, 4))
        return jnp.sum(jax.lax.scan(keep_products(body) if keep else body, x, kernels)[0] ** 2)

    loops = [
        equation
        for equation in jax.make_jaxpr(jax.grad(loss))(layer).eqns
        if equation.primitive.name == "scan" and not equation.params["reverse"]
    ]
    shapes = [jnp.shape(variable.aval) for variable in loops[0].outvars]
    return jax.grad(loss)(layer), sorted(shape for shape in shapes if shape[0] == len(layer))


def test_a_layer_keeps_its_products_alone():
    kernels = jnp.asarray(normal(3, 3, 4, 4))
    plain, everything = stacked(kernels, keep=False)
    found, kept = stacked(kernels, keep=True)
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)
    products, stream = (3, 14, 4), (3, 2, 7, 4)
    assert kept == [stream, products]
    assert len(everything) > 2
