"""The speech-text model: rows don't depend on each other, nor on padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.lsm import bias, connect
from jaxmethods.lsm.connector import Speech
from jaxmethods.lsm.model import IGNORED, Text, assemble, respond, response_losses
from jaxmethods.models import decoder
from tests.lsm import small

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


def losses(text, speech):
    own = small.params()["language_model"]
    rows = assemble(own, speech, text)
    return response_losses(own, small.LANGUAGE, rows, text.suffix.shape[1])


def speech_of(clips, lengths=None):
    lengths = jnp.full(clips, small.FRAMES) if lengths is None else jnp.asarray(lengths)
    connector = small.params()["connector"]
    return connect(connector, small.CONNECTOR, small.frames(clips), lengths)


def test_what_padding_holds_does_not_matter():
    text, speech = small.text(3), speech_of(3, [60, 21, 3])
    found, learned = losses(text, speech)
    other = text._replace(
        prefix=jnp.where(text.prefix_mask, text.prefix, 9),
        suffix=jnp.where(text.suffix_mask, text.suffix, 9),
    )
    loud = jnp.where(speech.mask[..., None], speech.tokens, 7.0)
    again, _ = losses(other, Speech(loud, speech.mask))
    np.testing.assert_allclose(again, found, atol=1e-6)
    np.testing.assert_array_equal(learned, text.labels != IGNORED)
    assert jnp.all((found > 0) == learned)


def test_losses_are_those_of_all_logits():
    text, speech = small.text(2), speech_of(2)
    found, _ = losses(text, speech)
    own = small.params()["language_model"]
    rows = assemble(own, speech, text)
    logits = decoder.forward(own, small.LANGUAGE, inputs_embeds=rows.embeds, mask=rows.mask).logits
    log_probabilities = jax.nn.log_softmax(logits[:, :-1])
    for row in range(2):
        for place in np.flatnonzero(np.asarray(rows.labels[row]) != IGNORED):
            nats = -log_probabilities[row, place - 1, rows.labels[row, place]]
            suffix = place - (rows.labels.shape[1] - text.suffix.shape[1])
            assert float(found[row, suffix]) == pytest.approx(float(nats), abs=1e-5)


def test_without_speech_it_is_the_language_model():
    text = small.text(2)
    nothing = Speech(jnp.zeros((2, 3, small.LANGUAGE.width)), jnp.zeros((2, 3), bool))
    found, _ = losses(text, nothing)
    for row in range(2):
        prompt = text.prefix[row, text.prefix_mask[row]]
        said = text.suffix[row, text.suffix_mask[row]]
        ids = jnp.concatenate([prompt, said])[None]
        logits = decoder.forward(small.params()["language_model"], small.LANGUAGE, ids).logits
        log_probabilities = jax.nn.log_softmax(logits[0, :-1])
        nats = -log_probabilities[jnp.arange(ids.shape[1] - 1), ids[0, 1:]]
        learned = len(said) - 2
        np.testing.assert_allclose(found[row, 2 : 2 + learned], nats[-learned:], atol=1e-5)


def test_an_answer_is_what_the_loss_finds_likeliest():
    text, speech = asked(small.text(2)), speech_of(2)
    own = small.params()["language_model"]
    found = respond(own, small.LANGUAGE, speech, text, new_tokens=3, end=2)
    rows = assemble(own, speech, text)
    logits = decoder.forward(own, small.LANGUAGE, inputs_embeds=rows.embeds, mask=rows.mask).logits
    np.testing.assert_array_equal(found.tokens[:, 0], jnp.argmax(logits[:, -1], -1))


# Where answers come from


@pytest.fixture(scope="module")
def attribution():
    text, speech = small.text(2), speech_of(2, [60, 21])
    own = small.params()["language_model"]
    rows = assemble(own, speech, text)
    sizes = text.prefix.shape[1], speech.mask.shape[1], text.suffix.shape[1]
    segments = bias.segments_of(*sizes, batch=2)
    program = jax.jit(lambda rows: bias.attribute(own, small.LANGUAGE, rows, segments))
    return program(rows), rows, segments


def test_shares_of_attention_add_up(attribution):
    found, _, _ = attribution
    np.testing.assert_allclose(found.attention_share.sum(1), 1, rtol=1e-5)
    assert found.gradient_input_share.sum() == pytest.approx(1, rel=1e-5)
    assert jnp.all(found.saliency > 0)


def test_what_is_hidden_is_no_reason(attribution):
    found, rows, _ = attribution
    assert jnp.all(found.gradient_input[~rows.mask] == 0)


def test_the_gradient_is_that_of_the_loss(attribution):
    found, rows, _ = attribution
    own = small.params()["language_model"]

    def loss(embeds):
        nats, learned = response_losses(own, small.LANGUAGE, rows._replace(embeds=embeds), 6)
        return jnp.sum(nats) / jnp.sum(learned)

    expected = jnp.abs(jnp.sum(rows.embeds * jax.grad(loss)(rows.embeds), -1))
    np.testing.assert_allclose(found.gradient_input, expected, atol=1e-6)


def test_the_anchor_ratio_compares_means_a_token(attribution):
    _, rows, segments = attribution
    even = bias.anchor_ratio(jnp.ones(rows.mask.shape), segments, rows.mask)
    assert even == pytest.approx(1)
    loud = jnp.where(segments == bias.SPEECH, 3.0, 1.0)
    assert bias.anchor_ratio(loud, segments, rows.mask) == pytest.approx(3)
    assert jnp.isnan(bias.anchor_ratio(0 * loud, segments, rows.mask))
