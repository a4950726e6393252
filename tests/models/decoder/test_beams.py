"""Beam search finds what trying all continuations finds, and what `transformers` does."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.models import decoder
from jaxmethods.models.decoder.beams import best_continuations
from tests.models.decoder.decoders import LLAMA, random_ids, random_params

SMALL = LLAMA.model_copy(update={"vocab_size": 5, "layers": 1})
END, N = 3, 3
SEARCH = jax.jit(
    decoder.beam_search, static_argnames=("config", "beams", "new_tokens", "length_penalty", "end")
)


@pytest.fixture(scope="module")
def params():
    return random_params(SMALL, scale=0.7)


@pytest.fixture(scope="module")
def every(params):
    """All continuations of one prompt that end or are N long, with their log probabilities."""
    ids = random_ids(SMALL, 1, 4)
    texts = np.array(list(itertools.product(range(5), repeat=N)))
    rows = jnp.concatenate([jnp.repeat(ids, len(texts), 0), texts], axis=1)
    logits = jax.nn.log_softmax(decoder.forward(params, SMALL, rows).logits[:, 3:-1], -1)
    each = np.take_along_axis(np.asarray(logits), texts[..., None], -1)[..., 0]
    found = {}
    for text, own in zip(texts.tolist(), each, strict=True):
        length = text.index(END) + 1 if END in text else N
        found[tuple(text[:length])] = float(own[:length].sum())
    return ids, found


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_search_finds_all_continuations_in_their_order(params, every, penalty):
    ids, scores = every
    found = SEARCH(params, SMALL, ids, beams=100, new_tokens=N, length_penalty=penalty, end=END)
    number = len(scores)
    assert number < 100
    texts = [
        tuple(row[:length])
        for row, length in zip(found.tokens[0].tolist(), found.lengths[0].tolist(), strict=True)
    ]
    assert set(texts[:number]) == set(scores)
    assert not np.any(found.lengths[0, number:])
    np.testing.assert_allclose(
        found.scores[0, :number], [scores[text] for text in texts[:number]], rtol=1e-4, atol=1e-5
    )
    ranked = [scores[text] / len(text) ** penalty for text in texts[:number]]
    assert np.all(np.diff(ranked) < 1e-5)


def test_one_beam_is_greedy_decoding(params):
    ids = random_ids(SMALL, 3, 4)
    greedy = decoder.generate(params, SMALL, ids, new_tokens=5, end=END)
    found = SEARCH(params, SMALL, ids, beams=1, new_tokens=5, end=END)
    np.testing.assert_array_equal(found.tokens[:, 0], greedy.tokens)
    np.testing.assert_array_equal(found.lengths[:, 0], greedy.lengths)


def test_a_beam_of_nan_makes_way_for_the_others():
    logits = jnp.zeros((1, 2, 3)).at[0, 0, 1].set(jnp.nan)
    scores, parents, _ = best_continuations(jnp.zeros((1, 2)), jnp.zeros((1, 2), bool), logits)
    np.testing.assert_array_equal(parents, [[1, 1]])
    assert jnp.isfinite(scores).all()


def test_no_rows_have_no_beams(params):
    found = SEARCH(params, SMALL, jnp.ones((0, 4), int), beams=2, new_tokens=2)
    assert found.tokens.shape == (0, 2, 2)


def test_a_row_depends_neither_on_padding_nor_on_its_neighbors(params):
    ids = random_ids(SMALL, 3, 5)
    mask = jnp.arange(5) < jnp.array([[5], [2], [0]])
    together = SEARCH(params, SMALL, ids, beams=3, new_tokens=4, mask=mask, end=END)
    alone = SEARCH(params, SMALL, ids[1:2, :2], beams=3, new_tokens=4, end=END)
    np.testing.assert_array_equal(together.tokens[1], alone.tokens[0])
    np.testing.assert_allclose(together.scores[1], alone.scores[0], rtol=1e-5, atol=1e-5)
    assert not np.any(together.lengths[2]), "a row without a token is not continued"
    assert not np.any(together.tokens[2])


@pytest.mark.slow
def test_beams_are_those_of_transformers(params, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    decoder.save(tmp_path, SMALL, params)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = random_ids(SMALL, 2, 4)
    with torch.no_grad():
        theirs = model.generate(
            torch.tensor(np.asarray(ids)),
            attention_mask=torch.ones(2, 4, dtype=torch.long),
            max_new_tokens=6,
            num_beams=3,
            num_return_sequences=3,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    found = SEARCH(params, SMALL, ids, beams=3, new_tokens=6)
    np.testing.assert_array_equal(found.tokens.reshape(6, 6), theirs[:, 4:].numpy())


@pytest.mark.parametrize("name", ["beams", "new_tokens"])
def test_nothing_to_search_is_refused(params, name):
    given = {"beams": 2, "new_tokens": 3} | {name: 0}
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        decoder.beam_search(params, SMALL, random_ids(SMALL, 1, 2), **given)
