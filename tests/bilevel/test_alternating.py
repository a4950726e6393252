"""First-order alternation on problems with known answers."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods.bilevel import alternating


def saddle_free_loss(lower, upper, target):
    """min_u min_w: w follows u, u follows target; the joint minimum is w = u = target."""
    loss = jnp.sum((lower["w"] - upper) ** 2) + jnp.sum((upper - target) ** 2)
    return loss, {"distance": jnp.sum((upper - target) ** 2)}


@pytest.fixture(scope="module")
def problem():
    return alternating(saddle_free_loss, optax.adam(0.05), optax.sgd(0.05))


@pytest.fixture(scope="module")
def start(problem):
    return problem.init({"w": jnp.array([3.0, -2.0])}, jnp.array([0.5, 0.1]))


TARGET = jnp.array([1.0, 2.0])


def test_a_lower_step_leaves_the_upper_variable_bit_identical(problem, start):
    after, _ = jax.jit(problem.step)(start, jnp.bool_(False), TARGET)
    chex.assert_trees_all_equal(after.upper, start.upper)
    chex.assert_trees_all_equal(after.upper_optimizer, start.upper_optimizer)
    assert jnp.all(after.lower["w"] != start.lower["w"])


def test_an_upper_step_leaves_the_lower_variable_bit_identical(problem, start):
    after, _ = jax.jit(problem.step)(start, jnp.bool_(True), TARGET)
    chex.assert_trees_all_equal(after.lower, start.lower)
    chex.assert_trees_all_equal(after.lower_optimizer, start.lower_optimizer)
    assert jnp.all(after.upper != start.upper)


def test_an_upper_sgd_step_follows_the_first_order_gradient(problem, start):
    after, report = problem.step(start, True, TARGET)
    gradient = 2 * (start.upper - start.lower["w"]) + 2 * (start.upper - TARGET)
    np.testing.assert_allclose(after.upper, start.upper - 0.05 * gradient, rtol=1e-6)
    np.testing.assert_allclose(report.gradient_norm, jnp.linalg.norm(gradient), rtol=1e-6)


def test_alternation_reaches_the_joint_minimum(problem, start):
    def one(state, index):
        state, report = problem.step(state, (index + 1) % 5 == 0, TARGET)
        return state, report.loss

    state, losses = jax.lax.scan(one, start, jnp.arange(2000))
    np.testing.assert_allclose(state.upper, TARGET, atol=1e-3)
    np.testing.assert_allclose(state.lower["w"], TARGET, atol=1e-3)
    assert losses[-1] < 1e-5


def test_each_mapped_problem_moves_its_own_level(problem, start):
    many = jax.tree.map(lambda x: jnp.stack([x, x]), start)
    step = jax.vmap(problem.step, (0, 0, None))
    after, _ = step(many, jnp.array([True, False]), TARGET)
    assert jnp.all(after.upper[0] != start.upper)
    chex.assert_trees_all_equal(after.upper[1], start.upper)
    chex.assert_trees_all_equal(after.lower["w"][0], start.lower["w"])


def test_the_loss_is_traced_once(start):
    traced = chex.assert_max_traces(saddle_free_loss, n=1)
    once = alternating(traced, optax.adam(0.05), optax.sgd(0.05))
    jax.jit(once.step)(start, jnp.bool_(True), TARGET)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_an_optimizer_state_is_carried_in_the_type_that_steps_give_it(dtype):
    """Half precision parameters under float32 rates: types stay, and the minimum is reached."""
    optimizer = optax.sgd(jnp.float32(0.05), momentum=jnp.float32(0.5))
    problem = alternating(saddle_free_loss, optimizer, optimizer, joint=True)
    start = problem.init({"w": jnp.array([3.0, -2.0], dtype)}, jnp.array([0.5, 0.1], dtype))
    step = lambda state, _: (problem.step(state, True, TARGET.astype(dtype))[0], None)  # noqa: E731
    state, _ = jax.lax.scan(step, start, length=200)
    assert state.upper.dtype == dtype
    np.testing.assert_allclose(state.upper.astype(float), TARGET, rtol=0.05)


def test_a_joint_step_moves_both_variables_along_their_gradients(start):
    joint = alternating(saddle_free_loss, optax.sgd(0.05), optax.sgd(0.05), joint=True)
    state = joint.init(start.lower, start.upper)
    after, report = joint.step(state, True, TARGET)
    lower = 2 * (start.lower["w"] - start.upper)
    upper = -lower + 2 * (start.upper - TARGET)
    np.testing.assert_allclose(after.lower["w"], start.lower["w"] - 0.05 * lower, rtol=1e-6)
    np.testing.assert_allclose(after.upper, start.upper - 0.05 * upper, rtol=1e-6)
    np.testing.assert_allclose(report.gradient_norm, jnp.linalg.norm(lower), rtol=1e-6)


def test_a_given_upper_gradient_is_the_one_that_is_followed(problem, start):
    given = jnp.array([4.0, -3.0])
    after, report = problem.step(start, True, TARGET, upper_gradient=given)
    np.testing.assert_allclose(after.upper, start.upper - 0.05 * given, rtol=1e-6)
    np.testing.assert_allclose(report.gradient_norm, 5.0, rtol=1e-6)
