"""Implicit hypergradients, where there is a closed form for them."""

from __future__ import annotations

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods import bilevel
from jaxmethods.bilevel import Implicit, Mixed

ROWS, WIDTH = 30, 4
CG = Implicit(tolerance=1e-13)
NEUMANN = Implicit("neumann", iterations=2000, tolerance=1e-13, rate=0.3)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def data():
    keys = jax.random.split(jax.random.key(1), 4)
    train, valid = (jax.random.normal(key, (ROWS, WIDTH)) for key in keys[:2])
    true = jnp.array([1.0, -2.0, 0.5, 0.0])
    noisy = [
        x @ true + jax.random.normal(k, (ROWS,)) for x, k in ((train, keys[2]), (valid, keys[3]))
    ]
    return train, noisy[0], valid, noisy[1]


def ridge(weights, log_penalty, batch):
    states, targets = batch
    residuals = states @ weights - targets
    return 0.5 * jnp.mean(residuals**2) + 0.5 * jnp.exp(log_penalty) * jnp.sum(weights**2)


def validation_gradient(log_penalty, mode, steps=400, solution_of="sgd"):
    train, targets, valid, valid_targets = data()
    optimizer = {"sgd": optax.sgd(0.3), "adam": optax.adam(0.03)}[solution_of]

    def outer(log_penalty):
        batches = jax.tree.map(lambda x: jnp.broadcast_to(x, (steps, *x.shape)), (train, targets))
        start = jnp.zeros(WIDTH)
        solution = bilevel.solve(ridge, optimizer, start, log_penalty, batches, mode=mode)
        return 0.5 * jnp.mean((valid @ solution.params - valid_targets) ** 2)

    return jax.jit(jax.grad(outer))(log_penalty)


def closed_form(log_penalty):
    """w = (X'X/n + c)^-1 X'y/n, so dw/dlog c = -c (X'X/n + c)^-1 w."""
    train, targets, valid, valid_targets = (np.asarray(x) for x in data())
    penalty = np.exp(log_penalty)
    hessian = train.T @ train / ROWS + penalty * np.eye(WIDTH)
    weights = np.linalg.solve(hessian, train.T @ targets / ROWS)
    along = -penalty * np.linalg.solve(hessian, weights)
    return np.mean((valid @ weights - valid_targets) * (valid @ along))


@pytest.mark.parametrize("mode", [CG, NEUMANN, Mixed()], ids=["cg", "neumann", "unrolled"])
def test_the_regularization_path_of_ridge_regression(mode):
    path = jnp.linspace(-4.0, 1.0, 6)
    gradients = jax.jit(jax.vmap(lambda penalty: validation_gradient(penalty, mode)))(path)
    np.testing.assert_allclose(gradients, [closed_form(float(p)) for p in path], rtol=1e-9)


def test_implicit_gradients_do_not_depend_on_the_optimizer():
    gradient = validation_gradient(-1.0, CG, steps=3000, solution_of="adam")
    np.testing.assert_allclose(gradient, closed_form(-1.0), rtol=1e-5)


def test_unrolled_and_implicit_gradients_meet_as_the_inner_loop_converges():
    def difference(steps):
        modes = (Mixed(), CG)
        unrolled, implicit = (validation_gradient(-3.0, mode, steps) for mode in modes)
        return abs(unrolled - implicit)

    differences = [float(difference(steps)) for steps in (5, 20, 80, 320)]
    assert all(later < 0.1 * earlier for earlier, later in pairwise(differences))
    assert differences[-1] < 1e-10


def test_a_short_neumann_series_is_truncated_unrolling_from_the_solution():
    """i terms after the first are the gradient through i + 1 more steps of gradient descent."""
    terms, rate = 7, 0.3
    short = Implicit("neumann", iterations=terms, tolerance=0.0, rate=rate)
    unrolled = validation_gradient(-3.0, bilevel.Truncated(terms + 1), 3000)
    np.testing.assert_allclose(validation_gradient(-3.0, short, 3000), unrolled, rtol=1e-9)


def test_the_neumann_series_ends_with_the_first_term_within_the_tolerance():
    """With a Hessian of 1 and rate 0.3 terms are 1, 0.7, 0.49: the last one is below a half."""
    mode = Implicit("neumann", iterations=1000, tolerance=0.5, rate=0.3)

    def outer(h):
        loss = lambda theta, h, _: 0.5 * jnp.sum((theta - h) ** 2)  # noqa: E731
        return bilevel.solve(loss, optax.sgd(0.3), jnp.zeros(()), h, steps=3, mode=mode).params

    np.testing.assert_allclose(jax.grad(outer)(1.0), 0.3 * (1 + 0.7 + 0.49), rtol=1e-12)


@pytest.mark.parametrize("solver", ["cg", "neumann"])
def test_damping_is_added_to_the_hessian(solver):
    """With a Hessian of a, the gradient is that of a + damping."""
    a, damping = 2.0, 0.7
    mode = Implicit(solver, iterations=500, tolerance=1e-14, damping=damping, rate=0.3)

    def outer(h):
        loss = lambda theta, h, _: 0.5 * a * jnp.sum(theta**2) - jnp.sum(theta * h)  # noqa: E731
        start = jnp.zeros(2)
        return jnp.sum(bilevel.solve(loss, optax.sgd(0.3), start, h, steps=200, mode=mode).params)

    np.testing.assert_allclose(jax.grad(outer)(jnp.ones(2)), 1 / (a + damping), rtol=1e-12)


def test_the_initial_parameters_have_no_part_in_it():
    def outer(start):
        loss = lambda theta, h, _: jnp.sum((theta - h) ** 2)  # noqa: E731
        return bilevel.solve(loss, optax.sgd(0.1), start, 1.0, steps=3, mode=Implicit()).params

    assert jax.grad(outer)(0.3) == 0


def test_closed_over_values_and_the_last_batch_have_gradients():
    """theta* = closed * batch."""

    def outer(closed, batches):
        loss = lambda theta, _, batch: 0.5 * (theta - closed * batch) ** 2  # noqa: E731
        solution = bilevel.solve(loss, optax.sgd(1.0), 0.0, {}, batches, mode=Implicit())
        return solution.params

    closed, batches = jax.grad(outer, argnums=(0, 1))(2.0, jnp.array([5.0, 3.0]))
    np.testing.assert_allclose(closed, 3.0)
    np.testing.assert_allclose(batches, [0.0, 2.0])


@pytest.mark.parametrize("solver", ["cg", "neumann"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_parameters_are_solved_for_in_single_precision(solver, dtype):
    """d(sum theta*)/dh is A^-1 1, to the rounding of the products."""
    hessian = np.array([[2.0, 0.25], [0.25, 1.0]])
    mode = Implicit(solver, rate=0.5)

    def outer(h):
        loss = lambda w, h, _: 0.5 * w @ jnp.asarray(hessian, dtype) @ w - w @ h  # noqa: E731
        start = jnp.zeros(2, dtype)
        solution = bilevel.solve(loss, optax.sgd(0.3), start, h, steps=20, mode=mode)
        return jnp.sum(solution.params)

    gradient = jax.jit(jax.grad(outer))(jnp.ones(2, dtype))
    expected = np.linalg.solve(hessian, np.ones(2))
    np.testing.assert_allclose(gradient.astype(float), expected, rtol=4 * jnp.finfo(dtype).eps)


def test_where_the_inner_loop_diverged_there_is_no_gradient():
    """Conjugate gradients stop at the first NaN, with a solution of zero."""

    def outer(h):
        loss = lambda w, h, _: jnp.sum((w - h) ** 4)  # noqa: E731
        start = jnp.full(2, 10.0)
        solution = bilevel.solve(loss, optax.sgd(1.0), start, h, steps=20, mode=Implicit())
        return jnp.sum(solution.params)

    assert np.all(np.isnan(jax.grad(outer)(jnp.ones(2))))
