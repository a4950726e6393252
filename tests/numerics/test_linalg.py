"""Factorized in turn or all at once: the same numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.numerics.linalg import in_turn


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_in_turn_equals_all_at_once(leading):
    keys = jax.random.split(jax.random.key(0))
    left = jax.random.normal(keys[0], (*leading, 4, 4)) + 4 * jnp.eye(4)
    right = jax.random.normal(keys[1], (*leading, 4, 2))
    solved = jax.jit(lambda a, b: in_turn(jnp.linalg.solve, a, b))(left, right)
    np.testing.assert_allclose(solved, jnp.linalg.solve(left, right), rtol=1e-5, atol=1e-6)


def test_gradients_and_mapped_calls_are_those_of_the_function():
    left = jax.random.normal(jax.random.key(0), (3, 4, 4)) + 4 * jnp.eye(4)
    right = jnp.ones((3, 4, 2))

    def total(solve, left):
        return jnp.sum(solve(left, right) ** 2)

    ours = jax.grad(lambda a: total(lambda a, b: in_turn(jnp.linalg.solve, a, b), a))(left)
    np.testing.assert_allclose(
        ours, jax.grad(lambda a: total(jnp.linalg.solve, a))(left), rtol=1e-4
    )
    mapped = jax.vmap(lambda a, b: in_turn(jnp.linalg.inv, a[None])[0] @ b)(left, right)
    np.testing.assert_allclose(mapped, jnp.linalg.solve(left, right), rtol=1e-4, atol=1e-6)


def test_many_stacks_are_factorized_side_by_side_without_waiting_for_ever():
    stacks = jax.random.normal(jax.random.key(0), (16, 4, 32, 32)) + 8 * jnp.eye(32)

    @jax.jit
    def solve(stacks):
        return [in_turn(jnp.linalg.solve, stack, stack) for stack in stacks]

    for solved in solve(stacks):
        np.testing.assert_allclose(solved, np.broadcast_to(np.eye(32), (4, 32, 32)), atol=1e-4)
