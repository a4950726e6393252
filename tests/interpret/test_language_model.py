"""A decoder with a vocabulary of a language model: exact, in the memory of a few logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.interpret.curvature import operators
from jaxmethods.interpret.losses import cross_entropy
from jaxmethods.interpret.problem import Data, make_problem
from jaxmethods.models import decoder


def language_problem(vocabulary, tokens, batch):
    config = decoder.DecoderConfig(
        family="llama",
        vocab_size=vocabulary,
        width=8,
        mlp_width=8,
        layers=1,
        heads=2,
        kv_heads=1,
        head_dim=4,
        rotary_dim=4,
        max_positions=tokens,
        tied=True,
    )

    def apply(params, ids):
        return decoder.forward(params, config, ids).logits

    ids = np.random.default_rng(1).integers(0, vocabulary, (batch, tokens + 1)).astype(np.int32)
    params = jax.jit(lambda key: decoder.init_params(key, config))(jax.random.key(0))
    return make_problem(apply, cross_entropy, params, Data(ids[:, :-1], ids[:, 1:]))


@jax.jit
def product(problem, vector):
    return operators.ggn(problem)(vector)


@jax.jit
def reference(problem, vector):
    """J^T (d/dt grad l)(f + t J v), differentiated, with nothing in closed form."""

    def outputs(vector):
        return problem.outputs(vector, problem.data.inputs)

    def total(logits):
        return jnp.mean(cross_entropy.value(logits, problem.data.targets))

    logits, tangents = jax.jvp(outputs, (problem.floats,), (vector,))
    curved = jax.jvp(jax.grad(total), (logits,), (tangents,))[1]
    return jax.vjp(outputs, problem.floats)[1](curved)[0]


def close_to_reference(problem):
    vector = jax.tree.map(np.cos, problem.floats)
    own, expected = product(problem, vector), reference(problem, vector)
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(np.max(np.abs(b))))


@pytest.mark.slow
def test_a_vocabulary_of_32000_needs_at_most_four_arrays_of_logits():
    problem = language_problem(32_000, 128, 4)
    compiled = product.lower(problem, problem.floats).compile()
    analysis = compiled.memory_analysis()
    if analysis is None:
        pytest.skip("this backend doesn't say what memory a program takes")
    assert analysis.temp_size_in_bytes <= 4 * (4 * 128 * 32_000) * 4
    close_to_reference(problem)
