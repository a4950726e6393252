"""The speech-text model: rows don't depend on each other, nor on padding."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.lsm import bias, connect
from jaxmethods.lsm.connector import Speech
from jaxmethods.lsm.model import (
    IGNORED,
    Text,
    assemble,
    pack,
    packed_losses,
    respond,
    response_losses,
)
from jaxmethods.models import decoder
from tests.lsm import small
from tests.programs import once

POLICIES = ("per_clip", "fixed")


def asked(text):
    """The same rows, not answered yet."""
    return Text(text.prefix, text.prefix_mask, *(leaf[:, :2] for leaf in text[2:]))


@pytest.fixture(scope="module", params=POLICIES)
def answers(request):
    """(frames, lengths, text) -> answers, compiled once for a batch and once for a clip."""
    own = small.model(request.param)

    @jax.jit
    def program(frames, lengths, text):
        speech = connect(small.params()["connector"], own.connector, frames, lengths)
        found = respond(
            small.params()["language_model"], own.language_model, speech, text, new_tokens=5, end=2
        )
        return found.tokens, found.lengths

    return program


@pytest.mark.slow
def test_answers_of_20_random_batches_are_those_of_single_clips(answers):
    for seed in range(20):
        frames, text = small.frames(3, seed), asked(small.text(3, seed))
        lengths = jax.random.randint(jax.random.key(seed), (3,), 1, small.FRAMES)
        together = answers(frames, lengths, text)
        for row in range(3):
            cut = slice(row, row + 1)
            alone = answers(frames[cut], lengths[cut], jax.tree.map(lambda x, c=cut: x[c], text))
            for one, other in zip(alone, together, strict=True):
                np.testing.assert_array_equal(one[0], other[row])


@jax.jit
def losses(text, speech):
    own = small.params()["language_model"]
    return response_losses(own, small.LANGUAGE, assemble(own, speech, text), 6)


@jax.jit
def logits_of_rows(text, speech):
    own = small.params()["language_model"]
    rows = assemble(own, speech, text)
    found = decoder.forward(own, small.LANGUAGE, inputs_embeds=rows.embeds, mask=rows.mask)
    return jax.nn.log_softmax(found.logits), rows.labels


@once
def speech_of(lengths=(60, 60, 60)):
    connector = small.params()["connector"]
    return connect(connector, small.CONNECTOR, small.frames(3), jnp.asarray(lengths))


@once
def rows_of_text():
    return small.text(3)


MIXED = (60, 21, 3)


def test_what_padding_holds_does_not_matter():
    text, speech = rows_of_text(), speech_of(MIXED)
    found, learned = losses(text, speech)
    other = text._replace(
        prefix=np.where(text.prefix_mask, text.prefix, 9),
        suffix=np.where(text.suffix_mask, text.suffix, 9),
        labels=np.where(text.labels == IGNORED, -1, text.labels),
    )
    loud = np.where(np.asarray(speech.mask)[..., None], speech.tokens, np.float32(7))
    again, _ = losses(other, Speech(loud, speech.mask))
    np.testing.assert_allclose(again, found, atol=1e-6)
    np.testing.assert_array_equal(learned, text.labels != IGNORED)
    np.testing.assert_array_equal(np.asarray(found) > 0, learned)


def test_losses_are_those_of_all_logits():
    text, speech = rows_of_text(), speech_of()
    found, learned = losses(text, speech)
    log_probabilities, labels = map(np.asarray, logits_of_rows(text, speech))
    start = labels.shape[1] - text.suffix.shape[1]
    rows, places = np.nonzero(learned)
    expected = -log_probabilities[rows, start + places - 1, labels[rows, start + places]]
    np.testing.assert_allclose(np.asarray(found)[rows, places], expected, atol=1e-5)


def test_without_speech_it_is_the_language_model():
    text, speech = rows_of_text(), speech_of()
    nothing = Speech(speech.tokens, np.zeros(speech.mask.shape, bool))
    found, _ = losses(text, nothing)
    ids, learned = np.zeros((3, 11), np.int32), []
    for row in range(3):
        prompt = np.asarray(text.prefix[row])[np.asarray(text.prefix_mask[row])]
        said = np.asarray(text.suffix[row])[np.asarray(text.suffix_mask[row])]
        ids[row, : len(prompt) + len(said)] = [*prompt, *said]
        learned.append(np.arange(len(prompt) + 2, len(prompt) + len(said)))
    forward = jax.jit(lambda ids: decoder.forward(language_model(), small.LANGUAGE, ids).logits)
    log_probabilities = np.asarray(jax.nn.log_softmax(forward(ids)))
    for row, places in enumerate(learned):
        expected = -log_probabilities[row, places - 1, ids[row, places]]
        np.testing.assert_allclose(found[row, 2 : 2 + len(places)], expected, atol=1e-5)


def test_an_answer_is_what_the_loss_finds_likeliest():
    text, speech = asked(rows_of_text()), speech_of()
    found = respond(language_model(), small.LANGUAGE, speech, text, new_tokens=5, end=2)
    log_probabilities, _ = logits_of_rows(text, speech)
    np.testing.assert_array_equal(found.tokens[:, 0], np.argmax(log_probabilities[:, -1], -1))


def language_model():
    return small.params()["language_model"]


# Packing


@partial(jax.jit, static_argnums=2)
def packed(text, speech, length):
    rows = pack(assemble(language_model(), speech, text), 3, length)
    return rows, packed_losses(language_model(), small.LANGUAGE, rows, 12)


def test_packed_rows_have_the_losses_of_the_rows():
    text, speech = rows_of_text(), speech_of(MIXED)
    marked = text._replace(labels=np.where(text.labels == IGNORED, -1, text.labels))
    rows, (found, counted) = packed(marked, speech, 60)
    expected, learned = losses(text, speech)
    assert rows.lost == 0
    np.testing.assert_allclose(np.asarray(found)[counted], np.asarray(expected)[learned], atol=1e-5)
    np.testing.assert_array_equal(np.asarray(rows.segments) > 0, rows.mask)


def test_packed_rows_do_not_see_each_other():
    text, speech = rows_of_text(), speech_of(MIXED)
    _, (found, _) = packed(text, speech, 60)
    loud = np.array(speech.tokens)
    loud[0] *= -3
    _, (other, _) = packed(text, Speech(loud, speech.mask), 60)
    first = int(np.sum(np.asarray(text.labels[0]) != IGNORED))
    np.testing.assert_array_equal(found[:, first:], other[:, first:])
    assert not np.allclose(found[:, :first], other[:, :first])


def test_tokens_without_room_are_counted():
    text, speech = rows_of_text(), speech_of()
    rows, _ = packed(text, speech, 20)
    whole, _ = packed(text, speech, 60)
    assert rows.lost == int(whole.mask.sum()) - 20
    with pytest.raises(ValueError, match="together: expected a divisor of the 3 rows, got 2"):
        pack(assemble(language_model(), speech, text), 2, 40)


# Where answers come from


@pytest.fixture(scope="module")
def attribution():
    text, speech = rows_of_text(), speech_of(MIXED)
    sizes = text.prefix.shape[1], speech.mask.shape[1], text.suffix.shape[1]

    @jax.jit
    def program(text, speech):
        rows = assemble(language_model(), speech, text)
        segments = bias.segments_of(*sizes, batch=3)
        found = bias.attribute(language_model(), small.LANGUAGE, rows, segments)
        each = bias.attribute_each(language_model(), small.LANGUAGE, rows, segments)

        def loss(embeds):
            nats, learned = response_losses(
                language_model(), small.LANGUAGE, rows._replace(embeds=embeds), 6
            )
            return jnp.sum(nats) / jnp.sum(learned)

        products = jnp.abs(jnp.sum(rows.embeds * jax.grad(loss)(rows.embeds), -1))
        return found, rows, segments, products, each

    return program(text, speech)


@pytest.mark.slow
def test_rows_alone_are_traced_as_they_are_together(attribution):
    found, rows, _, _, each = attribution
    learned = (rows.labels != IGNORED).sum(1)  # the loss is a mean over all of them
    shares = np.average(each.attention_share, axis=0, weights=learned)
    np.testing.assert_allclose(shares, found.attention_share, rtol=1e-4, atol=1e-6)
    products = each.gradient_input * (learned / learned.sum())[:, None]
    np.testing.assert_allclose(products, found.gradient_input, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(each.gradient_input_share.sum(1), 1, rtol=1e-5)


def test_shares_of_attention_add_up(attribution):
    found = attribution[0]
    np.testing.assert_allclose(found.attention_share.sum(1), 1, rtol=1e-5)
    assert found.gradient_input_share.sum() == pytest.approx(1, rel=1e-5)
    assert jnp.all(found.saliency > 0)


def test_what_is_hidden_is_no_reason(attribution):
    found, rows, *_ = attribution
    assert jnp.all(found.gradient_input[~rows.mask] == 0)


def test_the_gradient_is_that_of_the_loss(attribution):
    found, _, _, products, _ = attribution
    np.testing.assert_allclose(found.gradient_input, products, atol=1e-6)


def test_the_anchor_ratio_compares_means_a_token(attribution):
    _, rows, segments, _, _ = attribution
    even = bias.anchor_ratio(jnp.ones(rows.mask.shape), segments, rows.mask)
    assert even == pytest.approx(1)
    loud = jnp.where(segments == bias.SPEECH, 3.0, 1.0)
    assert bias.anchor_ratio(loud, segments, rows.mask) == pytest.approx(3)
    assert jnp.isnan(bias.anchor_ratio(0 * loud, segments, rows.mask))
