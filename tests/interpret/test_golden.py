"""An independent float64 implementation's numbers; every size is read from the arrays.

The meaning of the arrays: tests/golden/interpret/README.md.
"""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.interpret import trees
from jaxmethods.interpret.curvature import (
    eigenpairs,
    lanczos,
    marchenko_pastur,
    operators,
)
from jaxmethods.interpret.dynamics import landscape
from jaxmethods.interpret.expressivity import in_context, linear_regions
from jaxmethods.interpret.generalization import (
    kl_bounds,
    leave_one_out,
    norms,
    rademacher,
)
from jaxmethods.interpret.gradients import noise_scale, per_example
from jaxmethods.interpret.honesty import fairness
from jaxmethods.interpret.influence import influence_functions
from jaxmethods.interpret.kernels import kernel_statistics, linearized, ntk
from jaxmethods.interpret.losses import cross_entropy
from jaxmethods.interpret.privacy import lira, membership, rdp_accounting
from jaxmethods.interpret.problem import Data, make_problem, mean_gradient, mean_loss
from jaxmethods.interpret.representation import (
    attention,
    cka,
    geometry,
    intrinsic_dimension,
    neural_collapse,
)
from tests.golden_files import golden_files, read
from tests.interpret.networks import flat, layers, mlp, relu_mlp


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        yield


def close(actual, expected, rtol=1e-9, atol=1e-9):
    """Absolute errors are relative to the largest entry."""
    expected = np.asarray(expected)
    largest = max(float(np.max(np.abs(expected), initial=0.0)), 1e-12)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol * largest)


def close_all(actual, golden):
    assert actual
    for name, value in actual.items():
        try:
            close(value, golden[name])
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


def golden(prefix):
    return pytest.mark.parametrize("file", golden_files("interpret", prefix), ids=lambda f: f.stem)


def mlp_problem(z):
    depth = len(z["layer_sizes"]) - 1
    params = [(jnp.asarray(z[f"W{i}"]), jnp.asarray(z[f"b{i}"])) for i in range(depth)]
    return make_problem(mlp, cross_entropy, params, Data(z["X"], z["y"]))


def vector(z, name):
    return jax.tree.map(jnp.asarray, layers(z[name], z["layer_sizes"]))


@cache
def curvature(file):
    """Everything that the curvature file pins, in one program."""
    z = read(file)

    @jax.jit
    def compute(problem, v, v0):
        own = {
            "hessian": operators.hessian(problem),
            "ggn": operators.ggn(problem),
            "empirical_fisher": operators.empirical_fisher(problem),
        }
        result = {name: operators.to_matrix(operator) for name, operator in own.items()}
        for name, short in (("hessian", "hvp"), ("ggn", "ggnvp"), ("empirical_fisher", "efvp")):
            result[short] = trees.ravel(own[name](v))
        krylov = lanczos.lanczos(own["hessian"], v0, len(z["lanczos_alpha"]))
        pairs = lanczos.ritz(krylov)
        result |= {
            "logits": problem.apply(problem.params, problem.data.inputs),
            "loss": mean_loss(problem),
            "grad": trees.ravel(mean_gradient(problem)),
            "per_example_grads": trees.ravel(per_example.per_example_gradients(problem, 8), 1),
            "lanczos_alpha": krylov.alpha,
            "lanczos_beta": krylov.beta[:-1],
            "lanczos_ritz": pairs.values,
            "lanczos_weights": pairs.vectors[0] ** 2,
        }
        krylov = lanczos.lanczos(own["ggn"], v0, len(z["lanczos_ggn_alpha"]))
        noise = noise_scale.noise_scale(problem)
        return result | {
            "lanczos_ggn_alpha": krylov.alpha,
            "lanczos_ggn_beta": krylov.beta[:-1],
            "trace_sigma": noise.trace_sigma,
            "grad_norm2": noise.squared_norm,
            "noise_scale_simple_biased": noise.biased,
            "noise_scale_simple_unbiased": noise.unbiased,
        }

    return z, compute(mlp_problem(z), vector(z, "v"), vector(z, "lanczos_v0"))


@golden("curvature_mlp")
def test_curvature(file):
    z, result = curvature(file)
    close_all(result, z)
    hessian, ggn = result["hessian"], result["ggn"]
    close(np.linalg.eigvalsh(hessian), z["hessian_eigs"])
    close(np.linalg.eigvalsh(ggn), z["ggn_eigs"])
    close(np.trace(hessian), z["trace_hessian"])
    close(np.sum(hessian**2), z["fro2_hessian"])
    close(np.trace(ggn), z["trace_ggn"])
    close(np.diag(hessian), z["diag_hessian"])


@golden("curvature_mlp")
def test_sixty_steps_find_the_five_outermost_eigenvalues_with_residuals_that_bound_the_error(file):
    z = read(file)
    operator = operators.hessian(mlp_problem(z))
    steps = min(60, len(z["hessian_eigs"]))
    found = eigenpairs.eigenpairs(operator, jax.random.key(0), 5, steps, "both")
    expected = np.concatenate([z["hessian_eigs"][::-1][:5], z["hessian_eigs"][:5]])
    errors = np.abs(found.values - expected)
    assert np.all(errors[:5] < 1e-8)
    assert np.all(errors <= found.residuals + 1e-12)


@golden("curvature_mlp")
def test_a_block_is_a_submatrix_of_the_hessian(file):
    z = read(file)
    operator = operators.hessian(mlp_problem(z))
    block = operators.block(operator, lambda name: name.startswith("[1]"))
    names = jax.tree.map(lambda leaf: np.zeros(leaf.shape, bool), operator.like)
    names[1] = jax.tree.map(np.ones_like, names[1])
    inside = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(names)])
    close(jax.jit(operators.to_matrix)(block), z["hessian"][inside][:, inside])


@golden("marchenko_pastur")
def test_marchenko_pastur(file):
    z = read(file)
    for ratio in z["ratios"]:
        close(marchenko_pastur.density(jnp.asarray(z[f"x_{ratio}"]), ratio), z[f"pdf_{ratio}"])


@golden("curvature_mlp")
def test_influences_by_conjugate_gradients(file):
    z = read(file)
    problem = mlp_problem(z)
    damping = float(z["influence_damping"])
    found = influence_functions.influence(
        problem, problem, damping, operators.hessian(problem), 1000, 1e-14
    )
    close(found.values, z["influence_matrix"])
    assert np.all(found.residuals < 1e-12)


@golden("ntk_mlp")
def test_neural_tangent_kernel(file):
    z = read(file)

    @jax.jit
    def compute(theta, perturbed, x, x2, y):
        full = ntk.ntk(mlp, theta, x, kind="full", chunk=8)
        traced = ntk.ntk(mlp, theta, x, method="products", chunk=8)
        after = ntk.ntk(mlp, perturbed, x, chunk=8)
        found = kernel_statistics.kernel_statistics(traced)
        return {
            "ntk_full": full,
            "ntk_traced": traced,
            "ntk_cross_full": ntk.ntk(mlp, theta, x, x2, kind="full", chunk=8),
            "eigs": found.eigenvalues,
            "effective_rank": found.effective_rank,
            "participation_ratio": found.participation_ratio,
            "condition_number": found.condition_number,
            "label_alignment": kernel_statistics.label_alignment(traced, y),
            "label_alignment_centered": kernel_statistics.label_alignment(traced, y, True),
            "ntk_traced_perturbed": after,
            "drift_rel_fro": kernel_statistics.drift(traced, after),
            "kernel_distance": kernel_statistics.distance(traced, after),
            "linearised_logits": linearized.linearized(mlp, theta)(perturbed, x2),
        }

    parameters = vector(z, "theta"), vector(z, "theta_perturbed")
    close_all(compute(*parameters, z["X"], z["X2"], z["y"]), z)


@golden("ridge_loo")
def test_ridge_and_kernel_leave_one_out(file):
    z = read(file)

    @jax.jit
    def compute(x, y, test_x, test_y, lam):
        found = leave_one_out.ridge_leave_one_out(x, y, lam)
        squares = lambda w: (test_y - test_x @ w) ** 2  # noqa: E731
        without = jax.vmap(lambda change: squares(found.weights + change))(found.change)
        stable = leave_one_out.loss_stability(squares(found.weights), without)
        distances = jnp.sum((x[:, None] - x) ** 2, axis=-1)
        kernel = jnp.exp(-distances / (2 * x.shape[1]))
        return {
            "w": found.weights,
            "hat_diag": found.leverages,
            "residuals": found.residuals,
            "loo_residuals": found.loo_residuals,
            "loo_mse": found.mean_square,
            "gcv": found.gcv,
            "dof": found.degrees_of_freedom,
            "param_change_exact": found.change,
            "param_change_influence_first_order": found.influence,
            "rbf_kernel": kernel,
            "kernel_ridge_loo_residuals": leave_one_out.kernel_leave_one_out(kernel, y, lam),
            "uniform_stability_empirical": stable.uniform,
            "hypothesis_stability_empirical": stable.hypothesis,
        }

    names = ("X", "y", "test_X", "test_y", "lam")
    close_all(compute(*(jnp.asarray(z[name]) for name in names)), z)


@golden("pac_bayes")
def test_bounds_by_the_binary_relative_entropy(file):
    z = read(file)

    @jax.jit
    def compute(mu, sigma, prior_mu, prior_sigma, risk, n, delta, samples, mc_delta, cases):
        kl = kl_bounds.gaussian_kl(mu, sigma, prior_mu, prior_sigma)
        return {
            "kl": kl,
            "mcallester": kl_bounds.mcallester(risk[:, None], kl, n, delta),
            "maurer_kl_inverse": kl_bounds.maurer(risk[:, None], kl, n, delta),
            "mc_upper": kl_bounds.monte_carlo(risk, samples, mc_delta),
            "inverse": kl_bounds.kl_inverse(cases[:, 0], cases[:, 1]),
        }

    names = ("mu", "sigma", "mu_prior", "sigma_prior", "emp_risk", "n", "delta")
    names += ("mc_samples", "mc_delta", "klinv_cases")
    result = compute(*(jnp.asarray(z[name]) for name in names))
    close_all(result, z | {"inverse": z["klinv_cases"][:, 2]})


@golden("norms_margins")
def test_norms_and_margins(file):
    z = read(file)
    depth = len(z["spectral"])

    @jax.jit
    def compute(matrices, logits, y, x_norm):
        found = norms.norms(matrices)
        params = [(w, jnp.zeros(w.shape[1])) for w in matrices]
        like = jnp.ones((1, matrices[0].shape[0]))
        return {
            "margins": norms.margins(logits, y),
            "spectral": found.spectral,
            "fro": found.frobenius,
            "l21_of_columns": found.two_one,
            "l1": found.one,
            "path_norm_l2_sq": norms.path_norm(relu_mlp, params, like, 2),
            "path_norm_l1": norms.path_norm(relu_mlp, params, like, 1),
            "prod_spectral": found.product_spectral,
            "prod_fro": found.product_frobenius,
            "sum_stable_rank": found.stable_ranks,
            "bartlett_spectral_complexity": found.spectral_complexity,
            "pacbayes_spectral_neyshabur": found.spectral_frobenius,
        }

    matrices = [jnp.asarray(z[f"W{i}"]) for i in range(depth)]
    close_all(compute(matrices, z["logits"], z["y"], z["X_fro"]), z)


@golden("representation")
def test_representations(file):
    z = read(file)
    classes = z["W"].shape[1]

    @jax.jit
    def compute(features, y, w, b, other):
        found = neural_collapse.neural_collapse(features, y, classes, w, b)
        ranks = geometry.geometry(features)
        return {
            "class_means": found.class_means,
            "global_mean": found.global_mean,
            "Sigma_W": found.within,
            "Sigma_B": found.between,
            "nc1": found.nc1,
            "nc2_norm_cv": found.nc2_norms,
            "nc2_cos_mean_abs_dev": found.nc2_angles,
            "nc2_etf_fro": found.nc2_etf,
            "nc3": found.nc3,
            "nc4": found.nc4,
            "singular_values": ranks.singular_values,
            "effective_rank_roy": ranks.effective_rank,
            "rankme_like_entropy_sq": ranks.spectral_entropy_rank,
            "participation_ratio": ranks.participation_ratio,
            "stable_rank": ranks.stable_rank,
            "twonn_mle": intrinsic_dimension.two_nn(features).value,
            "lb_mle_k10": intrinsic_dimension.levina_bickel(features).value,
            "linear_cka": cka.linear_cka(features, other),
        }

    close_all(compute(*(jnp.asarray(z[name]) for name in ("Z", "y", "W", "b", "Z2"))), z)


@golden("attention_collapse")
def test_rank_collapse_of_attention(file):
    z = read(file)

    @jax.jit
    def compute(*arrays):
        tokens, weights = attention.attention_stack(*arrays, skip=False)
        with_skip, _ = attention.attention_stack(*arrays, skip=True)
        return {
            "residual_no_skip": attention.rank_residual(tokens),
            "residual_with_skip": attention.rank_residual(with_skip),
            "entropy_no_skip": attention.entropy(weights),
        }

    close_all(compute(*(jnp.asarray(z[name]) for name in ("X", "Wq", "Wk", "Wv"))), z)


@golden("icl_linear_attention")
def test_stacked_linear_attention_is_gradient_descent(file):
    z = read(file)
    layers_ = len(z["gd_predictions"]) - 1
    eta = float(z["eta"])

    @jax.jit
    def compute(x, y, query):
        return {
            "gd_predictions": in_context.in_context_descent(x, y, query, eta, layers_),
            "gd_weights": in_context.gradient_descent(x, y, eta, layers_),
            "ridge_prediction": in_context.ridge(x, y, float(z["ridge_lam"])) @ query,
        }

    close_all(compute(*(jnp.asarray(z[name]) for name in ("X", "y", "x_query"))), z)
    order = np.random.default_rng(0).permutation(len(z["y"]))
    close_all(compute(z["X"][order], z["y"][order], jnp.asarray(z["x_query"])), z)


@golden("landscape_regions")
def test_landscape(file):
    z, own = (
        read(file),
        read(file.with_name(file.name.replace("landscape_regions", "curvature_mlp"))),
    )
    theta, raw = vector(z, "theta"), vector(z, "direction_raw")
    direction = landscape.filter_normalized(raw, theta)
    close(flat(direction), z["direction_filter_normalised"])
    problem = make_problem(mlp, cross_entropy, theta, Data(own["X"], own["y"]))
    losses = landscape.loss_slice(problem, (direction,), jnp.asarray(z["alphas"])[:, None])
    close(losses, z["slice_loss"])


@golden("landscape_regions")
def test_linear_regions(file):
    z = read(file)
    found = linear_regions.linear_regions(vector(z, "theta"), z["segment_a"], z["segment_b"])
    close(found.breakpoints, z["relu_breakpoints"])
    assert found.count == z["relu_num_regions"]


@golden("rademacher_linear")
def test_rademacher_complexity_of_a_ball(file):
    z = read(file)
    found = rademacher.linear_correlations(*(jnp.asarray(z[n]) for n in ("X", "signs", "B")))
    close(found, z["sup_per_draw"])
    close(np.mean(found), z["empirical_rademacher"])
    close(rademacher.linear_bound(jnp.asarray(z["X"]), z["B"]), z["upper_bound"])


@golden("dp_accountant")
def test_privacy_accounting(file):
    z = read(file)
    orders = z["orders"]
    cases = z["cases_q_sigma_steps_delta"]
    for i, (q, sigma, steps, delta) in enumerate(cases):
        rdp = rdp_accounting.subsampled_gaussian_rdp(q, sigma, orders)
        if f"rdp_case{i}" in z:
            close(rdp, z[f"rdp_case{i}"], atol=0)
        for conversion in ("classic", "improved"):
            found = rdp_accounting.epsilon(steps * rdp, delta, orders, conversion)
            close(found.value, z[f"eps_{conversion}"][i])


@golden("privacy_fairness")
def test_membership_and_fairness(file):
    z = read(file)
    groups = len(z["positive_rate"])

    @jax.jit
    def compute(scores, member, inside, outside, observed, prediction, label, group):
        found = fairness.fairness(prediction, label, group, groups)
        return {
            "mia_auc": membership.auc(scores, member).value,
            "mia_advantage": membership.advantage(scores, member),
            "tpr_at_fpr_1e2": membership.tpr_at_fpr(scores, member, 1e-2, at_any_size=True),
            "tpr_at_fpr_1e3": membership.tpr_at_fpr(scores, member, 1e-3, at_any_size=True),
            "lira_score": lira.lira(inside, outside, observed),
            "positive_rate": found.positive_rate,
            "tpr_group": found.true_positive_rate,
            "fpr_group": found.false_positive_rate,
            "acc_group": found.accuracy,
            "demographic_parity_gap": found.demographic_parity,
            "equal_opportunity_gap": found.equal_opportunity,
            "equalized_odds_gap": found.equalized_odds,
            "worst_group_acc": found.worst_accuracy,
        }

    names = ("scores", "member", "lira_in", "lira_out", "lira_obs", "pred", "label", "group")
    close_all(compute(*(jnp.asarray(z[name]) for name in names)), z)
