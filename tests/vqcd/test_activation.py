"""Who owns which weights."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods import vqcd
from jaxmethods.models import temporal_unet
from jaxmethods.vqcd import activation
from jaxmethods.vqcd.bank import kind
from tests.programs import normal, weights
from tests.vqcd.toy import CONFIG, NETWORK, PERCEPTRON, TASKS, changed, equal

PARAMS = weights(temporal_unet.init, NETWORK)


@cache
def dealt():
    """Owners of these weights, for all tests."""
    return jax.jit(activation.draw_owners, static_argnums=2)(jax.random.key(1), PARAMS, TASKS)


def leaves(tree):
    return jax.tree.leaves(tree)


def test_every_weight_has_one_owner_and_shares_differ_by_one_at_most():
    for owner in leaves(dealt()):
        counts = np.bincount(np.asarray(owner).reshape(-1), minlength=TASKS)
        assert counts.sum() == owner.size
        assert counts.max() - counts.min() <= 1


def test_arrays_of_equal_shape_have_permutations_of_their_own():
    blocks = dealt()["mid"]["res0"]["block0"]["conv"], dealt()["mid"]["res0"]["block1"]["conv"]
    assert not np.array_equal(blocks[0]["weight"], blocks[1]["weight"])


def test_what_is_nobodys_share_is_free():
    owner = activation.draw_owners(
        jax.random.key(0), {"w": jnp.zeros((10, 10))}, 2, shares=(0.5, 0.2)
    )
    assert np.bincount(np.asarray(owner["w"]).reshape(-1) + 1).tolist() == [30, 50, 20]


def test_ten_tenths_leave_nothing_free():
    owner = activation.draw_owners(jax.random.key(0), jnp.zeros(1000), 10, shares=(0.1,) * 10)
    assert np.bincount(np.asarray(owner)).tolist() == [100] * 10


def test_shares_above_one_are_refused():
    with pytest.raises(ValueError, match="sum of at most 1"):
        activation.draw_owners(jax.random.key(0), jnp.zeros(10), 2, shares=(0.7, 0.7))
    with pytest.raises(ValueError, match="sum of at most 1"):
        changed(CONFIG, shares=(0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("scope", "name", "whose"),
    [
        ("kernels", "network/time_embed/dense0/weight", "owned"),
        ("conv", "network/time_embed/dense0/weight", "private"),
        ("conv", "network/mid/res0/block0/conv/weight", "owned"),
        ("conv", "network/down0/downsample/weight", "owned"),
        ("conv", "network/down0/res0/skip/weight", "owned"),
        ("kernels", "network/mid/res0/block0/gn/weight", "private"),
        ("kernels", "network/mid/res0/block0/conv/bias", "private"),
        ("none", "network/mid/res0/block0/conv/weight", "private"),
        ("kernels", "inverse/dense0/weight", "private"),
    ],
)
def test_whose_a_leaf_is(scope, name, whose):
    assert kind(changed(CONFIG, scope=scope), name) == whose


def test_outputs_do_not_see_weights_off_the_mask():
    x = normal(2, 2, NETWORK.horizon, NETWORK.channels)
    ones = jnp.ones((2, 1))
    flipped = jax.tree.map(lambda own, w: np.where(own == 1, w, -3.0 * w), dealt(), PARAMS)

    @jax.jit
    def run(params):
        masked = activation.apply_mask(params, dealt(), 1)
        return temporal_unet.apply(masked, NETWORK, x, jnp.zeros(2, int), ones, ones)

    np.testing.assert_array_equal(run(PARAMS), run(flipped))
    assert np.abs(run(PARAMS)).max() > 0


@pytest.mark.slow
def test_one_task_owns_everything():
    everything = activation.draw_owners(jax.random.key(0), PARAMS, 1)
    assert equal(activation.apply_mask(PARAMS, everything, 0), PARAMS)


def test_momentum_moves_what_is_finished_unless_the_update_is_masked():
    params, owner = {"w": jnp.ones(4)}, {"w": jnp.array([0, 0, 1, 1], jnp.int8)}
    gradients = [{"w": jnp.array([1.0, 1, 0, 0])}, {"w": jnp.array([0.0, 0, 1, 1])}]

    def train(optimizers):
        weights, moments = params, optimizers[0].init(params)
        for optimizer, gradient in zip(optimizers, gradients, strict=True):
            updates, moments = optimizer.update(gradient, moments, weights)
            weights = optax.apply_updates(weights, updates)
            yield weights

    adam = optax.adam(0.1)
    first, last = (np.asarray(weights["w"]) for weights in train([adam, adam]))
    assert (first[:2] != last[:2]).all()
    masked = [activation.masked_update(adam, owner, task) for task in range(2)]
    first, last = (np.asarray(weights["w"]) for weights in train(masked))
    np.testing.assert_array_equal(first[:2], last[:2])
    assert (first[2:] != last[2:]).all()


def test_assembling_takes_every_weight_from_its_owners_checkpoint():
    checkpoints = [
        {"w": jnp.full(4, float(task)), "b": jnp.full(2, float(task))} for task in range(2)
    ]
    owner = {"w": jnp.array([1, 0, -1, 0], jnp.int8), "b": None}
    assembled = activation.assemble(checkpoints, owner)
    np.testing.assert_array_equal(assembled["w"], [1, 0, 1, 0])
    np.testing.assert_array_equal(assembled["b"], [1, 1])


def test_pruned_weights_are_free_and_can_be_claimed():
    weights = {"w": jnp.array([0.1, -0.1, 2.0, -2.0] * 10)}
    owner = activation.draw_owners(jax.random.key(0), weights, 1)
    pruned = activation.prune(weights, owner, 1.0)
    np.testing.assert_array_equal(pruned["w"] == activation.FREE, np.abs(weights["w"]) < 1)
    claimed = activation.claim(jax.random.key(1), pruned, 1, 0.25)
    counts = activation.owned_counts(claimed, 2)["w"]
    assert counts.tolist() == [20, 10]
    np.testing.assert_array_equal(claimed["w"] == 0, pruned["w"] == 0)
    everything = activation.claim(jax.random.key(2), claimed, 2, 0.9)
    assert activation.owned_counts(everything, 3)["w"].tolist() == [20, 10, 10]


@pytest.mark.slow
def test_a_widened_network_gives_the_narrow_one_back():
    wide_config = changed(NETWORK, dim=16)
    wide = jax.tree.map(
        jnp.asarray, weights(lambda key: temporal_unet.init(key, wide_config), seed=5)
    )
    free = jax.tree.map(lambda leaf: jnp.full(leaf.shape, activation.FREE, jnp.int8), wide)
    widened = activation.widen(PARAMS, wide)
    owner = activation.widen(dealt(), free)
    assert equal(activation.narrow(widened, PARAMS), PARAMS)
    assert equal(activation.narrow(owner, PARAMS), dealt())
    for old, new in zip(leaves(dealt()), leaves(owner), strict=True):
        assert (new == activation.FREE).sum() == new.size - old.size
    with pytest.raises(ValueError, match="expected at most shape"):
        activation.widen(wide, PARAMS)


@pytest.mark.slow
def test_a_bank_has_owners_for_kernels_and_copies_of_the_rest():
    bank = vqcd.initial_bank(jax.random.key(0), CONFIG)
    layer, owner = (
        tree["network"]["mid"]["res0"]["block0"]["conv"] for tree in (bank.params, bank.owner)
    )
    assert owner["bias"] is None
    assert owner["weight"].shape == layer["weight"].shape
    assert layer["bias"].shape[0] == TASKS


@pytest.mark.slow
def test_initial_weights_can_be_scaled_to_their_share():
    banks = [
        vqcd.initial_bank(jax.random.key(0), changed(PERCEPTRON, rescale_init=scaled))
        for scaled in (False, True)
    ]
    plain, scaled = (bank.params["network"]["mlp"]["dense1"] for bank in banks)
    np.testing.assert_allclose(scaled["weight"], TASKS**0.5 * plain["weight"], rtol=1e-6)
    np.testing.assert_array_equal(scaled["bias"], plain["bias"])
