"""What holds for every static merge, whatever the numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmethods import merging
from jaxmethods.merging.static import pcb, ties
from jaxmethods.numerics import order_statistics
from jaxmethods.numerics.order_statistics import kth_smallest
from tests.programs import quick


def trees(seed=0, tasks=3, scale=0.1):
    """A base and experts with a matrix, a vector, stacked layers and an integer leaf."""
    rng = np.random.default_rng(seed)
    base = {
        "embed": rng.normal(size=(7, 5)),
        "layers": {"bias": rng.normal(size=(2, 6)), "weight": rng.normal(size=(2, 6, 5))},
    }
    base = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), base)
    stack = jax.tree.map(
        lambda x: x + jnp.asarray(scale * rng.normal(size=(tasks, *x.shape)), jnp.float32), base
    )
    base["ids"], stack["ids"] = jnp.arange(4), jnp.tile(jnp.arange(4), (tasks, 1))
    return base, stack


def expert(stack, index):
    return jax.tree.map(lambda leaf: leaf[index], stack)


def permuted(stack, order):
    return jax.tree.map(lambda leaf: leaf[jnp.asarray(order)], stack)


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def assert_close(one, other, tolerance=2e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance, rtol=1e-6), one, other
    )


def ones_like_fisher(stack):
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape), stack)


OF_COEFFICIENT = {
    "task_arithmetic": merging.task_arithmetic,
    "ties": lambda base, stack, c: merging.ties(base, stack, density=0.4, coefficients=c),
    "ties per leaf": lambda base, stack, c: merging.ties(
        base, stack, density=0.4, coefficients=c, merge="max", scope="leaf"
    ),
    "ties, mergekit": lambda base, stack, c: merging.ties(
        base, stack, density=0.4, coefficients=c, flavor="mergekit"
    ),
    "dare": lambda base, stack, c: merging.apply_task_vectors(
        base, merging.dare(jax.random.key(0), merging.task_vectors(base, stack), 0.5), c
    ),
    "dare, ties": lambda base, stack, c: merging.dare_ties(
        jax.random.key(0), base, stack, 0.5, density=0.4, coefficients=c
    ),
    "breadcrumbs": lambda base, stack, c: merging.apply_task_vectors(
        base, merging.breadcrumbs(merging.task_vectors(base, stack), 0.6, 0.1), c
    ),
    "della": lambda base, stack, c: merging.apply_task_vectors(
        base, merging.della(jax.random.key(0), merging.task_vectors(base, stack)), c
    ),
    "pcb": lambda base, stack, c: merging.pcb(base, stack, 0.3, jnp.mean(c)),
    "tsv": lambda base, stack, c: merging.tsv_merge(base, stack, jnp.mean(c)),
    "iso-c": lambda base, stack, c: merging.iso_c(base, stack, jnp.mean(c)),
    "average": lambda base, stack, c: merging.average(stack, c, normalize=True),
    "fisher": lambda base, stack, c: merging.fisher_merge(
        stack, ones_like_fisher(stack), coefficients=c
    ),
    "slerp": lambda base, stack, c: merging.slerp(base, expert(stack, 0), jnp.mean(c)),
}
RANDOM = {"dare", "dare, ties", "della"}
WITHOUT_BASE = {"average", "fisher"}
"""Coefficients of zero give no base model there."""


@pytest.mark.parametrize("name", quick(OF_COEFFICIENT, "ties", "average", "slerp"))
def test_every_merge_maps_and_differentiates_over_its_coefficients(name):
    base, stack = trees()
    merge = OF_COEFFICIENT[name]
    coefficients = jnp.asarray([[0.1, 0.2, 0.3], [0.5, 0.4, 0.3]])

    @jax.jit
    def all_at_once(coefficients):
        def total(c):
            merged = merge(base, stack, c)
            return jnp.sum(jnp.square(merged["embed"])), merged

        return jax.vmap(jax.value_and_grad(total, has_aux=True))(coefficients)

    (_, merged), gradients = all_at_once(coefficients)
    assert np.isfinite(gradients).all()
    for index, c in enumerate(coefficients):
        one = merge(base, stack, c)
        assert_close(expert(merged, index), one)
        np.testing.assert_array_equal(one["ids"], base["ids"])


@pytest.mark.parametrize("name", sorted(OF_COEFFICIENT.keys() - WITHOUT_BASE))
def test_zero_coefficients_give_the_base_exactly(name):
    base, stack = trees()
    assert_equal(OF_COEFFICIENT[name](base, stack, jnp.zeros(3)), base)


@pytest.mark.parametrize("name", sorted(OF_COEFFICIENT.keys() - RANDOM - {"slerp"}))
def test_the_order_of_experts_does_not_matter(name):
    base, stack = trees()
    coefficients = jnp.asarray([0.1, 0.2, 0.3])
    order = [2, 0, 1]
    one = OF_COEFFICIENT[name](base, stack, coefficients)
    other = OF_COEFFICIENT[name](base, permuted(stack, order), coefficients[jnp.asarray(order)])
    assert_close(one, other)


SINGLE = {
    "average": lambda base, stack: merging.average(stack),
    "task_arithmetic": lambda base, stack: merging.task_arithmetic(base, stack, 1.0),
    "ties": lambda base, stack: merging.ties(base, stack, density=1, coefficients=1.0),
    "ties, mean": lambda base, stack: merging.ties(
        base, stack, density=1, coefficients=1.0, merge="mean"
    ),
    "ties, mergekit": lambda base, stack: merging.ties(
        base, stack, density=1, coefficients=1.0, flavor="mergekit"
    ),
    "dare, ties": lambda base, stack: merging.dare_ties(
        jax.random.key(1), base, stack, 0.0, density=1, coefficients=1.0
    ),
    "fisher": lambda base, stack: merging.fisher_merge(stack, ones_like_fisher(stack)),
    "model stock": merging.model_stock,
    "slerp": lambda base, stack: merging.slerp(base, expert(stack, 0), 1.0),
}


@pytest.mark.parametrize("name", SINGLE)
def test_one_expert_alone_is_returned_exactly(name):
    base, stack = trees(tasks=1, scale=100.0)  # differences of such weights are rounded
    assert_equal(SINGLE[name](base, stack), expert(stack, 0))


def test_what_has_the_weight_zero_has_no_part_whatever_it_holds():
    """An expert that diverged, a mask of -inf, and the sign of a zero; derivatives stay."""
    base = {"w": jnp.array([-0.0, 1.0, -jnp.inf])}
    stack = {"w": jnp.array([[-0.0, 2.0, -jnp.inf], [3.0, jnp.nan, jnp.inf]])}

    def bits(tree):
        return np.asarray(tree["w"]).tobytes()

    one, nothing = jnp.array([1.0, 0.0]), jnp.zeros(2)
    expert = {"w": stack["w"][0]}
    assert bits(merging.task_arithmetic(base, stack, nothing)) == bits(base)
    assert bits(merging.ties(base, stack, coefficients=0.0)) == bits(base)
    assert bits(merging.task_arithmetic(base, stack, one)) == bits(expert)
    assert bits(merging.average(stack, one)) == bits(expert)

    def second(coefficient):
        return merging.task_arithmetic(
            {"w": jnp.ones(())}, {"w": jnp.array([2.0, 5.0])}, coefficient
        )["w"]

    np.testing.assert_array_equal(jax.grad(second)(nothing), [1.0, 4.0])


def test_a_one_hot_coefficient_picks_that_expert_exactly():
    base, stack = trees(scale=100.0)
    for task in range(3):
        merged = jax.jit(merging.task_arithmetic)(base, stack, jax.nn.one_hot(task, 3))
        assert_equal(merged, expert(stack, task))


def test_the_average_is_task_arithmetic_with_one_over_t():
    base, stack = trees()
    assert_close(merging.average(stack), merging.task_arithmetic(base, stack, 1 / 3))


def test_identical_experts_survive_ties():
    base, stack = trees(tasks=1)
    same = jax.tree.map(lambda leaf: jnp.repeat(leaf, 4, axis=0), stack)
    merged = merging.ties(base, same, density=1, coefficients=1.0, merge="mean")
    assert_close(merged, expert(stack, 0))


@given(st.floats(0.0, 1.0), st.integers(0, 1000))
@settings(max_examples=15)
def test_trimming_keeps_the_promised_number(density, seed):
    values = np.random.default_rng(seed).permutation(np.arange(1.0, 41.0)).astype(np.float32)
    tau = {"a": jnp.asarray(values[None, :30]), "b": -jnp.asarray(values[None, 30:])}
    split = merging.ties_split(tau, density)
    kept = np.concatenate([np.abs(tau[k])[np.asarray(split[k] != 0)] for k in tau])
    expected = 0 if density == 0 else min(int(density * 40) + 1, 40)
    assert sorted(kept) == list(range(41 - expected, 41))


def test_ties_in_magnitude_are_all_kept_by_the_paper_and_counted_by_mergekit():
    vectors = jnp.asarray([[1.0, -2.0, 2.0, 2.0, 0.5]])
    np.testing.assert_array_equal(merging.ties_split(vectors, 0.4), [[0, -2, 2, 2, 0]])
    np.testing.assert_array_equal(ties.largest(vectors, 2)[0], [False, True, True, False, False])


def test_entries_without_a_majority_follow_the_sign_of_the_whole():
    tau = jnp.asarray([[1.0, 3.0, 2.0], [-1.0, 3.0, 2.0]])

    def signs(tau):
        leaf = ties.Experts(jnp.zeros(tau.shape[1:]), tau)
        election = ties.elections([leaf], 1.0, "global")[0]
        return ties.elected_sign(leaf, election)

    np.testing.assert_array_equal(signs(tau), [1, 1, 1])
    np.testing.assert_array_equal(signs(tau[:, :1]), [0])


@given(st.integers(1, 60), st.integers(0, 10_000))
@settings(max_examples=15)
def test_order_statistics_equal_a_sort(k, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(2, 60)).astype(np.float32)
    values[:, rng.integers(0, 60, 20)] = rng.choice([0.0, -0.0, 1.0, -1e30, 1e-40], 20)
    found = kth_smallest([jnp.asarray(values[:, :7]), jnp.asarray(values[:, 7:])], k)
    np.testing.assert_array_equal(found, np.sort(values, axis=1)[:, k - 1])


@pytest.mark.parametrize("kind", ["heavy tails", "mostly equal", "unlike its sample"])
def test_order_statistics_of_many_numbers_equal_a_sort(kind):
    """Beyond `SAMPLE` numbers the search starts from a sample, which may be wrong."""
    size = 3 * order_statistics.SAMPLE
    values = np.random.default_rng(0).normal(size=(2, size)).astype(np.float32)
    if kind == "heavy tails":
        values = np.sign(values) * np.exp(10 * np.abs(values))
    elif kind == "mostly equal":
        values[:, : size // 2] = 1.5
    else:  # every third is taken
        values[:, ::3] += 100
    for k in (1, size // 5, size // 2, size):
        found = kth_smallest([jnp.asarray(values)], k)
        np.testing.assert_array_equal(found, np.sort(values, axis=1)[:, k - 1], err_msg=str(k))


def test_global_ties_does_not_depend_on_how_leaves_are_cut():
    rng = np.random.default_rng(0)
    whole = rng.normal(size=(3, 400)).astype(np.float32)
    cut = [jnp.asarray(part) for part in np.split(whole, [10, 11, 300], axis=1)]
    one = ties.ties_split([jnp.asarray(whole)], 0.2)
    other = ties.ties_split(cut, 0.2)
    np.testing.assert_array_equal(one[0], np.concatenate(other, axis=1))


@given(st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.999, 1.0]), st.integers(0, 100))
@settings(max_examples=10)
def test_pruning_keeps_what_lies_above_the_quantile(ratio, seed):
    values = np.random.default_rng(seed).normal(size=(2, 13, 7))
    pruned = merging.magnitude_prune(jnp.asarray(values, jnp.float32), ratio)
    for one, other in zip(values.astype(np.float32), pruned, strict=True):
        limit = np.quantile(np.abs(one.astype(np.float64)), ratio)
        np.testing.assert_array_equal(other, np.where(np.abs(one) > limit, one, 0))


def test_dare_is_unbiased_and_reproducible():
    tau = {"w": jnp.asarray([[1.0, -2.0, 0.5]])}
    many = jax.vmap(lambda key: merging.dare(key, tau, 0.7)["w"])(
        jax.random.split(jax.random.key(0), 2000)
    )
    np.testing.assert_allclose(many.mean(0), tau["w"], rtol=0.15)
    again = merging.dare(jax.random.key(3), tau, 0.7)
    assert_equal(again, merging.dare(jax.random.key(3), tau, 0.7))
    assert_equal(merging.dare(jax.random.key(3), tau, 0.0), tau)


def test_della_keeps_the_norm_and_prefers_large_entries():
    tau = {"w": jnp.linspace(0.1, 2, 20)[None]}
    many = jax.vmap(lambda key: merging.della(key, tau, 0.5, 0.4)["w"][0])(
        jax.random.split(jax.random.key(0), 500)
    )
    np.testing.assert_allclose(np.abs(many).sum(1), tau["w"].sum(), rtol=1e-5)
    kept = (many != 0).mean(0)
    np.testing.assert_allclose(kept, np.linspace(0.1, 0.9, 20), atol=0.1)


def test_breadcrumbs_cut_both_ends():
    tau = jnp.asarray([[5.0, -4.0, 3.0, -2.0, 1.0]])
    np.testing.assert_array_equal(merging.breadcrumbs(tau, 0.4, 0.2)[0], [0, -4, 3, 0, 0])
    np.testing.assert_array_equal(merging.breadcrumbs(tau, 0.8, 0.9)[0], [0, -4, 3, -2, 1])
    np.testing.assert_array_equal(merging.breadcrumbs(tau, 0.4, 0.0)[0], [5, -4, 0, 0, 0])


def test_equal_importance_averages():
    _base, stack = trees()
    assert_close(merging.fisher_merge(stack, ones_like_fisher(stack)), merging.average(stack))
    rng = np.random.default_rng(0)
    root = rng.normal(size=(2, 9, 5))
    gram = jnp.asarray(root.swapaxes(-1, -2) @ root, jnp.float32)
    grams = {"layers/weight": jnp.stack([gram] * 3)}
    assert_close(merging.regmean(stack, grams), merging.average(stack), 1e-4)


def test_regmean_is_optimal_on_the_inputs_in_either_layout():
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(3, 40, 5)), jnp.float32)
    stack = {"w": jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32)}
    grams = {"w": merging.gram(inputs)}
    merged = merging.regmean(stack, grams)["w"]
    transposed = merging.regmean({"w": stack["w"].mT}, grams, layout="in_out")["w"]
    np.testing.assert_allclose(merged, transposed.T, atol=1e-5)

    def loss(weight):
        return jnp.mean(jnp.square(inputs @ weight.T - inputs @ stack["w"].mT))

    assert jnp.abs(jax.grad(loss)(merged)).max() < 1e-4


@pytest.mark.parametrize("layout", ["out_in", "in_out"])
def test_regmean_leaves_what_inputs_leave_open_to_the_average(layout):
    """A feature that is 0 everywhere, and one that is twice another."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 50, 5)).astype(np.float32)
    x[..., 2] = 0
    x[..., 4] = 2 * x[..., 3]
    w = rng.normal(size=(2, 3, 5)).astype(np.float32)
    grams = {"w": merging.gram(jnp.asarray(x))}
    given = jnp.asarray(w if layout == "out_in" else w.swapaxes(1, 2))
    found = merging.regmean({"w": given}, grams, layout=layout)["w"]
    found = found if layout == "out_in" else found.T
    np.testing.assert_allclose(found[:, 2], w.mean(0)[:, 2], rtol=1e-6)
    rows = [x_t.astype(np.float64) for x_t in x]
    targets = np.concatenate([r @ w_t.T for r, w_t in zip(rows, w, strict=True)])
    stacked = np.concatenate(rows)
    best = np.linalg.lstsq(stacked, targets, rcond=1e-6)[0]
    np.testing.assert_allclose(stacked @ found.T, stacked @ best, atol=1e-4)


def test_regmean_of_fewer_rows_than_features_keeps_equal_experts():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 8)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(1, 4, 8)), jnp.float32)
    found = merging.regmean({"w": jnp.concatenate([w, w])}, {"w": merging.gram(x)})["w"]
    np.testing.assert_allclose(found, w[0], atol=1e-5)


def test_regmean_takes_features_of_any_size_seriously():
    """Small features aren't dependent ones."""
    rng = np.random.default_rng(0)
    scale = np.asarray([1e3, 1.0, 1e-3])
    w = rng.normal(size=(2, 2, 3))
    x = rng.normal(size=(2, 60, 3))
    plain = merging.regmean({"w": jnp.asarray(w, jnp.float32)}, {"w": merging.gram(jnp.asarray(x))})
    other = merging.regmean(
        {"w": jnp.asarray(w / scale, jnp.float32)}, {"w": merging.gram(jnp.asarray(x * scale))}
    )
    np.testing.assert_allclose(other["w"] * scale, plain["w"], rtol=1e-3)


def test_fisher_without_a_floor_averages_entries_without_information():
    stack = {"w": jnp.asarray([[1.0, 2.0], [3.0, 4.0]])}
    fisher = {"w": jnp.asarray([[0.0, 1.0], [0.0, 0.0]])}
    found = merging.fisher_merge(stack, fisher, normalize=False, floor=0.0)["w"]
    np.testing.assert_array_equal(found, [2.0, 2.0])


def test_model_stock_stays_between_base_and_experts():
    """Its pole is where task vectors cancel, and a negative t would move away from all of them."""
    base = {"w": jnp.asarray([1.0, 1.0])}
    opposite = {"w": jnp.asarray([[3.0, 1.0], [0.0, 1.0]])}
    np.testing.assert_array_equal(merging.model_stock(base, opposite)["w"], base["w"])
    along = {"w": jnp.asarray([[2.0, 2.0], [2.0, 1.0]])}
    c = 1 / np.sqrt(2)
    right = 1 + 2 * c / (1 + c) * (np.mean(along["w"], 0) - 1)
    np.testing.assert_allclose(merging.model_stock(base, along)["w"], right, rtol=1e-6)


def test_pcb_of_a_hundred_experts_is_finite():
    """exp(100) is no float32."""
    rng = np.random.default_rng(0)
    base = {"w": jnp.zeros(50)}
    stack = {"w": jnp.asarray(rng.normal(size=(100, 50)), jnp.float32)}
    merged = merging.pcb(base, stack)["w"]
    assert np.isfinite(merged).all()
    assert jnp.abs(merged).max() > 0.1


def test_shares_are_those_that_were_written():
    """0.29 of 100 is 28.999... in binary floating point, 1 - 0.9 is less than 0.1."""
    values = jnp.asarray(np.random.default_rng(0).permutation(np.arange(1.0, 101.0)), jnp.float32)
    tau = {"w": values[None]}
    assert jnp.sum(merging.ties_split(tau, 0.29)["w"] != 0) == 30
    assert jnp.sum(merging.ties_split(tau, 29)["w"] != 0) == 30
    assert jnp.sum(merging.breadcrumbs(tau, 0.29, 0.0)["w"] != 0) == 29
    kept = merging.breadcrumbs(tau, 0.5, 0.29)["w"]
    np.testing.assert_array_equal(np.sort(kept[kept > 0]), np.arange(22, 72))
    more = {"w": jnp.append(values, 101.0)[None]}
    assert jnp.sum(merging.magnitude_prune(more, 0.29)["w"] != 0) == 101 - 30
    assert pcb.order_ranks(100, 0.9).competitiveness == 11


def test_the_exact_fisher_is_the_variance_of_the_score():
    params = {"w": jnp.asarray([[0.3, -0.2], [0.1, 0.4], [-0.5, 0.2]])}
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)
    found = merging.fisher_diagonal(lambda p, x: x @ p["w"].T, params, inputs, chunk=2)["w"]
    p = jax.nn.softmax(inputs @ params["w"].T)
    expected = jnp.mean((p * (1 - p))[:, :, None] * jnp.square(inputs)[:, None], axis=0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    one = merging.fisher_diagonal(lambda p, x: x @ p["w"].T, params, inputs, chunk=1, kind="batch")
    assert one["w"].shape == found.shape


def test_slerp_of_a_zero_leaf_and_of_parallel_leaves_is_linear():
    one, zero = jnp.asarray([1.0, 2.0]), jnp.zeros(2)
    np.testing.assert_allclose(merging.slerp(one, zero, 0.25), 0.75 * one)
    np.testing.assert_allclose(merging.slerp(one, 3 * one, 0.5), 2 * one, rtol=1e-6)


def test_low_precision_experts_are_merged_in_float32():
    _base, stack = trees(tasks=8)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, stack)
    merged = merging.average(low)["embed"]
    exact = jnp.mean(low["embed"].astype(jnp.float32), axis=0)
    assert merged.dtype == jnp.bfloat16
    np.testing.assert_array_equal(merged, exact.astype(jnp.bfloat16))


def test_names_choose_coefficients_and_exclude_leaves():
    base, stack = trees()
    by_name = merging.coefficients_by_name(base, [("embed", 0.0), ("weight", [1.0, 0.0, 0.0])], 0.5)
    merged = merging.task_arithmetic(base, stack, by_name)
    np.testing.assert_array_equal(merged["embed"], base["embed"])
    np.testing.assert_array_equal(merged["layers"]["weight"], stack["layers"]["weight"][0])
    layered = {**by_name, "layers": {"bias": 0.0, "weight": jnp.eye(3)[:, :2]}}
    merged = merging.task_arithmetic(base, stack, layered)
    for layer in range(2):
        np.testing.assert_array_equal(
            merged["layers"]["weight"][layer], stack["layers"]["weight"][layer, layer]
        )


def test_what_does_not_fit_is_named():
    base, stack = trees()
    one = expert(stack, 0)
    with pytest.raises(ValueError, match="expert 1: has no leaf 'layers/bias'"):
        merging.stack_trees([one, {**one, "layers": {"weight": one["layers"]["weight"]}}])
    with pytest.raises(ValueError, match="has no leaf 'extra'"):
        merging.task_arithmetic(base, {**stack, "extra": jnp.zeros((3, 1))})
    with pytest.raises(ValueError, match="leaf 'embed': base has shape"):
        merging.ties(base, {**stack, "embed": jnp.zeros((3, 7, 6))})
    with pytest.raises(ValueError, match="leaf 'ids': expected the leading task axis"):
        merging.average({**stack, "ids": jnp.arange(4)})
    broken = {**stack, "embed": stack["embed"].at[1, 2, 3].set(jnp.nan)}
    with pytest.raises(ValueError, match="mnist: leaf 'embed' holds 1 of 35 not finite"):
        merging.check_finite(broken, ["svhn", "mnist", "dtd"])
    merging.check_finite(stack)
    with pytest.raises(ValueError, match=r"coefficients \[\] or leading axes"):
        merging.task_arithmetic(base, stack, jnp.ones(4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda base, stack: merging.ties(base, stack, density=-0.1), "density"),
        (lambda base, stack: merging.ties(base, stack, merge="median"), "merge"),
        (lambda base, stack: merging.ties(base, stack, scope="layer"), "scope"),
        (lambda base, stack: merging.dare(jax.random.key(0), stack, 1.0), "p: 1"),
        (lambda base, stack: merging.dare(jax.random.key(0), stack, 1.5), "p: expected"),
        (lambda base, stack: merging.magnitude_prune(stack, 2.0), "ratio"),
        (lambda base, stack: merging.pcb(base, stack, 0.0), "ratio"),
        (lambda base, stack: merging.della(jax.random.key(0), stack, 0.1, 0.4), "epsilon"),
        (lambda base, stack: merging.regmean(stack, {"head": jnp.eye(2)}), "no leaf 'head'"),
        (lambda base, stack: merging.regmean(stack, {"embed": jnp.eye(2)}), "grams 'embed'"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*trees())
