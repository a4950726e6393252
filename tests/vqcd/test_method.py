"""Training one task after another, side by side, in any order."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import vqcd
from jaxmethods.training.checkpoints import Checkpoints
from jaxmethods.vqcd.bank import take
from tests.vqcd.toy import (
    ACTIONS,
    CONFIG,
    PERCEPTRON,
    STATES,
    TASKS,
    changed,
    codes_data,
    equal,
    programs,
    space,
    train,
)

STEPS = 12
POLICY = vqcd.PolicyConfig(planner=CONFIG, states=STATES, actions=ACTIONS)


@pytest.fixture(scope="module")
def compiled():
    return programs(CONFIG)


@pytest.fixture(scope="module")
def start():
    return vqcd.initial_bank(jax.random.key(3), CONFIG)


@pytest.fixture(scope="module")
def plans():
    @jax.jit
    def run(bank, task):
        weights = vqcd.task_weights(CONFIG, bank, task)
        present = jnp.linspace(-1, 1, 12).reshape(2, 6)
        return vqcd.plan(CONFIG, weights, space(), 0.7, present, jax.random.key(9))

    return lambda bank, task: np.asarray(run(bank, jnp.int32(task)))


@pytest.fixture(scope="module")
def sequence(compiled, start):
    """The banks after each task."""
    banks, bank = [], start
    for task in range(TASKS):
        bank, _ = train(CONFIG, compiled, bank, task, STEPS)
        banks.append(bank)
    return banks


def test_plans_of_finished_tasks_stay_bit_for_bit(sequence, plans, start):
    for task in range(TASKS):
        own = plans(sequence[task], task)
        assert (own == plans(sequence[-1], task)).all()
        assert (own != plans(start, task)).any()


def test_only_the_tasks_own_weights_move(sequence, start):
    for tree in ("params", "ema"):
        before, after = getattr(start, tree), getattr(sequence[0], tree)
        leaves = zip(
            jax.tree.leaves(start.owner["network"], is_leaf=lambda x: x is None),
            jax.tree.leaves(before["network"]),
            jax.tree.leaves(after["network"]),
            strict=True,
        )
        for owner, *moved in leaves:
            old, new = map(np.asarray, moved)
            if owner is None:
                np.testing.assert_array_equal(old[1:], new[1:])
            else:
                np.testing.assert_array_equal(old[owner != 0], new[owner != 0])
        kernel = after["network"]["mid"]["res0"]["block0"]["conv"]["weight"]
        mine = start.owner["network"]["mid"]["res0"]["block0"]["conv"]["weight"] == 0
        # At this length the outer taps of the lowest level are dead.
        assert (kernel != before["network"]["mid"]["res0"]["block0"]["conv"]["weight"])[1:4][
            mine[1:4]
        ].all()


def test_fine_tuning_forgets():
    config = changed(PERCEPTRON, scope="none", rest="shared", inverse="shared")
    compiled, bank = programs(config), vqcd.initial_bank(jax.random.key(3), config)
    first, _ = train(config, compiled, bank, 0, STEPS)
    second, _ = train(config, compiled, first, 1, STEPS)
    weights = [vqcd.task_weights(config, each, 0) for each in (first, second)]
    assert not equal(weights[0].network, weights[1].network)
    assert not equal(weights[0].inverse, weights[1].inverse)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["rest", "inverse"])
def test_what_is_shared_and_trained_on_is_forgotten(what):
    config = changed(PERCEPTRON, **{what: "shared"})
    compiled, bank = programs(config), vqcd.initial_bank(jax.random.key(3), config)
    first, _ = train(config, compiled, bank, 0, 4)
    second, _ = train(config, compiled, first, 1, 4)
    before, after = (vqcd.task_weights(config, each, 0) for each in (first, second))
    assert equal(before.network, after.network) == (what == "inverse")
    assert equal(before.inverse, after.inverse) == (what == "rest")


@pytest.mark.slow
def test_frozen_leftovers_are_the_first_tasks():
    config = changed(PERCEPTRON, rest="freeze_after_first")
    compiled, bank = programs(config), vqcd.initial_bank(jax.random.key(3), config)
    first, _ = train(config, compiled, bank, 0, 4)
    second, _ = train(config, compiled, first, 1, 4)
    bias = [b.ema["network"]["mlp"]["dense1"]["bias"] for b in (bank, first, second)]
    assert (bias[0] != bias[1]).any()
    np.testing.assert_array_equal(bias[1], bias[2])


def test_the_order_of_tasks_does_not_matter(compiled, start, sequence):
    bank = start
    for task in reversed(range(TASKS)):
        bank, _ = train(CONFIG, compiled, bank, task, STEPS)
    assert equal((bank.params, bank.ema), (sequence[-1].params, sequence[-1].ema))


def test_starting_every_task_from_the_initial_weights_is_the_same(compiled, start, sequence):
    alone, _ = train(CONFIG, compiled, start, 1, STEPS)
    weights = [vqcd.task_weights(CONFIG, bank, 1) for bank in (alone, sequence[-1])]
    assert equal(*weights)


def test_another_tasks_data_do_not_matter(compiled, start, sequence):
    other, _ = train(CONFIG, compiled, start, 0, STEPS, data=codes_data(0, seed=7))
    bank, _ = train(CONFIG, compiled, other, 1, STEPS)
    weights = [vqcd.task_weights(CONFIG, each, 1) for each in (bank, sequence[1])]
    assert equal(*weights)


def test_a_second_task_and_a_second_call_do_not_compile_again(compiled, sequence):
    del sequence
    assert compiled[1]._cache_size() == 1


def stacked_feed(bank):
    data = vqcd.stack_tasks([codes_data(task) for task in range(TASKS)])
    return vqcd.Feed(data, jnp.arange(TASKS), bank)


FEED_AXES = vqcd.Feed(0, 0, None, None, None)  # type: ignore[arg-type]


@pytest.mark.slow
def test_tasks_side_by_side_equal_tasks_in_sequence(start, sequence):
    method = vqcd.planner(CONFIG)
    feed = stacked_feed(start)
    states = jax.jit(jax.vmap(method.init, (None, FEED_AXES)))(jax.random.key(0), feed)
    step = jax.jit(jax.vmap(method.step, (0, FEED_AXES)))
    for _ in range(STEPS):
        states, _ = step(states, feed)
    joined = vqcd.join_banks(CONFIG, states.bank)
    for tree in ("params", "ema"):
        pairs = zip(
            jax.tree.leaves(getattr(joined, tree)),
            jax.tree.leaves(getattr(sequence[-1], tree)),
            strict=True,
        )
        for side_by_side, in_sequence in pairs:
            np.testing.assert_allclose(side_by_side, in_sequence, atol=1e-5)


def test_tasks_that_share_weights_cannot_be_joined():
    config = changed(PERCEPTRON, rest="shared")
    bank = vqcd.initial_bank(jax.random.key(0), config)
    banks = jax.tree.map(lambda leaf: jnp.stack([leaf] * TASKS), bank)
    with pytest.raises(ValueError, match="no weights that several tasks train"):
        vqcd.join_banks(config, banks)


@pytest.mark.slow
def test_dense_training_with_assembling_equals_masked_training(start, sequence):
    config = changed(CONFIG, update="dense")
    compiled, bank = programs(config), start
    for task in range(TASKS):
        bank, _ = train(config, compiled, bank, task, STEPS)
    assert equal(bank.ema, sequence[-1].ema)


@pytest.mark.slow
def test_momentum_that_is_kept_drifts_but_the_assembled_tree_does_not():
    config = changed(PERCEPTRON, update="dense", reset_optimizer=False)
    compiled, start = programs(config), vqcd.initial_bank(jax.random.key(3), config)
    first, _ = train(config, compiled, start, 0, 4)
    second, _ = train(config, compiled, first, 1, 4)
    mine = start.owner["network"]["mlp"]["dense1"]["weight"] == 0

    def kernel(tree):
        return tree["network"]["mlp"]["dense1"]["weight"][mine]

    assert (kernel(first.params) != kernel(second.params)).any()
    np.testing.assert_array_equal(kernel(first.ema), kernel(second.ema))


@pytest.mark.slow
def test_accumulated_batches_take_the_mean_gradient():
    start = vqcd.initial_bank(jax.random.key(3), PERCEPTRON)
    config = changed(PERCEPTRON, accumulate=2, windows="permute", batch=4)
    _, history = train(config, programs(config), start, 0, 1)
    assert 0 < float(history[0]["loss"]) < 10
    # Two batches are two halves of a walk through the windows; the key of each is its number.
    single = changed(config, accumulate=1)
    init, _ = programs(single)
    feed = vqcd.Feed(codes_data(0), jnp.int32(0), start)
    state = init(jax.random.key(0), feed)
    step = jax.jit(vqcd.planner(single).step)
    losses = [float(step(state._replace(step=jnp.int32(i)), feed)[1]["loss"]) for i in range(2)]
    np.testing.assert_allclose(history[0]["loss"], np.mean(losses), rtol=1e-5)


def test_the_average_is_a_copy_at_first_and_lags_later(compiled, start):
    init, step = compiled
    feed = vqcd.Feed(codes_data(0), jnp.int32(0), start)
    state = init(jax.random.key(0), feed)

    def leaf(bank, tree):
        return take(CONFIG, getattr(bank, tree), jnp.int32(0))["network"]["final"]["out"]["bias"]

    seen = []
    for _ in range(5):
        state, _ = step(state, feed)
        seen.append((leaf(state.bank, "params"), leaf(state.bank, "ema")))
    np.testing.assert_array_equal(seen[0][1], seen[0][0])  # step 0 copies
    np.testing.assert_array_equal(seen[1][1], seen[0][0])  # step 1 is not due
    np.testing.assert_array_equal(seen[2][1], seen[2][0])  # step 2 copies
    expected = 0.9 * seen[2][1] + 0.1 * seen[4][0]  # step 4 averages
    np.testing.assert_allclose(seen[4][1], expected, rtol=1e-6)


@pytest.mark.slow
def test_seeds_side_by_side_equal_single_runs():
    method, data = vqcd.planner(PERCEPTRON), codes_data(0)
    keys = jax.random.split(jax.random.key(0), 4)
    banks = [vqcd.initial_bank(key, PERCEPTRON) for key in keys]
    stacked = vqcd.Feed(data, jnp.int32(0), jax.tree.map(lambda *x: jnp.stack(x), *banks))
    axes = vqcd.Feed(None, None, 0)  # type: ignore[arg-type]
    states = jax.jit(jax.vmap(method.init, (0, axes)))(keys, stacked)
    step = jax.jit(jax.vmap(method.step, (0, axes)))
    for _ in range(3):
        states, _ = step(states, stacked)
    compiled = programs(PERCEPTRON)
    for seed, bank in enumerate(banks):
        single, _ = train(PERCEPTRON, compiled, bank, 0, 3)
        alike = jax.tree.map(lambda leaf, seed=seed: leaf[seed], states.bank.params)
        for a, b in zip(jax.tree.leaves(alike), jax.tree.leaves(single.params), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.slow
def test_actions_can_be_diffused_with_the_states():
    config = changed(
        PERCEPTRON,
        behavior="diffused",
        network=PERCEPTRON.network.model_dump() | {"channels": 10},
    )
    start = vqcd.initial_bank(jax.random.key(3), config)
    bank, history = train(config, programs(config), start, 0, 3)
    assert "inverse" not in history[0]
    assert float(history[0]["loss"]) == float(history[0]["diffusion"])
    policy = vqcd.PolicyConfig(planner=config, states=STATES, actions=ACTIONS)
    weights = vqcd.task_weights(config, bank, 0)
    observations = jnp.ones((2, 3))
    actions, memory = jax.jit(vqcd.act, static_argnums=0)(
        policy, weights, space(), 0.7, observations, vqcd.begin(policy, 2), jax.random.key(0)
    )
    decoded = vqcd.policy.decode_actions(policy, space(), memory.plan[:, 0, 6:])
    np.testing.assert_allclose(actions, decoded, rtol=1e-6)


def test_a_step_is_one_program_without_calls_to_the_host(start):
    method = vqcd.planner(CONFIG)
    feed = vqcd.Feed(codes_data(0), jnp.int32(0), start)

    def steps(state):
        return jax.lax.scan(lambda s, _: method.step(s, feed), state, None, 5)

    state = jax.eval_shape(lambda: method.init(jax.random.key(0), feed))
    text = str(jax.make_jaxpr(steps)(state))
    assert text.count("scan[") == 1
    assert "callback" not in text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shares": (0.5,)}, "one for each of the 3 tasks"),
        ({"action_channels": 6, "behavior": "diffused"}, "more than the 6 of an action"),
        ({"tasks": 200}, "at most 127"),
        ({"rest": "nobody"}, "rest"),
    ],
)
def test_configs_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        changed(CONFIG, **fields)


@pytest.mark.slow
def test_tasks_on_devices_of_their_own_equal_tasks_on_one():
    method = vqcd.planner(PERCEPTRON)
    feed = stacked_feed(vqcd.initial_bank(jax.random.key(3), PERCEPTRON))
    init = jax.jit(jax.vmap(method.init, (None, FEED_AXES)))
    step = jax.jit(jax.vmap(method.step, (0, FEED_AXES)))
    start, fed = init(jax.random.key(0), feed), feed._replace(bank=None)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:TASKS]), ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    ends = []
    for states, data in ((start, fed), jax.device_put((start, fed), split)):
        for _ in range(STEPS):
            states, _ = step(states, data)
        ends.append(states.bank)
    kernels = ends[1].params["network"]["mlp"]["dense1"]["weight"]
    assert len(kernels.sharding.device_set) == TASKS
    joined = [vqcd.join_banks(PERCEPTRON, bank).params for bank in ends]
    for one, many in zip(*map(jax.tree.leaves, joined), strict=True):
        np.testing.assert_allclose(one, many, atol=1e-5)


def test_a_saved_run_goes_on_in_the_same_bits(tmp_path):
    compiled, banks = programs(PERCEPTRON), [vqcd.initial_bank(jax.random.key(3), PERCEPTRON)]
    for task in range(TASKS):
        banks.append(train(PERCEPTRON, compiled, banks[-1], task, 4)[0])
    saved = Checkpoints(tmp_path / "checkpoints")
    saved.save(2, banks[2], None)
    saved.close()
    restored = Checkpoints(tmp_path / "checkpoints").restore(2, banks[0])
    end, _ = train(PERCEPTRON, compiled, restored, 2, 4)
    assert equal((end.params, end.ema), (banks[-1].params, banks[-1].ema))
