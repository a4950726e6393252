"""Decoding with a cache is repeated forward passes, and drawing keeps to what it is told."""

from __future__ import annotations

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmethods.models import decoder
from jaxmethods.models.decoder.generation import Sampling, generate, pick, restrict
from tests.models.decoder.decoders import CONFIGS, LLAMA, random_ids, random_params
from tests.programs import quick

DRAWN = Sampling(temperature=1.0, top_k=8, top_p=0.9)
GENERATE = jax.jit(generate, static_argnames=("config", "new_tokens", "sampling"))
IN_SLOTS = partial(decoder.generate_in_slots, slots=1)
ONE_BEAM = partial(decoder.beam_search, beams=1)
WAYS = {
    "generate": GENERATE,
    "in slots": jax.jit(IN_SLOTS, static_argnames=("config", "new_tokens")),
    "one beam": jax.jit(ONE_BEAM, static_argnames=("config", "new_tokens")),
}


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


def test_tokens_are_the_same_where_integers_are_of_64_bits(params):
    ids = np.asarray(random_ids(LLAMA, 2, 5))
    expected = GENERATE(params, LLAMA, ids, new_tokens=3)
    with jax.enable_x64(True):
        own = generate(params, LLAMA, jnp.asarray(ids), new_tokens=3)
    np.testing.assert_array_equal(own.tokens, expected.tokens)


def test_a_row_depends_neither_on_padding_nor_on_its_neighbors(params):
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


@pytest.mark.parametrize("how", WAYS)
def test_tokens_under_x64_are_those_without(params, how):
    ids, mask = random_ids(LLAMA, 2, 3), jnp.array([[0, 1, 1], [1, 1, 1]])
    free = GENERATE(params, LLAMA, ids, new_tokens=4, mask=mask).tokens
    with jax.enable_x64(True), warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # mixed integers will be errors
        found = WAYS[how](params, LLAMA, ids, new_tokens=4, mask=mask).tokens
    np.testing.assert_array_equal(found.reshape(free.shape), free)


@pytest.mark.parametrize("how", WAYS)
def test_a_row_goes_on_no_further_where_the_model_says_nan(params, how):
    """Of row 0 from the start, of row 1 behind its second token."""
    ids = jnp.array([[5, 4, 3], [6, 7, 8]])
    free = GENERATE(params, LLAMA, ids, new_tokens=4).tokens[1]
    assert free[1] not in (free[0], *ids.ravel())
    table = params["embed"]["tokens"].at[jnp.array([5, free[1]])].set(jnp.nan)
    broken = params | {"embed": {"tokens": table}}
    found = WAYS[how](broken, LLAMA, ids, new_tokens=4)
    # A search that can't go on has found nothing.
    said, length = ([0, 0], 0) if how == "one beam" else (free[:2], 2)
    np.testing.assert_array_equal(found.lengths.ravel(), [0, length])
    np.testing.assert_array_equal(found.tokens.reshape(2, 4), [[0] * 4, [*said, 0, 0]])


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


def test_any_of_several_tokens_ends_a_row(params):
    ids = random_ids(LLAMA, 2, 5)
    free = np.asarray(GENERATE(params, LLAMA, ids, new_tokens=6).tokens)
    ends = (int(free[0, 3]), int(free[1, 1]))
    found = GENERATE(params, LLAMA, ids, new_tokens=6, end=ends)
    expected = [1 + int(np.argmax(np.isin(row, ends))) for row in free]
    np.testing.assert_array_equal(found.lengths, expected)


def test_embeddings_are_continued_like_the_tokens_they_stand_for(params):
    ids = random_ids(LLAMA, 2, 5)
    embeds = params["embed"]["tokens"][ids]
    by_id = GENERATE(params, LLAMA, ids, new_tokens=6)
    by_embedding = GENERATE(params, LLAMA, inputs_embeds=embeds, new_tokens=6)
    np.testing.assert_array_equal(by_id.tokens, by_embedding.tokens)


def test_no_new_tokens_are_none(params):
    none = generate(params, LLAMA, jnp.ones((2, 3), int), new_tokens=0)
    assert none.tokens.shape == (2, 0)
    np.testing.assert_array_equal(none.lengths, [0, 0])


def test_no_rows_and_one_token(params):
    empty = GENERATE(params, LLAMA, jnp.ones((0, 3), int), new_tokens=4)
    assert empty.tokens.shape == (0, 4)
    ids = random_ids(LLAMA, 2, 5)
    best = jnp.argmax(decoder.forward(params, LLAMA, ids).logits[:, -1], -1)
    one = GENERATE(params, LLAMA, ids, new_tokens=1, end=int(best[0]))
    np.testing.assert_array_equal(one.tokens[:, 0], best)
    np.testing.assert_array_equal(one.lengths, [1, 1])


def test_a_row_that_begins_with_its_end_is_over(params):
    ids = random_ids(LLAMA, 1, 5)
    end = int(GENERATE(params, LLAMA, ids, new_tokens=1).tokens[0, 0])
    over = GENERATE(params, LLAMA, ids, new_tokens=4, end=end, pad=7)
    np.testing.assert_array_equal(over.tokens, [[end, 7, 7, 7]])
    np.testing.assert_array_equal(over.lengths, [1])


def test_a_row_without_tokens_gets_none(params):
    ids = random_ids(LLAMA, 2, 5)
    mask = jnp.array([[False] * 5, [True] * 5])
    found = GENERATE(params, LLAMA, ids, new_tokens=3, mask=mask, pad=7)
    np.testing.assert_array_equal(found.tokens[0], [7, 7, 7])
    np.testing.assert_array_equal(found.lengths, [0, 3])
    alone = GENERATE(params, LLAMA, ids[1:], new_tokens=3)
    np.testing.assert_array_equal(found.tokens[1:], alone.tokens)


@pytest.mark.parametrize("name", quick(["mistral", "llama dynamic", "opt"], "mistral"))
def test_prompts_with_holes_are_continued_as_their_tokens_alone(name):
    config = CONFIGS[name]
    params = random_params(config, scale=0.5)
    mask = jnp.array([[1, 0, 1, 1, 0, 1, 0], [1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1]])
    ids = random_ids(config, *mask.shape)
    found = GENERATE(params, config, ids, new_tokens=7, mask=mask)
    alone = GENERATE(params, config, ids[mask == 1].reshape(3, 4), new_tokens=7)
    np.testing.assert_array_equal(found.tokens, alone.tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": DRAWN}, "key: is needed"),
        ({"sampling": DRAWN, "key": jnp.zeros(2, jnp.uint32)}, "key: expected a typed one"),
        (
            {"sampling": DRAWN, "key": jax.random.split(jax.random.key(0), 3)},
            r"key: expected one, or one for each of 2 rows, got \(3,\)",
        ),
        ({"new_tokens": -1}, "new_tokens: expected 0 or more, got -1"),
        ({"ids": jnp.ones((2, 0), int)}, "ids: expected prompts of at least one token"),
        ({"sampling": Sampling(temperature=-1.0)}, "sampling.temperature: expected a finite"),
        ({"sampling": Sampling(temperature=np.nan)}, "sampling.temperature: expected a finite"),
        ({"sampling": Sampling(top_k=-2)}, r"sampling.top_k: expected 0 \(all tokens\) or more"),
        ({"sampling": Sampling(top_p=1.5)}, r"sampling.top_p: expected a share in \[0, 1\], got"),
        ({"inputs_embeds": jnp.ones((2, 3, 24))}, "either ids or inputs_embeds, got 2"),
    ],
)
def test_what_cannot_be_continued_is_one_line(params, options, message):
    with pytest.raises(ValueError, match=message):
        generate(params, LLAMA, **{"ids": jnp.ones((2, 3), int), "new_tokens": 2, **options})


def test_learned_positions_end_with_their_table():
    config = CONFIGS["opt"].model_copy(update={"max_positions": 8, "layers": 1})
    params, ids = random_params(config), random_ids(config, 1, 8)
    with pytest.raises(ValueError, match="a prompt of 8 tokens and 2 new ones are more than"):
        generate(params, config, ids, new_tokens=2)
    shorter = jnp.arange(8) < 7  # padding takes no position; the last new token is not fed
    assert GENERATE(params, config, ids, new_tokens=1).lengths == 1
    assert GENERATE(params, config, ids, new_tokens=2, mask=shorter[None]).lengths == 2


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
    for p, number in [(0.25, 1), (0.5, 2), (0.75, 3), (0.5001, 3)]:
        kept = np.isfinite(np.asarray(RESTRICT(jnp.zeros(4), top_p=p)))
        np.testing.assert_array_equal(kept, np.arange(4) < number)


def test_drawing_from_the_most_likely_token_alone_is_greedy():
    logits = jax.random.normal(jax.random.key(0), (30, 5))
    keys = jax.random.split(jax.random.key(1), 30)
    for sampling in (Sampling(temperature=2.0, top_k=1), Sampling(temperature=2.0, top_p=0.0)):
        np.testing.assert_array_equal(pick(logits, keys, 0, sampling), jnp.argmax(logits, -1))


def test_frequencies_of_drawn_tokens_are_their_probabilities():
    logits = jnp.array([0.0, 1.0, 2.0, -3.0])
    rows = 4000
    keys = jax.random.split(jax.random.key(0), rows)
    drawn = pick(jnp.broadcast_to(logits, (rows, 4)), keys, 3, Sampling(temperature=0.5))
    share = np.bincount(drawn, minlength=4) / rows
    np.testing.assert_allclose(share, jax.nn.softmax(logits / 0.5), atol=0.03)
    again = pick(jnp.broadcast_to(logits, (rows, 4)), keys, 4, Sampling(temperature=0.5))
    assert (drawn != again).any()


@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-50])
def test_a_tiny_temperature_draws_the_most_likely(temperature):
    logits = jnp.array([[3.0, 9.0, 8.5, -jnp.inf], [-200.0, -900.0, -100.0, -100.5]])
    keys = jax.random.split(jax.random.key(0), 2)
    np.testing.assert_array_equal(pick(logits, keys, 0, Sampling(temperature)), [1, 2])


@pytest.mark.parametrize("tokens", [5, 20, 1000])
def test_a_share_of_equal_tokens_is_their_number(tokens):
    shares = jnp.arange(1, tokens) / tokens
    kept = jax.vmap(lambda share: restrict(jnp.zeros(tokens), top_p=share))(shares)
    np.testing.assert_array_equal(jnp.isfinite(kept).sum(-1), jnp.arange(1, tokens))


def test_the_nucleus_of_no_mass_is_the_most_likely_token():
    logits = jnp.array([1.0, 3.0, 2.0])
    for share in (0.0, 1e-9):
        np.testing.assert_array_equal(restrict(logits, top_p=share), [-jnp.inf, 3.0, -jnp.inf])
    np.testing.assert_array_equal(restrict(logits, top_p=1.0), logits)


@pytest.mark.slow
def test_the_nucleus_holds_in_half_precision():
    logits = jnp.zeros(3000, jnp.bfloat16)
    assert jnp.isfinite(restrict(logits, top_p=0.5)).sum() == 1500
