"""Intervals, ties and orders of a few questions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.novo import measures
from jaxmethods.novo.heads import Heads, heads_from_indices
from jaxmethods.novo.resample import Questions, bootstrap

NORMS = jnp.array([[[3.0, 1.0], [3.0, 1.0], [1.0, 2.0]], [[5.0, 1.0], [1.0, 1.0], [9.0, 9.0]]])
MASK = jnp.array([[True, True, True], [True, True, False]])
QUESTIONS = Questions(NORMS, MASK, jnp.array([1, 0]))


def test_the_interval_is_wilsons():
    voters = heads_from_indices([0], [], 2)
    right = jnp.array([0, 0])  # one of two
    found = measures.accuracies(QUESTIONS, voters, right, seed=0)
    z2 = 1.959964**2
    half = (z2 / 8 + z2**2 / 16) ** 0.5 / (1 + z2 / 2)
    np.testing.assert_allclose(found["accuracy_95_low"], 0.5 - half, rtol=1e-5)
    np.testing.assert_allclose(found["accuracy_95_high"], 0.5 + half, rtol=1e-5)


def test_a_head_ties_where_either_extreme_is_shared():
    # Of (question, head): (0, 0) at the top, (0, 1) at the bottom, (1, 1) at both, (1, 0) never.
    assert measures.ties(QUESTIONS)["tied_heads"] == pytest.approx(3 / 4)


def test_the_mean_likelihood_is_per_token():
    likelihood = np.array([[-4.0, -5.0, -9.0], [-2.0, -3.0, 0.0]])
    lengths = np.array([[1, 2, 9], [1, 1, 0]])
    found = measures.likelihood_accuracies(QUESTIONS, likelihood, lengths)
    # Sums choose 0 and 0; means choose 2 and 0, since the last candidate isn't there.
    assert found == {"likelihood_accuracy": 0.5, "mean_likelihood_accuracy": 0.5}
    labels = QUESTIONS._replace(labels=jnp.array([2, 0]))
    found = measures.likelihood_accuracies(labels, likelihood, lengths)
    assert found == {"likelihood_accuracy": 0.5, "mean_likelihood_accuracy": 1.0}


def test_ties_go_to_the_first_candidate_of_the_source():
    """`source` says where each candidate stands in the data set: here 2, 0, 1 is its order."""
    # Candidates 1 and 2 tie. Equal candidates count as equally right, so they get a second head
    # that tells them apart and doesn't vote.
    norms = jnp.array([[[1.0, 0.0], [2.0, 1.0], [2.0, 2.0]]])
    one = Questions(norms, jnp.ones((1, 3), bool), jnp.array([2]))
    voter = Heads(jnp.array([True, False]), jnp.array([False, False]), jnp.bool_(True))
    assert measures.in_source_order(one, voter, [[1, 2, 0]]) == 1.0
    assert measures.in_source_order(one, voter, [None]) == 0.0


def test_without_voters_nothing_is_right_in_any_order():
    nobody = heads_from_indices([], [], 2)
    found = measures.accuracies(QUESTIONS, nobody, jnp.array([-1, -1]), seed=0)
    assert (found["accuracy"], found["shuffled_order_accuracy"]) == (0, 0)
    last = QUESTIONS._replace(labels=jnp.array([2, 1]))
    assert measures.in_source_order(last, nobody, [None, None]) == 0


def test_the_spread_over_draws_is_that_of_a_sample():
    """Square deviations are over D - 1: a thousand draws are a sample of all there are."""
    norms = jax.random.uniform(jax.random.key(0), (12, 3, 6))
    pool = Questions(norms, jnp.ones((12, 3), bool), jnp.arange(12) % 3)
    key, settings = jax.random.key(1), {"draws": 3, "samples": 4, "q": 0.5}
    accuracy = np.asarray(bootstrap(key, pool, **settings).accuracy)
    found = measures.over_draws(key, pool, None, **settings)
    expected = np.sqrt(((accuracy - accuracy.mean()) ** 2).sum() / 2)
    assert expected > 0.01
    assert found["draws_standard_deviation"] == pytest.approx(expected, rel=1e-5)
    assert found["draws_mean_accuracy"] == pytest.approx(accuracy.mean(), rel=1e-5)
    alone = measures.over_draws(key, pool, None, **settings | {"draws": 1})
    assert alone["draws_standard_deviation"] == 0
