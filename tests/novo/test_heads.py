"""Selection and election: what holds for all norms."""

from __future__ import annotations

import json
import os
from pathlib import Path

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmethods.errors import UserError
from jaxmethods.novo import baselines, heads, resample
from jaxmethods.novo.recipes import figures

HEADS = os.environ.get("JAXMETHODS_SHARED", "")


def random_questions(seed=0, n=40, candidates=4, total=24, decimals=3):
    rng = np.random.default_rng(seed)
    norms = rng.normal(5, 1, (n, candidates, total)).round(decimals).astype(np.float32)
    mask = np.arange(candidates) < rng.integers(2, candidates + 1, n)[:, None]
    labels = rng.integers(0, mask.sum(1)).astype(np.int32)
    return resample.Questions(*map(jnp.asarray, (norms, mask, labels)))


counts_strategy = hnp.arrays(np.int32, (2, 24), elements=st.integers(0, 30))


@given(counts_strategy, st.sampled_from([0.0, 0.5, 0.7, 0.85, 0.95, 1.0]))
def test_the_integer_rule_is_the_interpolated_quantile_rule(counts, q):
    percent = 100 * counts.astype(np.float64) / 30
    place = q * 23
    low = int(np.floor(place + 1e-9))
    ordered = np.sort(percent, axis=1)
    high = np.minimum(low + 1, 23)
    fraction = max(place - low, 0.0)
    threshold = ordered[:, low] + fraction * (ordered[:, high] - ordered[:, low])
    above = percent > threshold[:, None] + 1e-9
    chosen = heads.select_heads(jnp.asarray(counts), q)
    np.testing.assert_array_equal(chosen.max_mask, above[0] & ~above[1])
    np.testing.assert_array_equal(chosen.min_mask, above[1] & ~above[0])
    assert int(above.sum(1).max()) <= 24 - low - 1
    assert bool(chosen.ok) == bool(chosen.max_mask.any() or chosen.min_mask.any())


@given(counts_strategy)
def test_every_head_has_one_role_by_the_rule_of_the_paper(counts):
    chosen = heads.select_heads(jnp.asarray(counts), 0.85, rule="paper")
    assert not (chosen.max_mask & chosen.min_mask).any()
    selected = chosen.max_mask | chosen.min_mask
    assert selected.sum() >= 4  # inclusive: at least 24 - ceil(0.85 * 23)
    score = counts.max(0)
    assert score[selected].min() >= score[~selected].max(initial=0)


def test_a_head_that_is_as_good_at_both_votes_for_the_largest():
    counts = jnp.array([[3, 2, 3], [3, 3, 2]])
    chosen = heads.select_heads(counts, 0.0, rule="paper")
    np.testing.assert_array_equal(chosen.max_mask, [True, False, True])
    np.testing.assert_array_equal(chosen.min_mask, [False, True, False])


def test_without_selected_heads_nothing_is_predicted():
    counts = jnp.full((2, 8), 3)
    none = heads.select_heads(counts)
    assert not none.ok
    votes, prediction = heads.vote(jnp.ones((3, 8)), jnp.ones(3, bool), none)
    assert prediction == -1
    assert not votes.any()
    assert not heads.select_heads(jnp.arange(16).reshape(2, 8), 1.0).ok


def test_every_voter_has_one_vote_and_masked_candidates_none():
    questions = random_questions()
    voters = heads.fit(*questions, 0.7)
    votes, predictions = jax.vmap(heads.vote, (0, 0, None))(*questions[:2], voters)
    np.testing.assert_array_equal(votes.sum(1), (voters.max_mask | voters.min_mask).sum())
    assert not votes[~questions.mask].any()
    assert questions.mask[np.arange(40), predictions].all()


def test_votes_follow_their_candidates():
    questions = random_questions()
    voters = heads.fit(*questions, 0.7)
    order = jnp.array([2, 0, 3, 1])
    votes = jax.vmap(heads.vote, (0, 0, None))(*questions[:2], voters)[0]
    moved = (questions.norms[:, order], questions.mask[:, order])
    np.testing.assert_array_equal(
        jax.vmap(heads.vote, (0, 0, None))(*moved, voters)[0], votes[:, order]
    )


def test_two_candidates_mirror_each_other():
    questions = random_questions(candidates=2, decimals=7)
    counts = heads.correct_counts(*questions)
    np.testing.assert_array_equal(counts.sum(0), 40)
    voters = heads.select_heads(counts, 0.7)
    mirrored = heads.Heads(voters.min_mask, voters.max_mask, voters.ok)
    elect = jax.vmap(heads.vote, (0, 0, None))
    one, other = (elect(*questions[:2], who)[0] for who in (voters, mirrored))
    np.testing.assert_array_equal(one, other[:, ::-1])


def test_one_candidate_is_always_the_answer():
    mask = jnp.array([True, False])
    voters = heads.heads_from_indices([0], [2], 4)
    assert heads.vote(jnp.array([[1.0] * 4, [9.0] * 4]), mask, voters)[1] == 0


def test_ties_go_to_the_first_candidate():
    voters = heads.heads_from_indices([0], [1], 2)
    norms = jnp.array([[1.0, 1.0], [1.0, 1.0], [0.5, 2.0]])
    votes, prediction = heads.vote(norms, jnp.ones(3, bool), voters)
    np.testing.assert_array_equal(votes, [2, 0, 0])
    split = jnp.array([[1.0, 3.0], [2.0, 2.0], [0.0, 1.0]])
    votes, prediction = heads.vote(split, jnp.ones(3, bool), voters)
    np.testing.assert_array_equal(votes, [0, 1, 1])
    assert prediction == 1


def test_weights_count_as_votes():
    voters = heads.heads_from_indices([0, 1], [], 2)
    norms = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    votes, prediction = heads.vote(norms, jnp.ones(2, bool), voters, jnp.array([0.25, 0.5]))
    np.testing.assert_array_equal(votes, [0.25, 0.5])
    assert prediction == 1


@pytest.mark.parametrize("there", [[0, 1], [1, 3], [2, 3]])
def test_candidates_that_do_not_exist_never_win(there):
    """With weights accuracy - 1/C most are below 0: the least negative total wins."""
    mask = jnp.isin(jnp.arange(4), jnp.array(there))
    norms = jnp.zeros((4, 3)).at[there[0]].set(jnp.array([1.0, 2.0, 1.0]))
    norms = norms.at[there[1]].set(jnp.array([2.0, 1.0, 2.0]))
    voters = heads.heads_from_indices([0, 1, 2], [], 3)
    votes, prediction = heads.vote(norms, mask, voters, jnp.array([-1.5, -1.4, -0.3]))
    np.testing.assert_allclose(votes[jnp.array(there)], [-1.4, -1.8])
    assert prediction == there[0]
    unanimous = heads.vote(norms, mask, voters, jnp.array([-0.5, 0.0, -0.3]))[1]
    assert unanimous == there[0]  # no votes at all are more than -0.8


def test_the_only_candidate_leads_by_its_votes():
    votes = np.array([[3, 5, 0], [0, 2, 4]])
    np.testing.assert_array_equal(figures.margins(votes, np.array([1, 1])), [2, -2])
    np.testing.assert_array_equal(figures.margins(np.array([[6]]), np.array([0])), [6])


def test_the_largest_is_always_one_that_is_there():
    mask = jnp.array([[False, True, True, False], [False, False, True, True], [False] * 4])
    nothing = jnp.full((3, 4), -jnp.inf)
    np.testing.assert_array_equal(heads.largest_of(nothing, mask), [1, 2, 0])
    values = jnp.array([9, -7, -5, 9])
    lowest = jnp.iinfo(jnp.int32).min
    for typed in (values, values.astype(jnp.float32)):
        whole = jnp.broadcast_to(typed, (3, 4))
        np.testing.assert_array_equal(heads.largest_of(whole, mask), [2, 3, 0])
    assert heads.largest_of(jnp.full(4, lowest), mask[0]) == 1
    assert baselines.most_likely(nothing, mask).tolist() == [1, 2, 0]


def test_json_goes_there_and_back():
    voters = heads.heads_from_indices([0, 5], [7], 8)
    text = heads.heads_to_json(voters, layers=2)
    assert json.loads(text)["num_heads"] == 4
    jax.tree.map(np.testing.assert_array_equal, heads.heads_from_json(text, 8), voters)
    with pytest.raises(UserError, match="a model with 8 heads; this one has 12"):
        heads.heads_from_json(text, 12)
    for bad in ("{", "[]", '{"heads_max": [0]}', text.replace("7", "9"), text.replace("7", "5")):
        with pytest.raises(UserError, match="heads: not a list of voting heads"):
            heads.heads_from_json(bad)


def test_heads_are_numbers_of_a_model_of_these_layers():
    text = heads.heads_to_json(heads.heads_from_indices([0, 5], [7], 8), layers=2)
    for own, change in (
        ("[0, 5]", "[0, 5.5]"),
        ("[0, 5]", "[false, 5]"),
        ("2", '"2"'),
        ("4", "-4"),
    ):
        with pytest.raises(UserError, match="heads: not a list of voting heads"):
            heads.heads_from_json(text.replace(own, change, 1))
    with pytest.raises(UserError, match="heads: not a list of voting heads"):
        heads.heads_from_json("[" * 100_000)
    assert heads.heads_to_indices(heads.heads_from_json(text, 8, 2)) == ([0, 5], [7])
    with pytest.raises(UserError, match="a model with 2 layers; this one has 4"):
        heads.heads_from_json(text, 8, 4)


def test_nan_never_wins():
    nan, mask = jnp.nan, jnp.ones(3, bool)
    assert baselines.most_likely(jnp.array([[nan, -9.0, -3.0]]), mask[None]).tolist() == [2]
    assert heads.largest_of(jnp.full(3, nan), jnp.array([False, True, True])) == 1
    chosen = heads.choices(jnp.array([[nan, 1.0], [2.0, nan], [1.0, 3.0]]), mask)
    assert (chosen.largest.tolist(), chosen.smallest.tolist()) == ([1, 2], [2, 0])


def test_a_head_of_nan_has_no_vote_and_is_never_right():
    """Not even for a first candidate."""
    norms = jnp.full((1, 3, 2), jnp.nan).at[0, :, 1].set(jnp.array([2.0, 1.0, 3.0]))
    mask, everyone = jnp.ones((1, 3), bool), heads.heads_from_indices([0, 1], [], 2)
    votes, elected = heads.vote(norms[0], mask[0], everyone)
    np.testing.assert_array_equal(votes, [0, 0, 1])
    assert elected == 2
    assert heads.correct_counts(norms, mask, jnp.array([0])).tolist() == [[0, 0], [0, 0]]


def test_published_heads_go_there_and_back():
    file = Path(HEADS) / "golden" / "novo" / "heads.json"
    if not HEADS or not file.is_file():
        pytest.skip("the published lists of heads are not here")
    for of_model in json.loads(file.read_text())["heads"].values():
        for lists in of_model.values():
            voters = heads.heads_from_indices(lists["heads_max"], lists["heads_min"], 1024)
            again = heads.heads_from_json(heads.heads_to_json(voters, 32), 1024)
            assert heads.heads_to_indices(again) == (lists["heads_max"], lists["heads_min"])
            assert max(len(lists["heads_max"]), len(lists["heads_min"])) <= 154


def test_many_draws_are_a_loop_over_draws():
    pool, judged = random_questions(1), random_questions(2)
    key = jax.random.key(3)
    settings = {"draws": 5, "samples": 12, "q": 0.7}
    drawn = jax.jit(lambda key, *sets: resample.bootstrap(key, *sets, **settings))(
        key, pool, judged
    )
    for place, one in enumerate(jax.random.split(key, 5)):
        chosen = np.asarray(jax.random.permutation(one, 40)) < 12
        voters = heads.fit(*(part[chosen] for part in pool), 0.7)
        np.testing.assert_array_equal(drawn.heads.max_mask[place], voters.max_mask)
        predictions = heads.predict(*judged[:2], voters)
        expected = np.mean(np.asarray(predictions) == np.asarray(judged.labels))
        np.testing.assert_allclose(drawn.accuracy[place], expected, rtol=1e-6)


def test_drawn_questions_are_not_judged():
    pool = random_questions(1)
    drawn = resample.bootstrap(jax.random.key(0), pool, draws=3, samples=12, q=0.7)
    for place, one in enumerate(jax.random.split(jax.random.key(0), 3)):
        rest = np.asarray(jax.random.permutation(one, 40)) >= 12
        voters = jax.tree.map(lambda leaf, place=place: leaf[place], drawn.heads)
        predictions = np.asarray(heads.predict(*pool[:2], voters))
        expected = (predictions == np.asarray(pool.labels))[rest].mean()
        np.testing.assert_allclose(drawn.accuracy[place], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="samples: expected fewer than the pool's 40"):
        resample.bootstrap(jax.random.key(0), pool, samples=40)


def test_transfer_to_the_own_set_is_the_own_accuracy():
    one, other = random_questions(1), random_questions(2)
    table = resample.transfer({"one": one}, {"one": one, "other": other}, q=0.7)
    voters = heads.fit(*one, 0.7)
    for name, questions in (("one", one), ("other", other)):
        right = heads.predict(*questions[:2], voters) == questions.labels
        assert table["one"][name] == pytest.approx(float(jnp.mean(right)))


def test_an_informative_head_is_found_by_single_best_and_by_the_probe():
    questions = random_questions(4)
    bonus = 6.0 * (jnp.arange(4) == questions.labels[:, None])
    questions = questions._replace(norms=questions.norms.at[..., 7].add(bonus))
    counts = heads.correct_counts(*questions)
    best = baselines.single_best(counts)
    assert heads.heads_to_indices(best) == ([7], [])
    weights = jax.jit(baselines.probe)(*questions)
    assert jnp.argmax(jnp.abs(weights)) == 7
    assert (baselines.probe_predict(weights, *questions[:2]) == questions.labels).mean() > 0.95


def test_random_heads_are_as_many_as_asked_for_and_all_heads_are_all():
    drawn = baselines.random_heads(jax.random.key(0), 24, jnp.int32(5), jnp.int32(3))
    assert (drawn.max_mask.sum(), drawn.min_mask.sum()) == (5, 3)
    assert not (drawn.max_mask & drawn.min_mask).any()
    everyone = baselines.all_heads(heads.correct_counts(*random_questions()))
    assert (everyone.max_mask ^ everyone.min_mask).all()


def test_chance_and_majority():
    mask = jnp.array([[True, True, False, False], [True] * 4])
    assert baselines.chance(mask) == pytest.approx(0.375)
    labels = jnp.array([3, 3, 3, 1, 1, 0])
    np.testing.assert_array_equal(baselines.majority(labels, mask), [1, 3])
