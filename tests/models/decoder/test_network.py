"""What holds for every decoder, whatever its weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.models import decoder
from jaxmethods.models.decoder.attention import grow, reserve, token_positions
from jaxmethods.models.decoder.config import RopeScaling
from jaxmethods.models.decoder.rope import inverse_frequencies, rotate, rotation
from tests.models.decoder.decoders import CONFIGS, LLAMA, random_ids, random_params
from tests.programs import quick

FORWARD = jax.jit(
    decoder.forward,
    static_argnames=("config", "keep_cache", "logits", "taps", "dtype", "kernel", "remat"),
)


def forward(params, config, ids=None, **options):
    return FORWARD(params, config, ids, **options)


def assert_close(actual, expected, tolerance=2e-5):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", quick(["mistral", "codegen", "opt"], "mistral"))
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


def test_positions_past_the_end_are_not_the_last_one():
    x = jnp.arange(6.0).reshape(1, 3, 2)
    with pytest.raises(ValueError, match="positions: expected at most 2, got 3"):
        decoder.at(x, jnp.array([[0, 3]]))
    found = jax.jit(decoder.at)(x, jnp.array([[0, 3, -1]]))
    np.testing.assert_array_equal(found[0], [[0, 1], [np.nan, np.nan], [4, 5]])


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


@pytest.mark.parametrize("pairs", ["halves", "neighbors"])
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


def test_gradients_are_the_same_with_rematerialization():
    params, ids = random_params(LLAMA), random_ids(LLAMA, 2, 6)

    def loss(params, remat):
        return jnp.mean(jnp.square(decoder.forward(params, LLAMA, ids, remat=remat).logits))

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    jax.tree.map(
        lambda a, b: assert_close(a, b, 1e-4), gradient(params, False), gradient(params, True)
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near(dtype):
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


@pytest.mark.parametrize("pieces", [(8, 3), (3, 2, 3, 1, 2)])
@pytest.mark.parametrize("name", quick(["mistral", "opt"], "mistral"))
def test_neither_padding_nor_chunks_change_a_token(name, pieces):
    """Window and positions count tokens: what a row's tokens give alone, in one pass, is right."""
    config = CONFIGS[name]
    params, mask = random_params(config, scale=0.5), padded(3)
    ids, cache, start, found = random_ids(config, *mask.shape), None, 0, []
    for size in pieces:
        part = slice(start, start + size)
        cache = None if cache is None else reserve(cache, size)
        past = {"cache": cache, "keep_cache": True}
        out = forward(params, config, ids[:, part], mask=mask[:, part], **past)
        cache, start = out.cache, start + size
        found.append(out.logits)
    alone = forward(params, config, tokens_of(ids, mask)).logits
    whole = forward(params, config, ids, mask=mask).logits
    assert_close(whole[mask].reshape(alone.shape), alone, 1e-4)
    assert_close(jnp.concatenate(found, axis=1)[mask].reshape(alone.shape), alone, 1e-4)


def test_unstacked_layers_decode_behind_padding_alike():
    config, mask = CONFIGS["mistral"], padded(0)
    params, ids = random_params(config, scale=0.5), random_ids(config, *mask.shape)
    token = jnp.full((len(ids), 1), 5)
    for layers in (params, decoder.unstack_layers(params)):
        first = forward(layers, config, ids, mask=mask, keep_cache=True)
        next_one = forward(layers, config, token, cache=reserve(first.cache, 1)).logits[:, 0]
        text = jnp.concatenate([tokens_of(ids, mask), token], axis=1)
        assert_close(next_one, forward(params, config, text).logits[:, -1], 1e-4)


def test_dynamic_frequencies_follow_the_tokens_of_each_row():
    config = CONFIGS["llama dynamic"]  # 8 positions
    params, mask = random_params(config, scale=0.5), padded(5)
    ids = random_ids(config, *mask.shape)
    alone = forward(params, config, tokens_of(ids, mask)).logits  # 10 tokens
    found = forward(params, config, ids, mask=mask).logits
    assert_close(found[mask].reshape(alone.shape), alone, 1e-4)
    positions = jnp.where(mask, token_positions(*mask.shape, mask, None), 60)
    found = forward(params, config, ids, mask=mask, positions=positions).logits
    assert_close(found[mask].reshape(alone.shape), alone, 1e-4)


def test_a_single_rotated_pair_has_no_base_to_stretch():
    scaling = RopeScaling(kind="dynamic", factor=4)
    config = LLAMA.model_copy(update={"rotary_dim": 2, "max_positions": 4, "rope_scaling": scaling})
    cos, sin = rotation(config, jnp.arange(9)[None])
    assert_close(jnp.arctan2(sin, cos)[0, :3, 0], jnp.arange(3.0))


def test_a_full_cache_is_never_written_over():
    keys = jnp.ones((1, 1, 3, 2, 4))  # [L, B, T, K, d]
    cache = grow(None, None, keys, keys)
    with pytest.raises(ValueError, match="room for 1 further tokens, got 3 places with 3 taken"):
        grow(cache, None, keys[:, :, :1], keys[:, :, :1])
    with pytest.raises(ValueError, match="room for 4 further tokens, got 3 places; "):
        jax.jit(grow)(cache, None, *[jnp.ones((1, 1, 4, 2, 4))] * 2)
    # A compiled program can't raise, but what it computes says so.
    over = jax.jit(grow)(cache, None, keys[:, :, :1], keys[:, :, :1])
    assert jnp.isnan(over.keys).any()
    room = jax.jit(grow)(reserve(cache, 1), None, keys[:, :, :1], keys[:, :, :1])
    assert jnp.isfinite(room.keys).all()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing_to_run_gives_nothing(shape):
    params = random_params(LLAMA)
    out = forward(params, LLAMA, jnp.zeros(shape, int), mask=jnp.ones(shape, bool), keep_cache=True)
    assert out.logits.shape == (*shape, LLAMA.vocab_size)
    more = forward(params, LLAMA, jnp.ones((shape[0], 1), int), cache=reserve(out.cache, 1))
    assert more.logits.shape == (shape[0], 1, LLAMA.vocab_size)
    assert jnp.isfinite(more.logits).all()


def padded(further):
    """Rows of 5 tokens among 3 places of padding, and `further` tokens behind them."""
    rows = [
        [0, 0, 0, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 1, 0, 0],
        [1, 0, 1, 1, 0, 0, 1, 1],
    ]
    return jnp.array([row + [1] * further for row in rows], bool)


def tokens_of(ids, mask):
    """The tokens of every row without its padding; all rows have equally many."""
    return ids[mask].reshape(len(ids), -1)
