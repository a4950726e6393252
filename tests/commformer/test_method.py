"""One update: who moves, what stays, and what equals what."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import envs
from jaxmethods.commformer import config, method
from jaxmethods.commformer.network import CommFormer

NETWORK = config.NetworkConfig(embed=8)
PPO = config.PPOConfig(environments=8, rollout=6, epochs=5, minibatches=1)
GRAPH = config.GraphConfig(warmup_updates=1)


def build(graph=GRAPH, ppo=PPO, updates=8):
    env = envs.make("predator_prey", n_predators=3, dim=3)
    network = CommFormer(NETWORK, env.num_agents, env.num_actions)
    training = method.CommFormerTraining(env, network, graph, ppo, updates)
    return training, method.trainer(env, NETWORK, graph, ppo, updates)


@pytest.fixture(scope="module")
def compiled():
    """The training's pieces with `init` and `step` compiled once for all tests."""
    training, trained = build()
    return training, jax.jit(trained.init), jax.jit(trained.step)


@pytest.fixture(scope="module")
def updated(compiled):
    _, init, step = compiled
    state = init(jax.random.key(0), None)._replace(update=jnp.int32(5))
    return state, *step(state, None)


def test_an_update_moves_both_levels_and_counts_itself(updated):
    before, after, metrics = updated
    assert jnp.all(before.levels.upper != after.levels.upper)
    moved = jax.tree.map(lambda a, b: jnp.any(a != b), before.levels.lower, after.levels.lower)
    assert all(jax.tree.leaves(moved))
    assert after.update == 6
    assert metrics["environment_steps"] == 6 * 8 * 6


def test_metrics_are_finite_scalars(updated):
    for name, value in updated[2].items():
        assert value.shape == (), name
        assert jnp.isfinite(value), name


def test_four_epochs_in_five_move_the_network(updated):
    assert updated[1].levels.lower_optimizer[1][0].count == 4
    assert updated[1].levels.upper_optimizer[0].count == 1


@pytest.mark.parametrize(("epochs", "upper"), [(10, 2), (15, 3), (5, 1), (4, 0)])
def test_every_fifth_epoch_is_an_upper_one(epochs, upper):
    training, _ = build(ppo=config.PPOConfig(epochs=epochs))
    assert method.moves_upper(training, jnp.int32(0)).sum() == upper


def test_post_stable_freezes_the_edges_after_its_share_of_the_run():
    graph = config.GraphConfig(post_stable=True, post_ratio=0.5)
    training, _ = build(graph)
    assert method.moves_upper(training, jnp.int32(4)).any()
    assert not method.moves_upper(training, jnp.int32(5)).any()


def test_the_network_optimizer_steps_as_often_as_annealing_plans():
    for graph in (GRAPH, config.GraphConfig(post_stable=True), config.GraphConfig(kind="full")):
        training, _ = build(graph)
        uppers = [int(method.moves_upper(training, jnp.int32(u)).sum()) for u in range(8)]
        assert method.lower_steps(training) == 8 * PPO.epochs - sum(uppers)


@pytest.mark.parametrize("update", [0, 5])
def test_training_on_the_rollouts_graph_starts_at_ratio_one(compiled, update):
    training, init, _ = compiled
    state = init(jax.random.key(1), None)._replace(update=jnp.int32(update))
    noise = jax.random.gumbel(jax.random.key(2), (3, 3))

    def first_loss(state):
        state, _, experience = method.collect(training, state, noise, jax.random.key(3))
        levels = state.levels
        return method.minibatch_loss(
            training,
            levels.lower,
            levels.upper,
            experience,
            state.value_norm,
            noise,
            state.update,
            jax.random.key(4),
        )

    _, (_, metrics) = jax.jit(first_loss)(state)
    np.testing.assert_allclose(metrics["ratio"], 1.0, atol=1e-5)


def test_a_fixed_graph_never_changes():
    training, trained = build(config.GraphConfig(kind="random"))
    before = jax.jit(trained.init)(jax.random.key(0), None)
    after, metrics = jax.jit(trained.step)(before, None)
    chex.assert_trees_all_equal(before.levels.upper, after.levels.upper)
    assert method.hardened_graph(training, after.levels.upper).sum() == 3
    assert "edge_logit_range" not in metrics


@pytest.mark.parametrize("kind", ["full", "none", "random"])
def test_no_epoch_moves_a_fixed_graph(kind):
    training, _ = build(config.GraphConfig(kind=kind))
    assert not method.moves_upper(training, jnp.int32(3)).any()


def test_minibatches_are_a_partition():
    samples = jnp.arange(12)
    experience = method.Experience(samples, samples, samples, samples)
    split = method.shuffled_minibatches(jax.random.key(0), experience, 3)
    assert split.action.shape == (3, 4)
    assert sorted(split.action.ravel().tolist()) == list(range(12))


def test_the_step_has_no_host_callback_and_repeats_bit_by_bit(compiled):
    _, init, step = compiled
    state = init(jax.random.key(0), None)
    assert "callback" not in step.lower(state, None).as_text()
    first, second = step(state, None), step(state, None)
    data = jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        (first, second),
    )
    chex.assert_trees_all_equal(*data)


def test_seeds_train_together_as_they_would_alone(compiled):
    _, init, step = compiled
    states = [init(key, None) for key in jax.random.split(jax.random.key(7), 4)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    together, _ = jax.jit(jax.vmap(step, (0, None)))(stacked, None)
    alone, _ = step(states[2], None)
    pick = jax.tree.map(lambda x: x[2], together)
    chex.assert_trees_all_close(pick.levels.lower, alone.levels.lower, atol=1e-4)
    chex.assert_trees_all_equal(pick.environment.predators, alone.environment.predators)


def test_episode_statistics_follow_completed_episodes():
    zeros = jnp.zeros(1)
    start = method.EpisodeStatistics(zeros.astype(jnp.int32), zeros, zeros, zeros)
    last = jnp.array([[False], [True], [False]])
    trajectory = envs.Trajectory(*[None] * 2, jnp.full((3, 1, 2), 0.5), None, last, None, None)
    after = method.follow_episodes(start, trajectory)
    assert after.length.tolist() == [2.0]
    assert after.returned.tolist() == [1.0]
    assert after.running_length.tolist() == [1]
