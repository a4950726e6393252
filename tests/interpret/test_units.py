"""Nothing depends on the unit of the numbers, up to where float32 itself ends.

Squares of numbers below 1e-19 are 0 in float32, and those above 2e19 infinite: what is computed by
squares is computed in a unit in which they are about 1.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.interpret.curvature import hutchinson, operators
from jaxmethods.interpret.influence import influence_functions
from jaxmethods.interpret.losses import squared_error
from jaxmethods.interpret.privacy import dp_sgd
from jaxmethods.interpret.problem import make_problem

INPUTS = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32)


def _linear(params, inputs):
    return inputs @ params


def problem(unit):
    """A linear model at 0: its gradients are in the unit of its targets."""
    targets = unit * jnp.arange(1.0, 7.0)[:, None]
    return make_problem(_linear, squared_error, jnp.zeros((2, 1)), (INPUTS, targets))


@cache
def found(unit):
    own = problem(unit)
    matrix = unit * jnp.asarray([[2.0, 0.5], [0.5, 1.0]])
    trace = hutchinson.trace(operators.dense(matrix), jax.random.key(0), 8)
    return {
        "trace": trace.value / unit,
        "error of the trace": trace.error / unit,
        "influence": influence_functions.influence(problem(1.0), own, 0.1).values / unit,
        "clipped": jax.jit(dp_sgd.clipped_sum)(own, own.data, 1e-3 * unit) / unit,
    }


@pytest.mark.parametrize("unit", [1e-22, 1e22])
def test_estimates_and_gradients_are_those_of_another_unit(unit):
    for name, value in found(unit).items():
        np.testing.assert_allclose(value, found(1.0)[name], rtol=1e-4, err_msg=name)
    assert found(unit)["error of the trace"] > 0
