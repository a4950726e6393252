"""The network: live taps, conditions, gradients, precision, sizes that don't fit."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods.models import temporal_unet
from jaxmethods.models.temporal_unet import Convolution, TemporalNetworkConfig, convolve
from jaxmethods.vqcd.torch_weights import from_torch
from tests.programs import normal
from tests.vqcd.toy import changed

CONFIG = TemporalNetworkConfig(channels=4, dim=8, multipliers=(1, 2, 2), horizon=8, groups=4)
X = normal(1, 3, 8, 4)
STEP, RETURNS, KEEP = (
    np.array(numbers, np.float32) for numbers in ([0, 5, 19], [[0.1], [0.5], [0.9]], [[1.0]] * 3)
)


@cache
def drawn(config):
    return jax.jit(temporal_unet.init, static_argnums=1)(jax.random.key(0), config)


@cache
def forward():
    return jax.jit(temporal_unet.apply, static_argnums=1)


@cache
def gradient():
    def loss(params, config):
        return jnp.square(temporal_unet.apply(params, config, X, STEP, RETURNS, KEEP)).mean()

    return jax.jit(jax.grad(loss), static_argnums=1)


@pytest.mark.parametrize(
    ("conv", "live"),
    [
        (Convolution(5, 8), (0, 5)),
        (Convolution(5, 2), (1, 4)),
        (Convolution(5, 1), (2, 3)),
        (Convolution(3, 2, stride=2), (1, 3)),
        (Convolution(4, 2, up=2), (0, 4)),
        (Convolution(4, 1, up=2), (1, 3)),
    ],
)
def test_live_taps_are_those_whose_kernel_matters(conv, live):
    assert conv.live == live
    x = jax.random.normal(jax.random.key(0), (2, conv.length, 3))
    config = TemporalNetworkConfig(convolution="lax")

    def total(weight):
        # All taps through padding, as the published network has it.
        y = jax.lax.conv_general_dilated(
            x,
            weight,
            (conv.stride,),
            [(conv.padding, conv.padding)],
            lhs_dilation=(conv.up,),
            dimension_numbers=("NWC", "WIO", "NWC"),
        )
        return jnp.square(y).sum(), y

    weight = jax.random.normal(jax.random.key(1), (conv.taps, 3, 2))
    (_, y), slopes = jax.value_and_grad(total, has_aux=True)(weight)
    seen = np.abs(slopes).sum((1, 2)) > 0
    np.testing.assert_array_equal(np.flatnonzero(seen), np.arange(*live))
    layer = {"weight": weight, "bias": jnp.zeros(2)}
    for way in ("matmul", "lax"):
        found = convolve(layer, x, conv, changed(config, convolution=way))
        np.testing.assert_allclose(found, y, atol=1e-6)
        compact = layer | {"weight": weight[slice(*live)]}
        found = convolve(compact, x, conv, changed(config, convolution=way))
        np.testing.assert_allclose(found, y, atol=1e-6)


def test_dead_taps_have_no_gradient():
    kernel = gradient()(drawn(CONFIG), CONFIG)["mid"]["res0"]["block0"]["conv"]["weight"]
    assert not kernel[jnp.array([0, 4])].any()
    assert kernel[1:4].any()


def test_compact_weights_are_the_live_ones_and_give_the_same_outputs():
    config = changed(CONFIG, compact=True)
    params = drawn(config)
    reduced = temporal_unet.compacted(drawn(CONFIG), CONFIG)
    jax.tree.map(np.testing.assert_array_equal, params, reduced)
    assert params["mid"]["res0"]["block0"]["conv"]["weight"].shape[0] == 3
    full = forward()(drawn(CONFIG), CONFIG, X, STEP, RETURNS, KEEP)
    np.testing.assert_allclose(forward()(params, config, X, STEP, RETURNS, KEEP), full, atol=1e-6)


def test_a_dropped_condition_is_not_seen():
    drop = jnp.zeros_like(KEEP)
    first = forward()(drawn(CONFIG), CONFIG, X, STEP, RETURNS, drop)
    np.testing.assert_array_equal(first, forward()(drawn(CONFIG), CONFIG, X, STEP, -RETURNS, drop))
    kept = forward()(drawn(CONFIG), CONFIG, X, STEP, RETURNS, KEEP)
    assert (kept != first).any()
    assert (kept != forward()(drawn(CONFIG), CONFIG, X, STEP, -RETURNS, KEEP)).any()
    # The null condition is an embedding of zeros, not that of a return of zero.
    zero = forward()(drawn(CONFIG), CONFIG, X, STEP, jnp.zeros_like(RETURNS), KEEP)
    assert (zero != first).any()


def test_the_skip_of_the_first_level_is_not_used():
    names = dict(temporal_unet.unet_layers(CONFIG))
    ups = {name.split(".")[0] for name in names if name.startswith("up")}
    assert ups == {"up0", "up1"}
    assert names["up1.res0.block0.conv"].inputs == 2 * CONFIG.widths[1]


def test_the_first_multiplier_need_not_be_one():
    config = changed(CONFIG, multipliers=(2, 2))
    params = drawn(config)
    assert params["final"]["block"]["conv"]["weight"].shape[1:] == (16, 8)
    assert forward()(params, config, X, STEP, RETURNS, KEEP).shape == X.shape


def test_parameter_counts_are_the_published_networks():
    counts = {(32, (1, 2, 4)): 1.04e6, (64, (1, 4, 8)): 14.95e6, (256, (2, 2, 4)): 76.0e6}
    for (dim, multipliers), expected in counts.items():
        config = TemporalNetworkConfig(channels=20, dim=dim, multipliers=multipliers)
        shapes = jax.eval_shape(lambda c=config: temporal_unet.init(jax.random.key(0), c))
        total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        np.testing.assert_allclose(total, expected, rtol=6e-3)


def test_initial_weights_are_bounded_by_the_fan_in():
    weight = np.asarray(drawn(CONFIG)["down1"]["res1"]["block0"]["conv"]["weight"])
    bound = (weight.shape[0] * weight.shape[1]) ** -0.5
    assert 0.9 * bound < np.abs(weight).max() <= bound
    up = np.asarray(drawn(CONFIG)["up0"]["upsample"]["weight"])
    assert np.abs(up).max() <= (up.shape[0] * up.shape[2]) ** -0.5
    assert (drawn(CONFIG)["mid"]["res0"]["block0"]["gn"]["weight"] == 1).all()


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences():
    config = changed(CONFIG, multipliers=(1, 2), horizon=2)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), drawn(config))
        x, returns, keep = (jnp.asarray(v, jnp.float64) for v in (X[:, :2], RETURNS, KEEP))
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(jax.random.key(4), len(leaves))
        random = [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
        direction = jax.tree.unflatten(structure, random)

        @jax.jit
        @jax.value_and_grad
        def loss(shift):
            moved = jax.tree.map(lambda p, d: p + shift * d, params, direction)
            return jnp.square(temporal_unet.apply(moved, config, x, STEP, returns, keep)).mean()

        small = 1e-6
        difference = (loss(small)[0] - loss(-small)[0]) / (2 * small)
        np.testing.assert_allclose(loss(0.0)[1], difference, rtol=1e-5)


@pytest.mark.parametrize("kind", ["unet", "mlp"])
def test_bfloat16_changes_outputs_little(kind):
    config = changed(CONFIG, kind=kind, hidden=16)
    params = drawn(config)
    full = forward()(params, config, X, STEP, RETURNS, KEEP)
    half = forward()(params, changed(config, dtype="bfloat16"), X, STEP, RETURNS, KEEP)
    assert half.dtype == jnp.float32
    loss, rough = (jnp.square(y - 1.0).mean() for y in (full, half))
    assert abs(rough / loss - 1) < 0.02
    assert (half != full).any()


def test_the_perceptron_sees_all_positions():
    config = changed(CONFIG, kind="mlp", hidden=16, horizon=7, multipliers=(1,))
    params = drawn(config)
    x = X[:, :7]
    y = forward()(params, config, x, STEP, RETURNS, KEEP)
    assert y.shape == x.shape
    moved = forward()(params, config, jnp.asarray(x).at[:, 6].add(1.0), STEP, RETURNS, KEEP)
    assert (moved[:, 0] != y[:, 0]).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"horizon": 6}, "horizon: expected a multiple of 4 with 3 levels, got 6"),
        ({"dim": 12, "groups": 8}, "8 groups divide, got 12"),
        ({"kernel": 4}, "odd number of taps, got 4"),
        ({"multipliers": ()}, "at least one"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        changed(CONFIG, **fields)


def test_inputs_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"x: expected \[B, 8, 4\]"):
        temporal_unet.apply(drawn(CONFIG), CONFIG, X[:, :6], STEP, RETURNS, KEEP)


def test_weights_of_another_network_are_refused():
    with pytest.raises(ValueError, match=r"expected an array time_embed.dense0.weight"):
        from_torch({}, CONFIG)
    arrays = {"time_embed.dense0.weight": np.zeros((3, 3))}
    with pytest.raises(ValueError, match=r"expected shape \(8, 32\)"):
        from_torch(arrays, CONFIG)
