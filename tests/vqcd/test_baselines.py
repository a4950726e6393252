"""Other continual learners: what each of them changes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import vqcd
from jaxmethods.vqcd import baselines
from jaxmethods.vqcd.activation import FREE, owned_counts
from jaxmethods.vqcd.data.task_data import gather
from jaxmethods.vqcd.method import draw, planner_loss
from tests.vqcd.toy import (
    ACTIONS,
    HORIZON,
    PERCEPTRON,
    STATES,
    changed,
    codes_data,
    equal,
    programs,
    space,
    train,
)

KEY = jax.random.key(3)
PAIR = changed(PERCEPTRON, tasks=2)
BANK_OF = jax.jit(vqcd.initial_bank, static_argnums=1)


def both_tasks(config, steps=6, **second):
    """Banks at the start, after task 0 and after task 1."""
    compiled, start = programs(config), BANK_OF(KEY, config)
    first, _ = train(config, compiled, start, 0, steps)
    last, history = train(config, compiled, first, 1, steps, **second)
    return (start, first, last), history


def distance(a, b):
    """Euclidean, of two trees."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return float(sum(jnp.square(x - y).sum() for x, y in pairs)) ** 0.5


@pytest.mark.slow
def test_a_network_a_task_forgets_nothing_and_shares_nothing():
    (start, first, last), _ = both_tasks(baselines.separate(PAIR))
    assert not [own for own in jax.tree.leaves(start.owner) if own is not None]
    before, after = (vqcd.task_weights(baselines.separate(PAIR), b, 0) for b in (first, last))
    assert equal(before, after)


@pytest.mark.slow
def test_a_pull_keeps_weights_near_what_was_learned():
    config = baselines.regularized(PAIR, 0.0)
    (_, first, free), _ = both_tasks(config)
    strong = baselines.regularized(PAIR, 1e3)
    feed = vqcd.Feed(codes_data(0), jnp.int32(0), None)
    penalty = baselines.consolidate(strong, first, feed, KEY, "l2")
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(penalty.importance))
    pulled, history = train(strong, programs(strong), first, 1, 6, penalty=penalty)
    assert distance(first.params, pulled.params) < 0.5 * distance(first.params, free.params)
    assert float(history[0]["penalty"]) == 0 < float(history[3]["penalty"])
    again = baselines.consolidate(strong, pulled, feed._replace(penalty=penalty), KEY, "l2")
    assert all((leaf == 2).all() for leaf in jax.tree.leaves(again.importance))
    assert equal(again.center, pulled.params)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ewc", "mas"])
def test_importance_is_of_gradients_with_a_floor(kind):
    config = baselines.regularized(PAIR, 1.0)
    bank = vqcd.initial_bank(KEY, config)
    feed = vqcd.Feed(codes_data(0), jnp.int32(0), None)
    found = baselines.consolidate(config, bank, feed, KEY, kind, batches=2).importance
    smallest = min(float(leaf.min()) for leaf in jax.tree.leaves(found))
    np.testing.assert_allclose(smallest, baselines.LEAST_IMPORTANCE, rtol=1e-6)
    layer = found["network"]["mlp"]["dense2"]["bias"]
    assert (layer > baselines.LEAST_IMPORTANCE).any()
    inverse = found["inverse"]["dense2"]["bias"]
    assert (inverse > baselines.LEAST_IMPORTANCE).any() == (kind == "ewc")
    if kind == "ewc":
        total, slope = (
            0.0,
            jax.jit(jax.grad(planner_loss, argnums=1, has_aux=True), static_argnums=0),
        )
        for number in range(2):
            windows = draw(config, jax.random.fold_in(KEY, 0), jnp.int32(number), feed)
            key = jax.random.fold_in(jax.random.fold_in(KEY, 1), number)
            slopes = slope(config, bank.params, bank.owner, feed.task, windows, key)[0]
            total += jnp.square(slopes["network"]["mlp"]["dense2"]["bias"]) / 2
        np.testing.assert_allclose(layer, jnp.maximum(total, 1e-5), rtol=1e-4)


@pytest.mark.parametrize("behavior", ["diffused", "cloned"])
def test_synapses_count_whatever_the_network_puts_out(behavior):
    network = PAIR.network.model_dump() | {"channels": 10 if behavior == "diffused" else 6}
    config = baselines.regularized(changed(PAIR, behavior=behavior, network=network), 1.0)
    feed = vqcd.Feed(codes_data(0), jnp.int32(0), None)
    found = baselines.consolidate(config, BANK_OF(KEY, config), feed, KEY, "mas", 1).importance
    layers = found["network"]["mlp"] if behavior == "diffused" else found["inverse"]
    assert (layers["dense2"]["bias"] > baselines.LEAST_IMPORTANCE).all()


@pytest.mark.slow
def test_packnet_keeps_the_largest_and_runs_earlier_tasks_weights():
    config = baselines.packnet(changed(PERCEPTRON, tasks=2))
    compiled = programs(config)
    bank = baselines.nothing_owned(vqcd.initial_bank(KEY, config))
    bank = baselines.claim_free(bank, 0)
    trained, _ = train(config, compiled, bank, 0, 4)
    pruned = baselines.keep_largest(config, trained, 0)
    kernel, owner = (
        np.asarray(tree["network"]["mlp"]["dense1"]["weight"])
        for tree in (pruned.params, pruned.owner)
    )
    assert (owner == 0).sum() == kernel.size // 2
    assert np.abs(kernel[owner == 0]).min() >= np.abs(kernel[owner == FREE]).max()
    retrained, _ = train(config, compiled, pruned._replace(done=jnp.int32(0)), 0, 2)
    again = np.asarray(retrained.params["network"]["mlp"]["dense1"]["weight"])
    np.testing.assert_array_equal(again[owner == FREE], kernel[owner == FREE])
    average = np.asarray(retrained.ema["network"]["mlp"]["dense1"]["weight"])
    first = vqcd.task_weights(config, retrained, 0)
    second, _ = train(config, compiled, baselines.claim_free(retrained, 1), 1, 4)
    second = baselines.keep_largest(config, second, 1)
    counts = owned_counts(second.owner, 2)["network"]["mlp"]["dense1"]["weight"]
    assert counts.tolist() == [kernel.size // 2, kernel.size - kernel.size // 2]
    # Biases are frozen after the first task, and the inverse model is a task's own.
    assert equal(first, vqcd.task_weights(config, second, 0))
    own = vqcd.task_weights(config, second, 1).network["mlp"]["dense1"]["weight"]
    np.testing.assert_array_equal(np.asarray(own)[owner == 0], average[owner == 0])
    running = np.asarray(second.params["network"]["mlp"]["dense1"]["weight"])
    np.testing.assert_array_equal(running[owner == 0], average[owner == 0])


@pytest.mark.slow
def test_adapters_leave_the_first_tasks_network_alone():
    config = baselines.cod_lora(PAIR, rank=2)
    (start, first, last), _ = both_tasks(config)
    assert equal(first.ema["network"], last.ema["network"])
    assert equal(first.ema["network"], last.params["network"])  # what adapters are trained on
    assert not equal(start.params["network"], first.params["network"])
    assert equal(start.params["adapters"], first.params["adapters"])
    assert not equal(first.params["adapters"], last.params["adapters"])
    before, after = (vqcd.task_weights(config, bank, 0) for bank in (first, last))
    assert equal(before, after)
    adapter = jax.tree.map(lambda leaf: leaf[1], last.ema["adapters"]["mlp.dense0"])
    base = last.ema["network"]["mlp"]["dense0"]["weight"]
    own = vqcd.task_weights(config, last, 1).network["mlp"]["dense0"]["weight"]
    np.testing.assert_allclose(own, base + adapter["down"] @ adapter["up"], rtol=1e-6)


def test_every_so_manieth_batch_is_of_an_earlier_task():
    config = baselines.cod_rcr(PAIR, every=3)
    kept = [vqcd.last_windows(codes_data(task), 0.5, 8) for task in (0, 1)]
    feed = vqcd.Feed(codes_data(2), jnp.int32(1), None, vqcd.stack_tasks(kept))
    numbers = jnp.arange(60)
    tasks = jax.jit(jax.vmap(lambda number: draw(config, KEY, number, feed).task))(numbers)
    of_batch = np.asarray(tasks)
    assert (of_batch == of_batch[:, :1]).all()
    now = numbers % 3 == 2
    assert (of_batch[~now] == 2).all()
    assert set(of_batch[now, 0]) == {0, 1}
    assert draw(config, KEY, jnp.int32(2), feed._replace(replay=None)).task[0] == 2


@pytest.mark.slow
def test_the_predecessor_is_given_the_task_and_not_the_return():
    config = baselines.cod(PAIR)
    bank = vqcd.initial_bank(KEY, config)
    windows = gather(codes_data(1), jnp.arange(8), HORIZON)

    def loss(**changes):
        found = planner_loss(
            config, bank.params, bank.owner, jnp.int32(0), windows._replace(**changes), KEY
        )
        return float(found[0])

    assert loss(returns=windows.returns + 1) == loss()
    assert loss(task=windows.task + 1) != loss()


def test_cloning_trains_a_policy_without_plans():
    config = baselines.rehearsal(PAIR)
    (_, _, last), history = both_tasks(config)
    assert set(history[0]) == {"loss", "cloning"}
    policy = vqcd.PolicyConfig(planner=config, states=STATES, actions=ACTIONS)
    weights = vqcd.task_weights(config, last, 1)
    memory = vqcd.begin(policy, 2)
    arguments = space(1), 0.8, jnp.ones((2, 5)), memory, KEY
    actions, after = vqcd.act(policy, weights, *arguments)
    assert actions.shape == (2, 2)
    assert equal(memory, after)


@pytest.mark.slow
def test_mixed_tasks_train_one_network():
    config = baselines.multitask(PAIR)
    joined = vqcd.join_tasks([codes_data(0), codes_data(1)])
    bank, history = train(
        config, programs(config), vqcd.initial_bank(KEY, config), 0, 3, data=joined
    )
    assert float(history[-1]["loss"]) > 0
    assert equal(vqcd.task_weights(config, bank, 0), vqcd.task_weights(config, bank, 1))


@pytest.mark.slow
def test_a_planners_own_plans_can_be_replayed():
    config = baselines.generative_replay(PAIR, every=2)
    bank = vqcd.initial_bank(KEY, config)
    weights = vqcd.task_weights(config, bank, 0)
    presents = jnp.linspace(-1, 1, 24).reshape(4, 6)
    bounds = jnp.full(6, -1.0), jnp.full(6, 1.0)
    found = baselines.generated_windows(
        config, weights, presents, jnp.linspace(0, 1, 4), 0, bounds, KEY
    )
    windows = gather(found, jnp.arange(4), HORIZON)
    np.testing.assert_array_equal(windows.states[:, 0], presents)
    expected = vqcd.baselines.inverse_dynamics(
        weights.inverse, windows.states[:, 1], windows.states[:, 2]
    )
    np.testing.assert_allclose(windows.actions[:, 1], expected, rtol=1e-5, atol=1e-6)
    _, history = train(config, programs(config), bank, 1, 2, replay=vqcd.stack_tasks([found]))
    assert np.isfinite(float(history[1]["loss"]))
    with pytest.raises(ValueError, match="expected 'inverse'"):
        baselines.generated_windows(
            changed(config, behavior="cloned"), weights, presents, presents[:, 0], 0, bounds, KEY
        )
