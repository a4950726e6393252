"""Imperfect data and the loss against numpy in float64; tests/golden/README.md.

The stored logits, and the noise added to them, stand for model outputs: index t predicts
token t + 1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.kid import imperfect
from jaxmethods.kid.config import ImperfectConfig
from jaxmethods.language import divergences as d
from tests.golden_files import golden_files, read

FILES = golden_files("kid", "imperfect_pipeline")
STRATEGIES = ("random", "uniform", "hard", "easy")
TAU = 0.7


def of_tokens(logits):
    """Logits that predict each token, those of token 0 zeros."""
    return jnp.concatenate([jnp.zeros_like(logits[:, :1]), logits[:, :-1]], axis=1)


@pytest.fixture(scope="module", autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("file", FILES)
def test_entropies_and_predictions(file):
    golden = read(file)
    inside = golden["response_mask"].astype(bool)
    entropies = imperfect.token_entropies(of_tokens(golden["student_logits_clean"]))
    np.testing.assert_allclose(
        entropies[inside], golden["token_entropy"][inside], rtol=0, atol=1e-9
    )
    logits = of_tokens(golden["student_logits_masked_input"])
    gumbel = of_tokens(golden["gumbel_draws"])
    greedy, sampled = (
        imperfect.predicted(logits),
        imperfect.predicted(logits, TAU, gumbel=gumbel),
    )
    name = "greedy_prediction_for_token"
    np.testing.assert_array_equal(greedy[inside], golden[name][inside])
    name = f"sampled_prediction_for_token_tau{TAU}"
    np.testing.assert_array_equal(sampled[inside], golden[name][inside])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("file", FILES)
def test_selected_masked_and_imperfect_tokens(file, strategy):
    golden = read(file)
    ids = golden["input_ids"]
    entropies = imperfect.token_entropies(of_tokens(golden["student_logits_clean"]))
    logits = of_tokens(golden["student_logits_masked_input"])
    filled = imperfect.predicted(logits)
    sampled = imperfect.predicted(logits, TAU, gumbel=of_tokens(golden["gumbel_draws"]))
    for alpha in golden["alphas"].tolist():
        config = ImperfectConfig(
            alpha=alpha, strategy=strategy, mask_token_id=int(golden["mask_token_id"])
        )
        selected = imperfect.select_tokens(
            None,
            golden["maskable"],
            alpha,
            strategy,
            entropies=entropies,
            draws=golden["uniform_draws"],
        )
        masked, visible = imperfect.mask_tokens(None, ids, selected, config, logits.shape[-1])
        prefix = f"{strategy}_a{alpha}"
        np.testing.assert_array_equal(selected, golden[f"{prefix}_selected"])
        np.testing.assert_array_equal(masked, golden[f"{prefix}_masked_ids"])
        assert visible.all()
        own = imperfect.rewrite(ids, masked, filled, selected, config)
        np.testing.assert_array_equal(own, golden[f"{prefix}_imperfect_ids"])
        if strategy == "random":
            own = imperfect.rewrite(ids, masked, sampled, selected, config)
            theirs = golden[f"{prefix}_imperfect_ids_sampled_tau{TAU}"]
            np.testing.assert_array_equal(own, theirs)


@pytest.mark.parametrize("file", FILES)
def test_losses(file):
    golden = read(file)
    student, teacher, clean = (
        of_tokens(golden[name])
        for name in (
            "student_logits_imperfect",
            "teacher_logits_imperfect",
            "student_logits_clean",
        )
    )
    mask = golden["response_mask"]

    def mean(values, **options):
        return d.masked_mean(values, mask, **options)

    reverse = d.reverse_kl(student, teacher)
    imperfect_nll = d.cross_entropy(student, golden["input_ids"])
    clean_nll = d.cross_entropy(clean, golden["input_ids"])
    own = {
        "rkl_mean": mean(reverse),
        "fkl_mean": mean(d.forward_kl(student, teacher)),
        "mle_imperfect_mean": mean(imperfect_nll),
        "mle_clean_mean": mean(clean_nll),
        "kid_loss_lambda1": mean(reverse + imperfect_nll),
        "kid_loss_lambda0": mean(reverse),
        "kid_loss_lambda0_5": mean(reverse + 0.5 * imperfect_nll),
        "kid_loss_lambda1_mle_clean": mean(reverse + clean_nll),
        "kid_loss_lambda1_per_sequence_mean": mean(reverse + imperfect_nll, normalizer="sequence"),
    }
    for name, value in own.items():
        np.testing.assert_allclose(value, golden[name], rtol=0, atol=1e-9, err_msg=name)
