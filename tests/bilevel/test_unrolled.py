"""The gradient through one inner step, against closed forms and plain automatic differentiation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.bilevel import one_step_gradient
from tests.programs import normal

ONE_STEP = jax.jit(one_step_gradient, static_argnums=0)
A = np.diag(np.array([1.0, 2.0, 3.0], np.float32))
B, TARGET = normal(0, 3, 2), normal(1, 3)
W, U = normal(2, 3), normal(3, 2)


def quadratic(w, u, outer):
    """Inner: w'Aw/2 + w'Bu. Outer: |w - target|²/2."""
    inner = 0.5 * w @ A @ w + w @ B @ u
    judged = 0.5 * jnp.sum((w - TARGET) ** 2)
    return jnp.where(outer, judged, inner), inner


def test_a_quadratic_has_the_closed_form():
    rate = 0.1
    stepped = W - rate * (A @ W + B @ U)
    (value, _), gradient = ONE_STEP(quadratic, W, U, rate, (False,), (True,))
    np.testing.assert_allclose(value, 0.5 * jnp.sum((stepped - TARGET) ** 2), rtol=1e-6)
    np.testing.assert_allclose(gradient, -rate * B.T @ (stepped - TARGET), rtol=1e-5)


def wavy(params, hyper, shift):
    """Neither level is quadratic; both are pytrees."""
    inner = jnp.sin(params["w"] * hyper["u"] + shift).sum()
    return inner + jnp.sum(jnp.exp(-params["b"] * hyper["v"])), {"shift": shift}


PARAMS = {"w": jnp.array([0.3, -1.2]), "b": jnp.array([0.5])}
HYPER = {"u": jnp.array([0.7, 0.1]), "v": jnp.array([1.5])}


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.7])
def test_it_is_what_differentiating_through_the_step_gives(rate):
    def judged(hyper):
        inner = jax.grad(lambda params: wavy(params, hyper, 0.2)[0])(PARAMS)
        stepped = jax.tree.map(lambda p, g: p - rate * g, PARAMS, inner)
        return wavy(stepped, hyper, -0.4)[0]

    expected = jax.jit(jax.grad(judged))(HYPER)
    (value, aux), gradient = ONE_STEP(wavy, PARAMS, HYPER, rate, (0.2,), (-0.4,))
    np.testing.assert_allclose(value, judged(HYPER), rtol=1e-6)
    assert aux == {"shift": -0.4}
    jax.tree.map(lambda g, e: np.testing.assert_allclose(g, e, rtol=1e-5), gradient, expected)


def test_without_a_learning_rate_it_is_the_first_order_gradient():
    _, gradient = one_step_gradient(wavy, PARAMS, HYPER, 0.0, (0.2,))
    expected = jax.grad(lambda hyper: wavy(PARAMS, hyper, 0.2)[0])(HYPER)
    jax.tree.map(np.testing.assert_array_equal, gradient, expected)


@pytest.mark.parametrize(
    ("lower", "upper", "tolerance"),
    [("bfloat16", "float32", 0.03), ("float16", "float16", 4e-3), ("float32", "bfloat16", 0.03)],
)
def test_levels_of_different_types_have_gradients_of_their_own(lower, upper, tolerance):
    """A float32 rate widens nothing."""
    w, u = W.astype(lower), U.astype(upper)
    arguments = (jnp.float32(0.1), (False,), (True,))
    _, gradient = ONE_STEP(quadratic, w, u, *arguments)
    _, expected = ONE_STEP(quadratic, W, U, *arguments)
    assert gradient.dtype == upper
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(gradient.astype(float), expected, atol=tolerance * scale)
