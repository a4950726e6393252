"""Accumulated errors: their definition, and divergences on given responses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxmethods.kid import exposure
from jaxmethods.language import divergences
from jaxmethods.models import decoder
from tests.kid import small
from tests.kid.small import MODEL, STUDENT, STUDENT_PARAMS, TEACHER_PARAMS, make_batch


def test_the_excess_of_accumulated_errors():
    on_student = jnp.asarray([[1.0, 3.0, 5.0], [1.0, 1.0, 3.0]])
    on_teacher = jnp.asarray([[1.0, 1.0, 1.0]])
    found = exposure.excess_accumulated_error(on_student, on_teacher)
    np.testing.assert_allclose(found, [0, 50, 100 * 4 / 3], rtol=1e-6)
    np.testing.assert_array_equal(exposure.excess_accumulated_error(on_student, 0 * on_teacher), 0)


def test_what_diverged_has_no_excess():
    broken, other = jnp.full((2, 3), jnp.nan), jnp.ones((2, 3))
    assert np.isnan(exposure.excess_accumulated_error(other, broken)).all()
    assert np.isnan(exposure.excess_deviation(other, broken))


def test_the_error_of_the_excess_is_that_of_leaving_prompts_out():
    """A jackknife of the ratio of means, which the formula is to first order."""
    rng = np.random.default_rng(0)
    on_student, on_teacher = rng.gamma(2.0, size=(2, 400, 3))
    found = exposure.excess_deviation(jnp.asarray(on_student), jnp.asarray(on_teacher))
    own, other = on_student.sum(1), on_teacher.sum(1)
    left_out = 100 * (own.sum() - own) / (other.sum() - other)
    np.testing.assert_allclose(found, left_out.std() * 399**0.5, rtol=0.01)
    assert exposure.excess_deviation(jnp.ones((1, 3)), jnp.ones((1, 3))) == 0


def test_divergences_are_those_of_whole_passes():
    batch = make_batch()
    found = exposure.token_divergences(
        STUDENT, STUDENT_PARAMS, MODEL, TEACHER_PARAMS, batch, logit_chunk=5
    )
    row, own, new = 0, small.PROMPTS[0], small.RESPONSES[0]
    ids = jnp.concatenate([batch.prompts[row, small.P - own :], batch.responses[row, :new]])[None]
    forward = jax.jit(decoder.forward, static_argnums=1)
    student, teacher = (
        forward(params, config, ids).logits[0, own - 1 : own - 1 + new, : small.V]
        for params, config in ((STUDENT_PARAMS, small.CONFIG), (TEACHER_PARAMS, small.TEACHER))
    )
    expected = divergences.forward_kl(student, teacher)
    np.testing.assert_allclose(found[row, :new], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found * (1 - batch.response_mask), 0)
