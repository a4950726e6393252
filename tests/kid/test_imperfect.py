"""Which tokens are masked and what replaces them, on rows of any length."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.kid import imperfect
from jaxmethods.kid.config import ImperfectConfig

LENGTHS = np.arange(24)
T = 26
START = 2
MASKABLE = (np.arange(T) >= START) & (np.arange(T) < START + LENGTHS[:, None])
IDS = jnp.asarray(np.random.default_rng(0).integers(3, 40, MASKABLE.shape))
ENTROPIES = jnp.asarray(np.random.default_rng(1).random(MASKABLE.shape).round(1))
KEY = jax.random.key(0)


def select(alpha, strategy, key=KEY):
    chosen = imperfect.select_tokens(key, MASKABLE, alpha, strategy, entropies=ENTROPIES, span=3)
    return np.asarray(chosen)


@pytest.mark.parametrize("strategy", ["random", "spans", "uniform", "hard", "easy"])
@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.3, 0.5, 1.0])
def test_exactly_k_maskable_tokens_are_selected(strategy, alpha):
    selected = select(alpha, strategy)
    expected = [min(n, max(1, math.floor(alpha * n + 0.5))) for n in LENGTHS.tolist()]
    np.testing.assert_array_equal(selected.sum(1), expected)
    assert not (selected & ~MASKABLE).any()


def test_the_number_of_masked_tokens_of_long_rows_is_rounded_exactly():
    number = np.arange(1, 4097)
    for percent in (13, 15, 39, 53, 65, 78, 100):
        expected = np.maximum(1, (2 * number * percent + 100) // 200)
        found = imperfect.num_masked(jnp.asarray(number), percent / 100)
        np.testing.assert_array_equal(found, expected)


def test_evenly_spaced_ranks():
    selected = select(0.3, "uniform")
    for row, n in enumerate(LENGTHS.tolist()):
        k = int(selected[row].sum())
        ranks = [math.floor((2 * j + 1) * n / (2 * k)) for j in range(k)]
        np.testing.assert_array_equal(np.flatnonzero(selected[row]) - START, ranks)


def test_spans_are_runs_of_tokens():
    """Of 22 tokens 9 are three runs, each of three tokens unless an end of the row or the count
    cuts it; every token is as likely as the others."""
    keys = jax.random.split(KEY, 400)
    mask = np.broadcast_to(MASKABLE[22], (400, T))
    chosen = np.asarray(imperfect.select_tokens(keys, mask, 0.4, "spans", span=3))
    assert (chosen.sum(1) == 9).all()
    begins = chosen & ~np.pad(chosen, ((0, 0), (1, 0)))[:, :-1]
    assert begins.sum(1).max() <= 5
    assert begins.sum(1).mean() < 3.5
    np.testing.assert_allclose(chosen.mean(0)[MASKABLE[22]], 9 / 22, atol=0.12)


def test_hard_tokens_are_at_least_as_uncertain_as_the_others():
    for strategy, sign in (("hard", 1), ("easy", -1)):
        selected = select(0.3, strategy)
        for row in range(4, len(LENGTHS)):
            inside = np.where(selected[row], sign * ENTROPIES[row], np.inf).min()
            rest = MASKABLE[row] & ~selected[row]
            assert inside >= np.where(rest, sign * ENTROPIES[row], -np.inf).max()


def test_rows_draw_from_their_own_keys():
    keys = jax.random.split(KEY, len(MASKABLE))
    order = np.random.default_rng(0).permutation(len(MASKABLE))
    together = select(0.3, "random", keys)
    np.testing.assert_array_equal(
        together[order], imperfect.select_tokens(keys[order], MASKABLE[order], 0.3, "random")
    )
    logits = jax.random.normal(KEY, (*MASKABLE.shape, 7))
    drawn = imperfect.predicted(logits, 1.0, keys)
    again = imperfect.predicted(logits[order], 1.0, keys[order])
    np.testing.assert_array_equal(drawn[order], again)


def test_random_shares():
    """Over many keys each token is chosen equally often; `bernoulli` with probability alpha."""
    keys = jax.random.split(KEY, 400)
    mask = np.broadcast_to(MASKABLE[10], (400, T))
    for strategy in ("random", "bernoulli"):
        chosen = imperfect.select_tokens(keys, mask, 0.3, strategy)
        np.testing.assert_allclose(chosen.mean(0)[MASKABLE[10]], 0.3, atol=0.09)
    assert not select(0, "random").any()


def test_mask_tokens():
    selected = select(0.3, "random")

    def masked(kind):
        config = ImperfectConfig(mask_token=kind, mask_token_id=1)
        return imperfect.mask_tokens(KEY, IDS, selected, config, 40)

    for kind in ("id", "random", "previous", "hide"):
        new, visible = masked(kind)
        np.testing.assert_array_equal(new[~selected], IDS[~selected])
        np.testing.assert_array_equal(visible, ~selected if kind == "hide" else True | selected)
    assert (masked("id")[0][selected] == 1).all()
    np.testing.assert_array_equal(masked("previous")[0][selected], np.roll(IDS, 1, 1)[selected])
    assert len(np.unique(masked("random")[0][selected])) > 5


def test_ablations():
    selected, masks, fills = select(0.3, "random"), jnp.ones_like(IDS), IDS * 0 + 2

    def rewritten(kind):
        return imperfect.rewrite(IDS, masks, fills, selected, ImperfectConfig(rewrite=kind))

    assert (rewritten("rewrite")[selected] == 2).all()
    assert (rewritten("masking_only")[selected] == 1).all()
    assert (rewritten("vanilla") == IDS).all()
    for kind in ("rewrite", "masking_only"):
        np.testing.assert_array_equal(rewritten(kind)[~selected], IDS[~selected])
    half = jnp.where(selected & (np.arange(T) % 2 == 0), IDS, fills)
    share = (selected & (np.arange(T) % 2 == 0)).sum() / selected.sum()
    assert imperfect.fill_accuracy(IDS, half, selected) == pytest.approx(share)
    assert imperfect.fill_accuracy(IDS, half, 0 * selected == 1) == 0


def test_no_gradient_flows_through_the_data():
    def entropy_sum(logits):
        return jnp.sum(imperfect.token_entropies(logits))

    np.testing.assert_array_equal(jax.grad(entropy_sum)(jnp.ones((1, 2, 3))), 0)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="entropies: are needed"):
        imperfect.select_tokens(KEY, MASKABLE, 0.2, "hard")
    with pytest.raises(ValueError, match="key: is needed"):
        imperfect.select_tokens(None, MASKABLE, 0.2, "random")
    with pytest.raises(ValueError, match="one for each of 24 rows"):
        imperfect.select_tokens(jax.random.split(KEY, 3), MASKABLE, 0.2, "random")
