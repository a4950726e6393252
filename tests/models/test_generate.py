"""Decoding with a cache is repeated forward passes, and drawing keeps to what it is told."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmethods.models import decoder
from jaxmethods.models.generate import Sampling, generate, pick, restrict
from tests.models.decoders import LLAMA, random_ids, random_params

DRAWN = Sampling(temperature=1.0, top_k=8, top_p=0.9)
GENERATE = jax.jit(generate, static_argnames=("config", "new_tokens", "sampling"))


@pytest.fixture(scope="module")
def params():
    return random_params(LLAMA, scale=0.5)


def test_greedy_tokens_are_those_of_whole_forward_passes(params):
    ids = random_ids(LLAMA, 2, 5)
    continued = GENERATE(params, LLAMA, ids, new_tokens=6)
    text = jnp.concatenate([ids, continued.tokens], axis=1)
    best = jnp.argmax(decoder.forward(params, LLAMA, text).logits, -1)
    np.testing.assert_array_equal(continued.tokens, best[:, 4:-1])
    np.testing.assert_array_equal(continued.lengths, [6, 6])


def test_a_row_depends_neither_on_padding_nor_on_its_neighbours(params):
    ids = random_ids(LLAMA, 3, 6)
    lengths = jnp.array([6, 2, 4])
    keys = jax.random.split(jax.random.key(7), 3)
    right = jnp.arange(6) < lengths[:, None]
    options = {"new_tokens": 5, "sampling": DRAWN}
    together = GENERATE(params, LLAMA, ids, keys, mask=right, **options)

    order = jnp.array([2, 0, 1])
    moved = GENERATE(params, LLAMA, ids[order], keys[order], mask=right[order], **options)
    np.testing.assert_array_equal(moved.tokens, together.tokens[order])

    left_ids = jnp.stack([jnp.roll(row, 6 - n) for row, n in zip(ids, lengths, strict=True)])
    left = GENERATE(params, LLAMA, left_ids, keys, mask=right[:, ::-1], **options)
    np.testing.assert_array_equal(left.tokens, together.tokens)

    alone = GENERATE(params, LLAMA, ids[1:2, :2], keys[1:2], **options)
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[1])


def test_a_row_ends_with_its_end_token_and_padding(params):
    ids = random_ids(LLAMA, 2, 5)
    free = GENERATE(params, LLAMA, ids, new_tokens=6).tokens
    end = int(free[0, 2])
    first = [int(np.argmax(np.append(row == end, True))) for row in np.asarray(free)]
    ended = GENERATE(params, LLAMA, ids, new_tokens=6, end=end, pad=-1)
    for row, (tokens, stop) in enumerate(zip(ended.tokens, first, strict=True)):
        np.testing.assert_array_equal(tokens[: stop + 1], free[row, : stop + 1])
        assert (tokens[stop + 1 :] == -1).all()
        assert ended.lengths[row] == min(stop + 1, 6)


def test_embeddings_are_continued_like_the_tokens_they_stand_for(params):
    ids = random_ids(LLAMA, 2, 5)
    embeds = params["embed"]["tokens"][ids]
    by_id = GENERATE(params, LLAMA, ids, new_tokens=6)
    by_embedding = GENERATE(params, LLAMA, inputs_embeds=embeds, new_tokens=6)
    np.testing.assert_array_equal(by_id.tokens, by_embedding.tokens)


def test_drawing_needs_a_key_and_one_kind_of_prompt(params):
    with pytest.raises(ValueError, match="key: is needed"):
        generate(params, LLAMA, jnp.ones((1, 2), int), new_tokens=1, sampling=DRAWN)
    with pytest.raises(ValueError, match="either ids or inputs_embeds"):
        generate(params, LLAMA, new_tokens=1)


logits_strategy = st.lists(st.floats(-8, 8, width=32), min_size=12, max_size=12)
RESTRICT = jax.jit(restrict, static_argnames="top_k")


@given(logits_strategy, st.floats(0.05, 0.99))
def test_the_nucleus_is_the_smallest_set_that_holds_p(values, top_p):
    logits = np.asarray(values, np.float32)
    kept = np.isfinite(np.asarray(RESTRICT(jnp.asarray(logits), top_p=top_p)))
    probability = np.asarray(jax.nn.softmax(jnp.asarray(logits)))
    assert kept.any()
    assert probability[kept].sum() >= top_p - 1e-5
    assert probability[kept].min() >= probability[~kept].max(initial=0)
    without_the_least = probability[kept].sum() - probability[kept].min()
    assert kept.sum() == 1 or without_the_least < top_p + 1e-5


@given(logits_strategy, st.sampled_from([1, 5, 12, 14]))
def test_top_k_keeps_the_k_most_likely(values, top_k):
    logits = np.asarray(values, np.float32)
    kept = np.isfinite(np.asarray(RESTRICT(jnp.asarray(logits), top_k=top_k)))
    least = np.sort(logits)[::-1][min(top_k, len(logits)) - 1]
    np.testing.assert_array_equal(kept, logits >= least)


def test_a_nucleus_whose_mass_is_exactly_p_takes_nothing_more():
    """Four equal tokens: two of them hold one half."""
    for p, number in [(0.25, 1), (0.5, 2), (0.75, 3), (0.500001, 3)]:
        kept = np.isfinite(np.asarray(RESTRICT(jnp.zeros(4), top_p=p)))
        np.testing.assert_array_equal(kept, np.arange(4) < number)


def test_drawing_from_the_most_likely_token_alone_is_greedy():
    logits = jax.random.normal(jax.random.key(0), (30, 5))
    keys = jax.random.split(jax.random.key(1), 30)
    for sampling in (Sampling(temperature=2.0, top_k=1), Sampling(temperature=2.0, top_p=0.0)):
        np.testing.assert_array_equal(pick(logits, keys, 0, sampling), jnp.argmax(logits, -1))


def test_the_nucleus_of_no_mass_is_the_most_likely_token():
    kept = np.isfinite(np.asarray(RESTRICT(jnp.array([0.0, 2.0, 1.0]), top_p=0.0)))
    np.testing.assert_array_equal(kept, [False, True, False])


def test_frequencies_of_drawn_tokens_are_their_probabilities():
    logits = jnp.array([0.0, 1.0, 2.0, -3.0])
    rows = 4000
    keys = jax.random.split(jax.random.key(0), rows)
    drawn = pick(jnp.broadcast_to(logits, (rows, 4)), keys, 3, Sampling(temperature=0.5))
    share = np.bincount(drawn, minlength=4) / rows
    np.testing.assert_allclose(share, jax.nn.softmax(logits / 0.5), atol=0.03)
    again = pick(jnp.broadcast_to(logits, (rows, 4)), keys, 4, Sampling(temperature=0.5))
    assert (drawn != again).any()
