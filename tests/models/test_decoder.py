"""What holds for every decoder, whatever its weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.models import decoder
from jaxmethods.models.attention import reserve
from jaxmethods.models.decoder_config import RopeScaling
from jaxmethods.models.rope import inverse_frequencies, rotate, rotation
from tests.models.decoders import CONFIGS, LLAMA, random_ids, random_params

FORWARD = jax.jit(
    decoder.forward,
    static_argnames=("config", "keep_cache", "logits", "taps", "dtype", "kernel", "remat"),
)


def forward(params, config, ids=None, **options):
    return FORWARD(params, config, ids, **options)


def assert_close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["mistral", "codegen", "opt"])
def test_a_cache_changes_nothing(name):
    config = CONFIGS[name]
    params, ids = random_params(config), random_ids(config, 2, 11)
    mask = jnp.arange(11) >= jnp.array([[0], [3]])  # the second row is padded on the left
    expected = forward(params, config, ids, mask=mask).logits
    first = forward(params, config, ids[:, :6], mask=mask[:, :6], keep_cache=True)
    cache = reserve(first.cache, 7)
    second = forward(params, config, ids[:, 6:9], mask=mask[:, 6:9], cache=cache)
    third = forward(params, config, ids[:, 9:], cache=second.cache)
    pieces = jnp.concatenate([first.logits, second.logits, third.logits], axis=1)
    assert_close(pieces[mask], expected[mask])
    assert int(third.cache.length) == 11
    np.testing.assert_array_equal(third.cache.mask[:, :11], mask)


def test_unstacked_layers_give_the_same_numbers():
    params, ids = random_params(LLAMA), random_ids(LLAMA, 2, 7)
    stacked = forward(params, LLAMA, ids, taps=decoder.TAPS, keep_cache=True)
    unstacked = decoder.unstack_layers(params)
    assert len(unstacked["layers"]) == LLAMA.layers
    others = forward(unstacked, LLAMA, ids, taps=decoder.TAPS, keep_cache=True)
    jax.tree.map(assert_close, stacked, others)


def test_padding_on_the_right_needs_no_mask():
    params, ids = random_params(LLAMA), random_ids(LLAMA, 2, 9)
    alone = forward(params, LLAMA, ids[:, :6]).logits
    padded = forward(params, LLAMA, ids.at[:, 6:].set(0)).logits
    assert_close(padded[:, :6], alone)


def test_chosen_positions_are_those_of_the_whole():
    params, ids = random_params(LLAMA), random_ids(LLAMA, 2, 7)
    where = jnp.array([[0, 6, 6], [2, 3, 5]])
    everything = forward(params, LLAMA, ids, taps=decoder.TAPS)
    chosen = forward(params, LLAMA, ids, taps=decoder.TAPS, taps_at=where, logits_at=where)
    rows = jnp.arange(2)[:, None]
    assert_close(chosen.logits, everything.logits[rows, where])
    for name in decoder.TAPS:
        assert_close(getattr(chosen, name), getattr(everything, name)[:, rows, where])


def test_what_is_not_asked_for_is_not_returned():
    params, ids = random_params(LLAMA), random_ids(LLAMA, 1, 3)
    outputs = forward(params, LLAMA, ids, logits=False)
    assert outputs.residual.shape == (1, 3, LLAMA.width)
    assert all(getattr(outputs, name) is None for name in ("logits", "cache", *decoder.TAPS))
    with pytest.raises(ValueError, match=r"taps: expected some of hidden, .*, got 'heads'"):
        decoder.forward(params, LLAMA, ids, taps=("heads",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="either ids or inputs_embeds, got 0"):
        decoder.forward(params, LLAMA)


def test_grouped_heads_are_heads_with_repeated_keys_and_values():
    params, ids = random_params(LLAMA), random_ids(LLAMA, 2, 7)
    groups = LLAMA.heads // LLAMA.kv_heads

    def repeated(kernel):
        heads = kernel.reshape(*kernel.shape[:-1], LLAMA.kv_heads, LLAMA.head_dim)
        return jnp.repeat(heads, groups, axis=-2).reshape(*kernel.shape[:-1], -1)

    attention = params["layers"]["attention"]
    for name in ("key", "value"):
        attention = attention | {name: {"kernel": repeated(attention[name]["kernel"])}}
    layers = params["layers"] | {"attention": attention}
    every_head = LLAMA.model_copy(update={"kv_heads": LLAMA.heads})
    many = forward(params | {"layers": layers}, every_head, ids)
    assert_close(many.logits, forward(params, LLAMA, ids).logits)


def test_a_window_hides_what_lies_behind_it():
    config = CONFIGS["mistral"].model_copy(update={"layers": 1})
    params, ids = random_params(config), random_ids(config, 1, 9)
    window = config.sliding_window
    changed = ids.at[0, 8 - window].add(1) % config.vocab_size
    before, after = forward(params, config, jnp.concatenate([ids, changed])).logits
    np.testing.assert_array_equal(before[8], after[8])
    assert not np.allclose(before[7], after[7])


def test_an_overall_shift_of_positions_changes_nothing_under_rotation():
    params, ids = random_params(LLAMA), random_ids(LLAMA, 1, 7)
    positions = jnp.arange(7)[None]
    moved = forward(params, LLAMA, ids, positions=positions + 40).logits
    assert_close(moved, forward(params, LLAMA, ids).logits, 1e-4)


@pytest.mark.parametrize("pairs", ["halves", "neighbours"])
def test_rotation_keeps_lengths_and_what_is_not_rotated(pairs):
    config = LLAMA.model_copy(update={"rotary_dim": 4, "rotary_pairs": pairs})
    x = jax.random.normal(jax.random.key(0), (2, 5, 4, 8))
    turned = rotate(x, *rotation(config, jnp.arange(5)[None]), config)
    assert_close(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1))
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])


def test_stretched_frequencies_lie_between_the_plain_and_the_divided_ones():
    scaling = RopeScaling(kind="llama3", factor=8, high_frequency_factor=4)
    plain = LLAMA.model_copy(update={"rotary_dim": 128, "head_dim": 128, "rope_theta": 5e5})
    stretched = inverse_frequencies(plain.model_copy(update={"rope_scaling": scaling}))
    unstretched = inverse_frequencies(plain)
    assert stretched[0] == unstretched[0]
    assert stretched[-1] == unstretched[-1] / 8
    assert (stretched <= unstretched).all()
    assert (stretched >= unstretched / 8).all()


def test_gradients_are_the_same_with_rematerialisation():
    params, ids = random_params(LLAMA), random_ids(LLAMA, 2, 6)

    def loss(params, remat):
        return jnp.mean(jnp.square(decoder.forward(params, LLAMA, ids, remat=remat).logits))

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    jax.tree.map(
        lambda a, b: assert_close(a, b, 1e-4), gradient(params, False), gradient(params, True)
    )


def test_half_precision_stays_near():
    dtype = "bfloat16"
    params, ids = random_params(LLAMA), random_ids(LLAMA, 2, 6)
    exact = forward(params, LLAMA, ids, taps=("head_norms",))
    half = forward(params, LLAMA, ids, taps=("head_norms", "head_outputs"), dtype=dtype)
    assert half.logits.dtype == half.head_norms.dtype == jnp.float32
    assert half.head_outputs.dtype == dtype
    scale = jnp.abs(exact.logits).max()
    assert jnp.abs(half.logits - exact.logits).max() < 0.05 * scale


def test_examples_may_be_mapped_over():
    params, ids = random_params(LLAMA), random_ids(LLAMA, 2, 7)
    rows = jax.vmap(lambda row: decoder.forward(params, LLAMA, row[None]).logits[0])(ids)
    assert_close(rows, forward(params, LLAMA, ids).logits)
