"""Published implementations' numbers, in float64 on their side.

Sizes are read from the arrays and files are found by the beginning of their names, so that other
sets of the same kind can be checked with JAXMETHODS_GOLDEN. What the arrays mean:
tests/golden/README.md.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import merging
from jaxmethods.merging import competition, sign_election
from tests.golden_files import golden_files, read

VALUE, GRADIENT = 2e-6, 1e-5
"""Largest error allowed, of the largest magnitude."""


def assert_relative(actual, expected, tolerance=VALUE, name=""):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale, err_msg=name)


def group(golden, prefix):
    """{"prefix/x": array} -> {"x": array}."""
    found = {k.removeprefix(f"{prefix}/"): v for k, v in golden.items() if k.startswith(prefix + "/")}
    assert found, prefix
    return found


def assert_tree(actual, golden, prefix, tolerance=VALUE):
    expected = group(golden, prefix)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_relative(actual[name], value, tolerance, f"{prefix}/{name}")


def number(text):
    """"0p3" -> 0.3"""
    return float(text.replace("p", "."))


def flat(tree):
    """[T, d] or [d]: all leaves, in the order of their names."""
    leaves = [np.asarray(tree[name]) for name in sorted(tree)]
    return leaves


class Static:
    def __init__(self, file):
        self.golden = read(file)
        self.base, self.stack = group(self.golden, "base"), group(self.golden, "finetuned")
        self.tau = merging.task_vectors(self.base, self.stack)

    def named(self, pattern):
        """Distinct groups whose names match, with what the pattern caught."""
        found = {}
        for name in self.golden:
            match = re.match(pattern + "/", name)
            if match:
                found[name[: match.end() - 1]] = match.groups()
        assert found, pattern
        return found.items()

    def joined(self, tree):
        return np.concatenate(
            [np.asarray(tree[k]).reshape(len(self.stack[k]), -1) for k in sorted(tree)], axis=1
        )

    def joined_one(self, tree):
        return np.concatenate([np.asarray(tree[k]).ravel() for k in sorted(tree)])


@pytest.fixture(scope="module", params=golden_files("merging", "static_merging"))
def static(request):
    return Static(request.param)


def test_average_and_task_arithmetic(static):
    assert_tree(jax.jit(merging.average)(static.stack), static.golden, "average")
    for name, (coefficient,) in static.named(r"task_arithmetic_(\d+p\d+)"):
        merged = merging.task_arithmetic(static.base, static.stack, number(coefficient))
        assert_tree(merged, static.golden, name)


def test_ties(static):
    golden, tau = static.golden, static.tau
    assert_relative(static.joined(tau), golden["ties/flat_task_vectors"])
    trimmed = sign_election.trim_mask(tau, 0.2)
    np.testing.assert_array_equal(static.joined(trimmed), golden["ties/trim_mask"])
    signs = sign_election.elected_signs(tau, trimmed)
    np.testing.assert_array_equal(static.joined_one(signs), golden["ties/elected_sign"])
    split = sign_election.ties_split(tau, 20)
    assert_relative(static.joined(split), golden["ties/split_task_vectors"])
    for merge in ("sum", "mean", "max"):
        weights = sign_election.agreement_weights(tau, 0.2, merge)
        vector = {k: jnp.sum(weights[k] * tau[k], axis=0) for k in tau}
        assert_relative(static.joined_one(vector), golden[f"ties/merged_tv_{merge}"])
    for name, (merge, coefficient) in static.named(r"ties_([a-z]+)_lambda(\d+p\d+)"):
        merged = merging.ties(
            static.base, static.stack, density=0.2, coefficients=number(coefficient), merge=merge
        )
        assert_tree(merged, golden, name)


def test_dare(static):
    mask = group(static.golden, "dare/keep_mask")
    for name, (p,) in static.named(r"dare/rescaled_tv_p(\d+p\d+)"):
        assert_tree(merging.dare_with_mask(static.tau, mask, number(p)), static.golden, name)
    for name, (p, coefficient) in static.named(r"dare_ta_p(\d+p\d+)_lambda(\d+p\d+)"):
        sparse = merging.dare_with_mask(static.tau, mask, number(p))
        merged = merging.apply_task_vectors(static.base, sparse, number(coefficient))
        assert_tree(merged, static.golden, name)


def test_pcb(static):
    tau = {"all": static.golden["pcb/flat_task_vectors"]}
    balanced = competition.balance(tau, 0.1)
    assert_relative(balanced.clipped["all"], static.golden["pcb/clamped"])
    assert_relative(balanced.scale["all"], static.golden["pcb/scale"])
    base = {"all": jnp.zeros(tau["all"].shape[1])}
    merged = merging.pcb(base, tau, 0.1, 1.0)["all"]
    assert_relative(merged, static.golden["pcb/merged_tv_ratio0p1"])


def test_fisher(static):
    information = group(static.golden, "fisher/weights")
    merge = jax.jit(merging.fisher_merge, static_argnames="normalize")
    for normalize, name in [(True, "fisher_merged_norm"), (False, "fisher_merged_nonorm")]:
        assert_tree(merge(static.stack, information, normalize=normalize), static.golden, name)


def test_regmean(static):
    golden = static.golden
    inputs = group(golden, "regmean/inputs")
    grams = {f"{name}.weight": merging.gram(x) for name, x in inputs.items()}
    for name in inputs:
        assert_relative(grams[f"{name}.weight"], golden[f"regmean/gram/{name}"])
    for name, (alpha,) in static.named(r"regmean_ratio(\d+p\d+)"):
        assert_tree(merging.regmean(static.stack, grams, alpha=number(alpha)), golden, name)


def test_concrete_mask_and_slerp(static):
    golden = static.golden
    u, logits = golden["concrete/u"], golden["concrete/logits"]
    mask = merging.concrete_mask(u, logits, rescale=False)
    assert_relative(mask, golden["concrete/mask_tau0p5"])
    assert_relative(merging.concrete_mask(u, logits), golden["concrete/rescaled"])
    for name in [name for name in golden if name.startswith("slerp/t")]:
        one, other = static.base["a.weight"], static.stack["a.weight"][0]
        merged = merging.slerp(one, other, number(name.removeprefix("slerp/t")))
        assert_relative(merged, golden[name])
