"""Divergences, their means and gradients against numpy in float64; tests/golden/README.md.

In 64 bits to 1e-9, in float32 to 2e-5.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.language import divergences as d
from tests.golden_files import golden_files, read

FILES = golden_files("kid", "divergences")
PER_TOKEN = {
    "fkl": d.forward_kl,
    "rkl": d.reverse_kl,
    "gjsd_beta0.1": functools.partial(d.jsd, beta=0.1),
    "gjsd_beta0.5": d.jsd,
    "gjsd_beta0.9": functools.partial(d.jsd, beta=0.9),
    "tvd": d.total_variation,
    "skew_fkl_0.1": d.skew_forward_kl,
    "skew_rkl_0.1": d.skew_reverse_kl,
    "akl_mu0.5": d.adaptive_kl,
    "osd_mix_0.9": d.osd_mix,
    "fkl_tau2": functools.partial(d.forward_kl, temperature=2.0),
    "rkl_tau2": functools.partial(d.reverse_kl, temperature=2.0),
    "student_entropy": lambda student, teacher: d.entropy(student),
    "akl_head_weight": lambda student, teacher: d.head_weight(
        jax.nn.log_softmax(teacher), jax.nn.log_softmax(student), 0.5
    ),
}
BITS = pytest.mark.parametrize(("dtype", "atol"), [("float64", 1e-9), ("float32", 2e-5)])


def check(function, arrays, expected, atol):
    with jax.enable_x64(True):
        found = jax.jit(function)(*arrays)
    jax.tree.map(
        lambda own, theirs: np.testing.assert_allclose(own, theirs, rtol=0, atol=atol),
        tuple(found),
        tuple(expected),
    )


def inputs(golden, dtype):
    logits = [golden[f"{name}_logits"].astype(dtype) for name in ("student", "teacher")]
    return [*logits, golden["targets"], golden["mask"]]


def with_gradient(per_token):
    """(values, mean, gradient of the mean)."""

    def mean(student, teacher, targets, mask):
        values = per_token(student, teacher, targets)
        return d.masked_mean(values, mask), values

    def call(*arrays):
        (value, values), gradient = jax.value_and_grad(mean, has_aux=True)(*arrays)
        return values, value, gradient

    return call


@BITS
@pytest.mark.parametrize("file", FILES)
def test_values_means_and_gradients(file, dtype, atol):
    golden = read(file)
    functions = {
        name: with_gradient(lambda s, t, _, function=function: function(s, t))
        for name, function in PER_TOKEN.items()
    }
    functions["ce"] = with_gradient(lambda s, _, targets: d.cross_entropy(s, targets))
    arrays = inputs(golden, dtype)
    with jax.enable_x64(True):
        found = jax.jit(lambda *a: {name: call(*a) for name, call in functions.items()})(*arrays)
    for name, (values, mean, gradient) in found.items():
        np.testing.assert_allclose(values, golden[f"{name}_per_token"], rtol=0, atol=atol)
        np.testing.assert_allclose(mean, golden[f"{name}_mean"], rtol=0, atol=atol)
        if f"{name}_grad_student_logits" in golden:
            theirs = golden[f"{name}_grad_student_logits"]
            np.testing.assert_allclose(gradient, theirs, rtol=0, atol=atol)


@BITS
@pytest.mark.parametrize("file", FILES)
def test_decoupled_parts(file, dtype, atol):
    golden = read(file)

    def call(student, teacher, targets, mask):
        parts = d.decouple(student, teacher, targets)
        values = d.decoupled(student, teacher, targets, 0.2, 1.0)
        easy = d.easy_tokens(parts.uncertainty, mask)
        median = d.lower_median(parts.uncertainty, mask.astype(bool))
        loss, gradient = jax.value_and_grad(d.atkd)(student, teacher, targets, mask, 0.2)
        return *parts[:2], d.masked_mean(values, mask), easy, median, loss, gradient

    names = ["tckd_per_token", "nckd_per_token", "dkd_alpha0.2_beta1.0", "atkd_easy_mask"]
    names += ["atkd_median_uncertainty", "atkd_alpha0.2", "atkd_alpha0.2_grad_student_logits"]
    check(call, inputs(golden, dtype), [golden[name] for name in names], atol)


@BITS
@pytest.mark.parametrize("file", FILES)
def test_chunks_give_the_same(file, dtype, atol):
    golden = read(file)
    student, teacher, _, mask = inputs(golden, dtype)
    flat = [x.reshape(-1, *x.shape[2:]) for x in (student, teacher)]

    def call(student, teacher):
        def loss(student):
            values = d.over_chunks(lambda x: d.reverse_kl(*x), (student, teacher), 4)
            return d.masked_mean(values, jnp.ravel(mask))

        return jax.value_and_grad(loss)(student)

    theirs = golden["rkl_grad_student_logits"].reshape(flat[0].shape)
    check(call, flat, [golden["rkl_mean"], theirs], atol)
