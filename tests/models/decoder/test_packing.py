"""Several sequences in a row, and attention that is read: what packing and attribution stand on."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.models import decoder
from jaxmethods.models.decoder import lora
from jaxmethods.models.decoder.attention import token_positions
from jaxmethods.models.decoder.config import DecoderConfig, RopeScaling
from tests.models.decoder.decoders import random_params

CONFIG = DecoderConfig(
    family="llama",
    vocab_size=13,
    width=8,
    mlp_width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=4,
    rotary_dim=4,
    max_positions=32,
)
SEGMENTS = jnp.asarray([[1, 1, 1, 2, 2, 0]])


FORWARD = jax.jit(decoder.forward, static_argnums=1, static_argnames=("taps",))


@cache
def params():
    return random_params(CONFIG)


def logits(ids, **settings):
    return FORWARD(params(), CONFIG, jnp.asarray(ids), **settings).logits


def test_positions_begin_anew_with_every_segment():
    mask = jnp.asarray([[True, False, True, True, True, True]])
    found = token_positions(1, 6, mask, None, jnp.asarray([[1, 1, 1, 2, 2, 2]]))
    assert found.tolist() == [[0, 0, 1, 0, 1, 2]]


def test_packed_sequences_are_the_sequences():
    ids = [[3, 4, 5, 6, 7, 0]]
    packed = logits(ids, segments=SEGMENTS)
    np.testing.assert_allclose(packed[:, :3], logits([[3, 4, 5]]), atol=1e-5)
    np.testing.assert_allclose(packed[:, 3:5], logits([[6, 7]]), atol=1e-5)


def test_a_segment_does_not_see_another():
    one = logits([[3, 4, 5, 6, 7, 0]], segments=SEGMENTS)
    other = logits([[9, 9, 9, 6, 7, 0]], segments=SEGMENTS)
    np.testing.assert_array_equal(one[:, 3:5], other[:, 3:5])
    assert not np.allclose(one[:, :3], other[:, :3])


def test_segments_with_a_mask_and_a_window():
    config = CONFIG.model_copy(update={"sliding_window": 2})
    mask = jnp.asarray([[True, True, True, True, True, False]])
    ids = jnp.asarray([[3, 4, 5, 6, 7, 0]])
    packed = decoder.forward(params(), config, ids, mask=mask, segments=SEGMENTS).logits
    alone = decoder.forward(params(), config, ids[:, 3:5]).logits
    np.testing.assert_allclose(packed[:, 3:5], alone, atol=1e-5)


def test_frequencies_of_a_packed_sequence_follow_its_own_length():
    """Where they are dynamic, a long one beside it would turn a short one's tokens otherwise."""
    scaling = RopeScaling(kind="dynamic", factor=4.0)
    config = CONFIG.model_copy(update={"rope_scaling": scaling, "max_positions": 2})
    ids = jnp.asarray([[3, 4, 5, 6, 7, 0]])
    packed = FORWARD(params(), config, ids, segments=SEGMENTS).logits
    for place in (slice(0, 3), slice(3, 5)):
        alone = FORWARD(params(), config, ids[:, place]).logits
        np.testing.assert_allclose(packed[:, place], alone, atol=1e-5)


def test_attention_is_a_causal_distribution():
    ids = jnp.asarray([[3, 4, 5, 6]])
    found = decoder.forward(params(), CONFIG, ids, taps=("attention", "head_outputs"))
    assert found.attention.shape == (2, 1, 4, 4, 4)
    np.testing.assert_allclose(found.attention.sum(-1), 1, rtol=1e-5)
    later = jnp.triu(jnp.ones((4, 4)), 1)
    assert jnp.all(found.attention * later[:, None] == 0)
    plain = decoder.forward(params(), CONFIG, ids, taps=("head_outputs",))
    np.testing.assert_allclose(found.logits, plain.logits, atol=1e-5)
    np.testing.assert_allclose(found.head_outputs, plain.head_outputs, atol=1e-6)


def test_attention_at_chosen_tokens_and_of_unstacked_layers():
    ids, where = jnp.asarray([[3, 4, 5, 6]]), jnp.asarray([[3, 1]])
    everything = decoder.forward(params(), CONFIG, ids, taps=("attention",)).attention
    loose = decoder.unstack_layers(params())
    found = decoder.forward(loose, CONFIG, ids, taps=("attention",), taps_at=where).attention
    np.testing.assert_allclose(found, everything[:, :, jnp.asarray([3, 1])], atol=1e-6)


def test_the_gradient_to_what_is_added_is_that_to_the_probabilities():
    ids = jnp.asarray([[3, 4, 5]])

    def value(added):
        return jnp.sum(jnp.square(logits(ids, attention_added=added)[:, -1]))

    added = jnp.zeros((2, 1, 3, 4, 3))
    gradient = jax.grad(value)(added)
    place = (1, 0, 2, 1, 0)
    step = 1e-2
    slope = (value(added.at[place].set(step)) - value(added.at[place].set(-step))) / (2 * step)
    assert float(gradient[place]) == pytest.approx(float(slope), rel=2e-2, abs=1e-4)
    assert abs(float(gradient[place])) > 1e-3


def test_what_goes_without_a_cache_is_refused_with_one():
    ids = jnp.asarray([[3, 4]])
    cache = decoder.forward(params(), CONFIG, ids, keep_cache=True).cache
    for settings in ({"taps": ("attention",)}, {"segments": jnp.asarray([[0, 1]])}):
        with pytest.raises(ValueError, match="expected none with a cache"):
            decoder.forward(params(), CONFIG, ids, cache=cache, **settings)


def test_scaled_down_additions_lie_between_base_and_tuned():
    adapters = lora.init(jax.random.key(1), CONFIG, 2)
    adapters = jax.tree.map(lambda leaf: leaf + 0.3, adapters)
    ids = jnp.asarray([[3, 4, 5]])

    def at(scale):
        return decoder.forward(lora.attach(params(), adapters, scale), CONFIG, ids).logits

    np.testing.assert_array_equal(at(0.0), decoder.forward(params(), CONFIG, ids).logits)
    assert 0 < jnp.abs(at(0.1) - at(0.0)).max() < jnp.abs(at(1.0) - at(0.0)).max()
