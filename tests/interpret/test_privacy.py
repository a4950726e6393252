"""Influence, memorization, membership, private training, fairness, honesty."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.interpret import trees
from jaxmethods.interpret.generalization import norms
from jaxmethods.interpret.generalization.leave_one_out import ridge_leave_one_out
from jaxmethods.interpret.gradients import per_example
from jaxmethods.interpret.honesty import best_of_n, calibration, fairness, good_turing
from jaxmethods.interpret.influence import influence_functions, memorization, tracin, trak
from jaxmethods.interpret.kernels import kernel_statistics
from jaxmethods.interpret.losses import cross_entropy, squared_error
from jaxmethods.interpret.privacy import audit, dp_sgd, lira, membership, rdp_accounting
from jaxmethods.interpret.problem import Data, make_problem
from tests.interpret.networks import classification, relu_mlp
from tests.interpret.training import clusters, mlp_learner


def linear(params, x):
    return x @ params


@jax.jit
def _ridge(w, x, y):
    problem = make_problem(linear, squared_error, w, (x, y))
    # |Xw - y|^2 + lam |w|^2 is 2 N times the mean of halves with weight decay lam / N.
    weights = -jnp.eye(len(x))
    change = lambda own: influence_functions.parameter_change(  # noqa: E731
        problem, own, 0.3 / len(x), 50, 1e-7
    )
    return jax.vmap(change)(weights)


def test_influence_on_ridge_weights_is_the_first_order_of_the_exact_change():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(10, 3)).astype(np.float32), rng.normal(size=10).astype(np.float32)
    exact = ridge_leave_one_out(x, y, 0.3)
    found = _ridge(exact.weights[:, None], x, y[:, None])[..., 0]
    np.testing.assert_allclose(found, exact.influence, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        found / (1 - exact.leverages)[:, None], exact.change, rtol=1e-3, atol=1e-5
    )


@cache
def problem():
    return classification(0, 12)


@jax.jit
def _tracin(problem):
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), problem.floats)
    scores = tracin.tracin(problem, problem, stack, jnp.array([0.1, 0.2]))
    grads = [
        trees.ravel(per_example.per_example_gradients(problem.at(v)), 1)
        for v in (problem.floats, trees.scale(2, problem.floats))
    ]
    return scores, 0.1 * grads[0] @ grads[0].T + 0.2 * grads[1] @ grads[1].T


def test_tracin_is_a_sum_of_inner_products_of_gradients():
    np.testing.assert_allclose(*_tracin(problem()), rtol=1e-4, atol=1e-5)
    own, rates = problem(), np.ones(1)
    with jax.enable_x64(True):  # rates are float64
        kept = jax.tree.map(lambda leaf: leaf[None], own.floats)
        assert tracin.tracin(own, own, kept, rates).dtype == jnp.float32


def test_label_margins_are_log_odds():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
    labels = np.array([0, 1, 2, 0, 1])
    p = jax.nn.softmax(logits)[np.arange(5), labels]
    np.testing.assert_allclose(trak.label_margin(logits, labels), np.log(p / (1 - p)), rtol=1e-4)


def test_padding_is_no_training_example_of_trak():
    own, key = classification(0, 6), jax.random.key(0)
    more = Data(
        jnp.concatenate([own.data.inputs, 9 + own.data.inputs[:2]]),
        jnp.append(own.data.targets, jnp.array([0, -1])),
        jnp.array([1.0] * 6 + [0.0, 1.0]),
    )
    alone, padded = (trak.project(one, key, 4, 4) for one in (own, replace(own, data=more)))
    found = trak.scores(padded, alone)
    np.testing.assert_allclose(found[:6], trak.scores(alone, alone), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found[6:], 0)


def test_spearman_of_ranks_with_ties():
    a, b = jnp.array([1.0, 2, 2, 4]), jnp.array([10.0, 20, 20, 90])
    np.testing.assert_allclose(trak.spearman(a, b), 1, rtol=1e-6)
    np.testing.assert_allclose(trak.spearman(a, -b), -1, rtol=1e-6)


def test_complementary_halves_share_no_example_and_train_as_weights_do():
    places = memorization.complementary_halves(jax.random.key(0), 6, 8)
    subsets = memorization.members_of(places, 8)
    assert subsets.shape == (6, 8)
    assert np.all(np.sum(subsets, axis=0) == 3)
    assert np.all(np.sum(subsets, axis=1) == 4)
    assert np.all(subsets[0] != subsets[1])
    assert len(memorization.complementary_halves(jax.random.key(0), 3, 7)) == 3
    x = jnp.arange(8.0)
    weighed = memorization.train_on_subsets(lambda key, w: w @ x, jax.random.key(1), subsets)
    own = memorization.train_on_places(lambda key, at: jnp.sum(x[at]), jax.random.key(1), places)
    np.testing.assert_allclose(own, weighed)


def test_memorization_of_planted_learners():
    subsets = memorization.half_subsets(jax.random.key(0), 10, 7)
    np.testing.assert_array_equal(np.sum(subsets, axis=0), 5)
    found = memorization.memorization(subsets, subsets)
    np.testing.assert_allclose(found.value, 1)
    np.testing.assert_allclose(memorization.memorization(subsets | True, subsets).value, 0)
    assert np.all(np.isnan(memorization.memorization(subsets, subsets | True).value))


@jax.jit
def _attack(scores, member):
    return (
        membership.auc(scores, member),
        membership.advantage(scores, member),
        membership.tpr_at_fpr(scores, member, 1e-2),
        membership.tpr_at_fpr(scores, member, 1e-3),
    )


def test_random_scores_attack_nothing_and_rates_need_enough_examples():
    rng = np.random.default_rng(0)
    scores, member = rng.normal(size=400).astype(np.float32), np.arange(400) % 2
    area, _, rate, small = _attack(scores, member)
    assert abs(area.value - 0.5) < 3 * area.error
    assert rate < 0.06
    assert membership.tpr_at_fpr(jnp.arange(42.0), jnp.arange(42) == 41, 1 / 41) == 1
    assert np.isnan(small)  # 200 others can't show a rate of one in a thousand
    order = rng.permutation(400)
    assert _attack(scores[order], member[order])[0].value == area.value
    equal, gain, _, _ = _attack(0 * scores, member)
    assert equal.value == 0.5
    assert gain == 0


def test_accounting_known_answers():
    orders = np.array(rdp_accounting.ORDERS)
    rdp = rdp_accounting.subsampled_gaussian_rdp
    np.testing.assert_allclose(rdp(1.0, 2.0), orders / 8)
    np.testing.assert_array_equal(rdp(0.0, 2.0), 0)
    noises = (0.3, 0.7, 1.0, 3.0)
    epsilons = [rdp_accounting.training_epsilon(0.01, s, 100, 1e-5).value for s in noises]
    assert np.all(np.diff(epsilons) < 0)
    assert np.all(np.isfinite(epsilons))
    classic = rdp_accounting.training_epsilon(0.01, 1.0, 100, 1e-5, "classic").value
    assert epsilons[2] <= classic
    noise = rdp_accounting.calibrate_noise(epsilons[2], 0.01, 100, 1e-5)
    np.testing.assert_allclose(noise, 1.0, rtol=1e-6)
    with pytest.warns(UserWarning, match="the largest order 256 is the best"):
        rdp_accounting.training_epsilon(0.001, 20.0, 1, 1e-5)
    for message, call in {
        "rate: expected": lambda: rdp(1.5, 1.0),
        "noise: expected": lambda: rdp(0.5, 0.0),
        "orders: expected": lambda: rdp(0.5, 1.0, (1.5,)),
        "delta: expected": lambda: rdp_accounting.epsilon(rdp(0.5, 1.0), 0.0),
        "conversion: expected": lambda: rdp_accounting.epsilon(rdp(0.5, 1.0), 0.1, conversion="x"),
        "target: expected": lambda: rdp_accounting.calibrate_noise(-1.0, 0.5, 1, 1e-5),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


@jax.jit
def _batches(keys):
    draw = lambda key: dp_sgd.poisson_batch(key, 50, 0.2, dp_sgd.default_capacity(50, 0.2))  # noqa: E731
    drawn = jax.vmap(draw)(keys)
    often = jnp.zeros(50).at[drawn.indices].add(drawn.weight)
    return often / len(keys), jnp.sum(drawn.weight, axis=1), drawn.dropped


def test_every_example_is_drawn_independently_at_its_rate():
    often, sizes, dropped = _batches(jax.random.split(jax.random.key(0), 2000))
    error = (0.2 * 0.8 / 2000) ** 0.5
    assert np.mean(np.abs(often - 0.2) < 3 * error) > 0.95
    assert abs(np.var(sizes) / (50 * 0.2 * 0.8) - 1) < 0.15
    assert np.all(dropped == 0)
    crowded = dp_sgd.poisson_batch(jax.random.key(0), 50, 0.9, 8)
    assert crowded.dropped > 0


@jax.jit
def _clipped(problem, weight):
    batch = problem.data._replace(weight=weight)
    gradients = trees.ravel(per_example.per_example_gradients(problem), 1)
    norm = jnp.linalg.norm(gradients, axis=1)
    expected = jnp.sum((weight * jnp.minimum(1, 0.5 / norm))[:, None] * gradients, axis=0)
    return trees.ravel(dp_sgd.clipped_sum(problem, batch, 0.5, 5)), expected


def test_clipped_sums_count_each_gradient_once_and_padding_never():
    np.testing.assert_allclose(*_clipped(problem(), np.arange(12.0) % 2), rtol=1e-4, atol=1e-6)


def mean_estimate(params, x):
    return params - x


@jax.jit
def _canary_runs(keys, noise):
    """One step of private gradient descent on 20 zeros, with and without a canary of norm 1."""

    def run(key, there):
        x = jnp.zeros((21, 1)).at[0, 0].set(1.0)
        weight = jnp.ones(21).at[0].set(there)
        data = Data(x, jnp.zeros((21, 1)))
        problem = make_problem(mean_estimate, squared_error, jnp.zeros(1), data)
        total = dp_sgd.clipped_sum(problem, data._replace(weight=weight), 1.0, 21)
        return -(total[0] + noise * jax.random.normal(key))

    return jax.vmap(run, (0, None))(keys, 0.0), jax.vmap(run, (0, None))(keys[::-1], 1.0)


def test_an_audit_stays_below_the_accountant_and_finds_missing_noise():
    delta = 1e-5
    keys = jax.random.split(jax.random.key(0), 1000)
    found = audit.audit(*_canary_runs(keys, 1.0), delta)
    assert 0 < found.epsilon <= rdp_accounting.training_epsilon(1.0, 1.0, 1, delta).value
    silent = audit.audit(*_canary_runs(keys, 0.0), delta)
    assert silent.epsilon > 4
    same = audit.audit(_canary_runs(keys, 1.0)[0], _canary_runs(keys, 1.0)[0][::-1], delta)
    assert same.epsilon < 0.2
    with pytest.raises(ValueError, match="without: expected at least 4 finite values"):
        audit.audit(np.zeros(3), np.zeros(9), delta)


def test_exposure_of_a_canary():
    losses = np.arange(1.0, 1024.0)
    np.testing.assert_allclose(audit.exposure(losses, 0.0), 10)
    np.testing.assert_allclose(audit.exposure(losses, 2000.0), 0, atol=1e-12)


def test_an_empty_group_has_no_gap_and_intervals_hold_the_estimate():
    rng = np.random.default_rng(0)
    prediction, label, group = (rng.integers(0, 2, 80) for _ in range(3))
    empty = fairness.fairness(prediction, label, group, 3)
    assert np.isnan(empty.positive_rate[2])
    assert np.isnan(empty.demographic_parity)
    assert np.isnan(empty.worst_accuracy)
    found = fairness.fairness(prediction, label, group, 2)
    ends = fairness.fairness_interval(jax.random.key(0), prediction, label, group, 2, 200)
    assert np.all(ends.low.accuracy <= found.accuracy)
    assert np.all(found.accuracy <= ends.high.accuracy)
    same = fairness.fairness(label, label, group, 2)
    assert same.equalized_odds == 0
    assert same.worst_accuracy == 1


def test_calibration_of_known_probabilities():
    logits = jnp.log(jnp.tile(jnp.array([[0.75, 0.25]]), (8, 1)))
    good = calibration.calibration(logits, np.array([0, 0, 0, 1] * 2))
    np.testing.assert_allclose(good.expected_error, 0, atol=1e-6)
    bad = calibration.calibration(logits, np.ones(8, int))
    np.testing.assert_allclose(bad.expected_error, 0.75, rtol=1e-5)
    np.testing.assert_allclose(bad.brier, 2 * 0.75**2, rtol=1e-5)
    assert np.sum(good.count) == 8
    broken = logits.at[0].set(jnp.nan)
    assert np.isnan(calibration.calibration(broken, np.zeros(8, int)).expected_error)
    left_out = calibration.calibration(broken, np.array([-1, 0, 0, 1, 0, 0, 0, 1]))
    assert np.isfinite(left_out.expected_error)


def test_examples_without_a_label_are_in_no_mean():
    rng = np.random.default_rng(0)
    logits, labels = jnp.asarray(rng.normal(size=(9, 3)), jnp.float32), np.arange(9) % 3
    more = jnp.concatenate([logits, 9 * logits[:4]]), np.append(labels, [-1] * 4)
    for function in (
        calibration.calibration,
        lambda *given: norms.fisher_rao(*given, 2),
        lambda *given: jnp.nanmean(norms.margins(*given)),
        lambda *given: jnp.nanmean(trak.label_margin(*given)),
        lambda rows, classes: kernel_statistics.label_alignment(rows @ rows.T, classes),
        lambda rows, classes: kernel_statistics.label_alignment(rows @ rows.T, classes, True),
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5),
            function(*more),
            function(logits, labels),
        )


@pytest.mark.parametrize("measure", [membership.advantage, membership.auc])
def test_scores_of_bytes_rank_as_others_do(measure):
    scores, member = np.array([0, 1, 200, 3]), np.array([0, 1, 1, 0])
    own = measure(jnp.asarray(scores.astype(np.uint8)), jnp.asarray(member))
    np.testing.assert_array_equal(own, measure(jnp.asarray(scores), jnp.asarray(member)))


def test_calibration_of_half_precision_counts_every_example():
    logits = jnp.tile(jnp.array([[2.0, 0.0]], jnp.bfloat16), (1000, 1))
    labels = np.arange(1000) % 2
    own = calibration.calibration(logits, labels)
    wide = calibration.calibration(logits.astype(jnp.float32), labels)
    assert np.sum(own.count) == 1000
    np.testing.assert_allclose(own.expected_error, wide.expected_error)


def test_shadow_models_that_agree_exactly_have_a_likelihood():
    margins = np.array([[4.0, 3.0], [1.0, 3.0], [4.0, 3.0], [1.0, 3.0]], np.float32)
    members = np.array([[1, 1], [0, 0], [1, 1], [0, 0]], bool)
    scores = lira.lira_of_subsets(margins, members, np.array([4.0, 3.0], np.float32))
    assert scores[0] > 0
    assert scores[1] == 0
    half = lira.lira_of_subsets(*(x.astype(np.float16) for x in (margins, members, margins[0])))
    np.testing.assert_allclose(half, scores)


def test_the_share_of_facts_seen_once_estimates_those_not_seen():
    rng = np.random.default_rng(0)
    p = rng.pareto(1.0, 2000)
    p /= p.sum()
    hits = []
    for _ in range(100):
        counts = rng.multinomial(1000, p)
        found = good_turing.good_turing(counts)
        hits.append(abs(found.value - p[counts == 0].sum()) <= 2 * found.error)
    assert np.mean(hits) >= 0.9


def test_a_calibrated_model_of_arbitrary_facts_must_make_some_up():
    facts, false = 4000, 40_000
    truth = np.append(np.full(facts, 1 / facts), np.zeros(false))
    counts = np.append(np.random.default_rng(0).multinomial(2000, truth[:facts]), np.zeros(false))
    flat = np.full(facts + false, 1 / (facts + false))
    parrot = counts / counts.sum()
    calibrated = np.where(counts > 0, truth, 0)
    calibrated += (1 - calibrated.sum()) * np.where(counts > 0, 0, 1 / np.sum(counts == 0))
    for model in (flat, parrot, calibrated):
        found = good_turing.hallucination(counts, model, truth)
        assert found.lower_bound <= found.rate + 1e-6
    assert found.lower_bound > 0.3
    assert good_turing.hallucination(counts, parrot, truth).rate == 0
    entropy = good_turing.semantic_entropy(np.array([[1, 1, 1, 1], [0, 1, 2, 3]]))
    np.testing.assert_allclose(entropy, [0, np.log(4)], atol=1e-6)


def test_best_of_n_is_unbiased_and_over_optimization_is_seen():
    assert best_of_n.best_of_n_kl(1) == 0
    weights = best_of_n.selection_weights(5, 2)
    np.testing.assert_allclose(weights, np.arange(5) / 10)
    rng = np.random.default_rng(0)
    proxy = rng.normal(size=(50, 64)).astype(np.float32)
    chosen, worth = best_of_n.over_optimization(proxy, -(proxy**2), (1, 4, 32))
    assert np.all(np.diff(chosen) > 0)
    assert worth[2] < worth[1] < 0
    np.testing.assert_allclose(chosen[0], proxy.mean(), atol=1e-5)
    with pytest.raises(ValueError, match="n: expected 1 to the 64 samples, got 65"):
        best_of_n.over_optimization(proxy, proxy, (65,))


@pytest.mark.slow
def test_a_planted_duplicate_and_mislabeled_examples_are_found():
    """LiRA beats the threshold, TRAK predicts subset models, a planted outlier is memorized."""
    classes, examples, models = 4, 60, 64
    x, y = clusters(5, examples, 8, classes, spread=1.5, noise=0.3)
    x, y = x.at[1].set(4 * x[1]), y.at[1].set((y[1] + 1) % classes)
    train = mlp_learner(x, y, 32, 300, 0.3, classes)
    key = jax.random.key(0)
    subsets = memorization.half_subsets(key, models + 20, examples)
    stack = jax.jit(lambda: memorization.train_on_subsets(train, key, subsets))()
    logits = jax.jit(jax.vmap(lambda params: relu_mlp(params, x)))(stack)
    margins = jax.vmap(lambda own: trak.label_margin(own, y))(logits)
    shadow, attacked = slice(20, None), range(20)
    found = {"lira": [], "threshold": []}
    for i in attacked:
        scores = lira.lira_of_subsets(margins[shadow], subsets[shadow], margins[i])
        losses = -np.log1p(np.exp(-margins[i]))
        for name, own in (("lira", scores), ("threshold", losses)):
            found[name].append(own)
    members = np.concatenate([subsets[i] for i in attacked])
    pooled = {name: jnp.asarray(np.concatenate(own)) for name, own in found.items()}
    rates = {n: membership.tpr_at_fpr(own, members, 1e-2) for n, own in pooled.items()}
    assert rates["lira"] > rates["threshold"]
    random = jnp.asarray(np.random.default_rng(0).normal(size=len(members)))
    chance = membership.auc(random, members)
    assert abs(chance.value - 0.5) < 3 * chance.error
    correct = jnp.argmax(logits, axis=2) == y
    scores = memorization.memorization(correct, subsets).value
    assert scores[1] >= np.sort(scores)[-10]


def softmax(params, x):
    return x @ params[0] + params[1]


@jax.jit
def _deletions(x, y, held_x, held_y):
    """Summed test losses without each of 100 examples, and what influence functions predict."""
    decay, count = 0.02, len(y)

    def train(weights):
        def loss(params):
            squares = sum(jnp.sum(leaf**2) for leaf in params)
            return jnp.mean(weights * cross_entropy.value(softmax(params, x), y)) + (
                decay * squares / 2
            )

        start = jnp.zeros((x.shape[1], 3)), jnp.zeros(3)
        step = lambda p, _: (jax.tree.map(lambda a, g: a - 0.5 * g, p, jax.grad(loss)(p)), None)  # noqa: E731
        return jax.lax.scan(step, start, None, length=800)[0]

    def tested(params):
        return jnp.sum(cross_entropy.value(softmax(params, held_x), held_y))

    whole = train(jnp.ones(count))
    without = jax.lax.map(
        lambda i: tested(train(jnp.ones(count).at[i].set(0.0))), jnp.arange(100), batch_size=50
    )
    problem = make_problem(softmax, cross_entropy, whole, (x, y))
    queries = make_problem(softmax, cross_entropy, whole, (held_x, held_y))
    found = influence_functions.influence(problem, queries, decay, iterations=60, tolerance=1e-6)
    predicted = -jnp.sum(found.values, axis=1)[:100] / count
    return trak.spearman(without - tested(whole), predicted), found.residuals


@pytest.mark.slow
def test_influence_predicts_the_retraining_of_softmax_regression():
    held = clusters(7, 40, 5, 3, 2.0)
    agreement, residuals = _deletions(*clusters(6, 120, 5, 3, 2.0), *held)
    assert np.all(residuals < 1e-4)
    assert agreement > 0.95


@pytest.mark.slow
def test_the_most_influential_other_example_is_a_planted_duplicate():
    x, y = clusters(8, 40, 6, 3, 2.0)
    x, y = x.at[7].set(x[31]), y.at[7].set(y[31])
    params = jax.jit(mlp_learner(x, y, 12, 200, 0.3, 3))(jax.random.key(0), jnp.ones(40))
    problem = make_problem(relu_mlp, cross_entropy, params, (x, y))
    found = influence_functions.influence(problem, problem, 1e-2)
    others = np.where(np.eye(40, dtype=bool), 0, found.values)
    assert np.argmin(others[:, 31]) == 7
    assert np.argmin(others[:, 7]) == 31
    own = influence_functions.self_influence(problem, 1e-2)
    np.testing.assert_allclose(own, -np.diag(found.values), rtol=1e-2, atol=1e-4)


@jax.jit
def _attributions(x, y, held_x, held_y, subsets, key):
    """Spearman correlations with 20 retrained models of TRAK and of TracIn."""
    train = mlp_learner(x, y, 24, 400, 0.5, 10)
    retrained = memorization.train_on_subsets(train, jax.random.fold_in(key, 0), subsets, 20)
    margins = jax.vmap(lambda p: trak.label_margin(relu_mlp(p, held_x), held_y))(retrained)
    keys = jax.random.split(jax.random.fold_in(key, 1), 6)
    models = jax.vmap(lambda key: train(key, jnp.ones(len(y))))(keys)

    def scores(params):
        own = make_problem(relu_mlp, cross_entropy, params, (x, y))
        queries = make_problem(relu_mlp, cross_entropy, params, (held_x, held_y))
        projected = [trak.project(p, key, 128) for p in (own, queries)]
        one = jax.tree.map(lambda leaf: leaf[None], own.floats)
        return trak.scores(*projected), tracin.tracin(own, queries, one, jnp.ones(1))

    found = [jnp.mean(own, axis=0) for own in jax.lax.map(scores, models)]
    return [jnp.mean(trak.linear_datamodel_score(own, subsets, margins)) for own in found]


@pytest.mark.slow
def test_trak_predicts_models_of_subsets_better_than_tracin():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = jnp.asarray(digits.data / 16, jnp.float32), jnp.asarray(digits.target)
    subsets = memorization.half_subsets(jax.random.key(1), 20, 200)
    held = x[300:340], y[300:340]
    by_trak, by_tracin = _attributions(x[:200], y[:200], *held, subsets, jax.random.key(2))
    assert by_trak > 0.2
    assert by_trak > by_tracin


def test_equal_proxies_are_chosen_equally_often_and_nan_last():
    reward = jnp.array([[0, 1, 2, 3]])
    worth = best_of_n.over_optimization(jnp.zeros((1, 4)), reward, (1, 2, 4))[1]
    np.testing.assert_allclose(worth, 1.5, rtol=1e-6)
    proxy = jnp.array([[1.0, jnp.nan, 3.0, 3.0]])
    chosen, worth = best_of_n.over_optimization(proxy, jnp.array([[5.0, 100.0, 1.0, 2.0]]), (2, 4))
    # Of two: one of the equal ones in five of six draws, the first answer in one.
    np.testing.assert_allclose(chosen, [(5 * 3 + 1) / 6, 3], rtol=1e-6)
    np.testing.assert_allclose(worth, [(5 * 1.5 + 5) / 6, 1.5], rtol=1e-6)


def test_a_loss_that_is_nan_is_not_the_smallest():
    with pytest.raises(ValueError, match=r"canary: expected numbers, got NaN"):
        audit.exposure(np.arange(10.0), float("nan"))


def test_what_is_no_guarantee_is_refused():
    with pytest.raises(ValueError, match="steps: expected 0 or more, got -5"):
        rdp_accounting.training_epsilon(0.01, 1.0, -5, 1e-5)
    with pytest.raises(ValueError, match="target: expected an epsilon > 0, got nan"):
        rdp_accounting.calibrate_noise(float("nan"), 0.01, 10, 1e-5)
    padded = Data(jnp.ones((2, 3)), jnp.zeros(2, jnp.int32), jnp.array([1.0, 0.0]))
    problem = make_problem(linear, cross_entropy, jnp.ones((3, 2)), padded)
    with pytest.raises(ValueError, match=r"weight: expected None"):
        dp_sgd.private_gradient(problem, jax.random.key(0), 0.5, 1.0, 1.0)


@pytest.mark.parametrize("wrong", ["predictions", "labels", "group"])
def test_what_is_no_decision_or_group_is_in_no_rate(wrong):
    given = {name: jnp.array([1.0, 0.0, 1.0, 0.0]) for name in ("predictions", "labels", "group")}
    given["group"] = given["group"].at[3].set(1).astype(int)
    assert jnp.isfinite(fairness.fairness(**given, groups=2).demographic_parity)
    given[wrong] = given[wrong].at[2].set(2)
    assert jnp.isnan(fairness.fairness(**given, groups=2).demographic_parity)
    ignored = jnp.array([1.0, 1.0, 0.0, 1.0])
    assert jnp.isfinite(fairness.fairness(**given, groups=2, weight=ignored).positive_rate).all()


@pytest.mark.parametrize("kind", [jnp.bfloat16, jnp.float16])
def test_weights_and_probabilities_of_half_precision_are_summed_in_float32(kind):
    rng = np.random.default_rng(0)
    prediction, label, group = (rng.integers(0, 2, 6000) for _ in range(3))
    own, exact = (
        fairness.fairness(prediction, label, group, 2, w) for w in (jnp.ones(6000, kind), None)
    )
    np.testing.assert_allclose(own.accuracy, exact.accuracy, rtol=1e-6)
    facts = np.full(6000, 2.0**-13)
    held = (jnp.asarray(facts, kind), jnp.asarray(facts))
    own, exact = (good_turing.hallucination(np.ones(6000), p, 0 * facts) for p in held)
    np.testing.assert_allclose(own.miscalibration, exact.miscalibration, rtol=1e-6)


def test_corpora_are_counted_beyond_the_types_that_hold_their_counts():
    for kind in (jnp.float16, jnp.uint8):
        found = good_turing.good_turing(jnp.full(5000, 20, kind).at[0].set(1))
        np.testing.assert_allclose(found.value, 1 / 99981, rtol=1e-6)


def test_members_may_be_said_by_whole_numbers():
    subsets = jnp.array([[1, 0], [0, 1], [1, 1], [0, 0]])
    correct = jnp.array([[1, 0], [0, 1], [1, 0], [0, 0]])
    own, exact = (memorization.memorization(correct, s).value for s in (subsets, subsets == 1))
    np.testing.assert_array_equal(own, exact)
