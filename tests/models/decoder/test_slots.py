"""Rows that take the slots of others are those of single decoding, in fewer steps than batches."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.models.decoder import generate, generate_in_slots
from jaxmethods.models.decoder.generation import GREEDY, Sampling
from tests.models.decoder.decoders import CONFIGS, LLAMA, random_ids, random_params
from tests.programs import quick

NAMES = ("llama", "mistral")
ROWS, LONGEST, NEW, SLOTS = 23, 6, 12, 5
DRAWN = Sampling(temperature=1.0, top_k=8, top_p=0.9)


def prompts(config):
    """Prompts of 1 to 6 tokens, with padding anywhere, one without a token."""
    mask = np.random.default_rng(0).random((ROWS, LONGEST)) < 0.7
    mask[:, 2] = True
    mask[7] = False
    return random_ids(config, ROWS, LONGEST), mask


@partial(jax.jit, static_argnames=("config", "slots", "sampling", "end"))
def in_slots(params, config, ids, mask, key=None, *, slots, sampling=GREEDY, end=None):
    options = {"new_tokens": NEW, "sampling": sampling, "end": end, "pad": -1}
    return generate_in_slots(params, config, ids, key, mask=mask, slots=slots, **options)


@pytest.fixture(scope="module", params=quick(NAMES, "mistral"))
def written(request):
    """A model, its prompts, an end token that rows reach sooner or later, and what slots gave."""
    config = CONFIGS[request.param]
    params = random_params(config, scale=0.5)
    ids, mask = prompts(config)
    single = jax.jit(partial(generate, config=config, new_tokens=NEW))
    free = single(params, ids=ids, mask=mask)
    end = int(np.bincount(np.asarray(free.tokens)[:, 2:].ravel()).argmax())
    return config, params, ids, mask, end, in_slots(params, config, ids, mask, slots=SLOTS, end=end)


def test_rows_are_those_of_single_decoding(written):
    config, params, ids, mask, end, found = written
    single = jax.jit(partial(generate, config=config, new_tokens=NEW, end=end, pad=-1))
    for row in range(ROWS):
        alone = single(params, ids=ids[row : row + 1], mask=mask[row : row + 1])
        np.testing.assert_array_equal(found.tokens[row], alone.tokens[0])
        assert found.lengths[row] == alone.lengths[0]
    assert found.lengths[7] == 0, "it has no prompt"
    assert len(np.unique(found.lengths)) > 4


def test_slots_take_fewer_steps_than_batches(written):
    lengths = np.asarray(written[-1].lengths)
    batches = [lengths[start : start + SLOTS] for start in range(0, ROWS, SLOTS)]
    of_batches = sum(max(one.max() - 1, 0) for one in batches)  # the first comes with the prompt
    assert written[-1].steps < 0.8 * of_batches
    assert SLOTS * written[-1].steps >= (lengths - 1).sum()


def test_steps_are_those_of_slots_that_are_refilled_at_once(written):
    lengths = np.asarray(written[-1].lengths)
    waiting, left, steps = [n - 1 for n in lengths if n], [0] * SLOTS, 0
    while waiting or any(left):
        for slot in range(SLOTS):  # a row of one token leaves its slot free
            while waiting and not left[slot]:
                left[slot] = waiting.pop(0)
        if any(left):
            steps += 1
        left = [max(n - 1, 0) for n in left]
    assert written[-1].steps == steps


@pytest.mark.slow
def test_drawn_tokens_are_those_of_their_keys():
    ids, mask = prompts(LLAMA)
    params, keys = random_params(LLAMA, scale=0.5), jax.random.split(jax.random.key(3), ROWS)
    found = in_slots(params, LLAMA, ids, mask, keys, slots=9, sampling=DRAWN, end=4)
    single = jax.jit(partial(generate, config=LLAMA, new_tokens=NEW, end=4, pad=-1, sampling=DRAWN))
    together = single(params, ids=ids, mask=mask, key=keys)
    np.testing.assert_array_equal(found.tokens, together.tokens)
    np.testing.assert_array_equal(found.lengths, together.lengths)


def test_no_rows_take_no_steps():
    found = in_slots(
        random_params(LLAMA), LLAMA, np.zeros((0, 3), int), np.ones((0, 3), bool), slots=4
    )
    assert found.tokens.shape == (0, NEW)
    assert found.steps == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots: expected 1 or more, got 0"),
        ({"new_tokens": 0}, "new_tokens: expected 1 or more, got 0"),
        ({"ids": jnp.ones((2, 0), int)}, "ids: expected prompts of at least one token"),
        ({"sampling": DRAWN}, "key: is needed"),
        ({"sampling": Sampling(top_k=-2)}, "sampling.top_k: expected"),
    ],
)
def test_what_cannot_be_continued_is_one_line(options, message):
    given = {"ids": jnp.ones((2, 3), int), "new_tokens": 2, "slots": 2} | options
    with pytest.raises(ValueError, match=message):
        generate_in_slots({}, LLAMA, **given)
