"""One update: who moves, what stays, and what equals what."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmethods import envs
from jaxmethods.commformer import config, experience, method, objectives, schedule
from jaxmethods.commformer import graph as graphs
from jaxmethods.envs.episode_statistics import EpisodeStatistics, follow_episodes
from jaxmethods.numerics.minibatches import shuffled_minibatches
from jaxmethods.numerics.precision import whole_part

NETWORK = config.NetworkConfig(embed=8)
PPO = config.PPOConfig(environments=8, rollout=6, epochs=5, minibatches=1)
GRAPH = config.GraphConfig(warmup_updates=1)


def build(graph=GRAPH, ppo=PPO, updates=8, network=NETWORK, env=None):
    env = env or envs.make("predator_prey", n_predators=3, dim=3)
    training = schedule.prepare(env, network, graph, ppo, updates)
    return training, method.trainer(env, network, graph, ppo, updates)


def one_update(update=5, **options):
    """A fresh state, and what one update makes of it."""
    _, trained = build(**options)
    before = jax.jit(trained.init)(jax.random.key(0), None)._replace(update=jnp.int32(update))
    return before, *jax.jit(trained.step)(before, None)


def moved(before, after):
    """Whether (any of the network's parameters, any edge) changed."""
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before.levels, after.levels)
    return any(jax.tree.leaves(changed.lower)), changed.upper


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


def test_environment_steps_are_counted_past_what_an_int32_holds(compiled, updated):
    state = updated[0]._replace(update=jnp.int32(50_000_000))
    metrics = compiled[2](state, None)[1]
    np.testing.assert_allclose(metrics["environment_steps"], 50_000_001 * 48, rtol=1e-6)


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
    assert schedule.moves_upper(training, jnp.int32(0)).sum() == upper


def test_post_stable_freezes_the_edges_after_its_share_of_the_run():
    graph = config.GraphConfig(post_stable=True, post_ratio=0.5)
    training, _ = build(graph)
    assert schedule.moves_upper(training, jnp.int32(4)).any()
    assert not schedule.moves_upper(training, jnp.int32(5)).any()


def test_the_network_optimizer_steps_as_often_as_annealing_plans():
    for graph in (
        GRAPH,
        config.GraphConfig(post_stable=True),
        config.GraphConfig(kind="full"),
        config.GraphConfig(levels="frozen"),
    ):
        training, _ = build(graph)
        uppers = [int(schedule.moves_upper(training, jnp.int32(u)).sum()) for u in range(8)]
        assert schedule.lower_steps(training) == 8 * PPO.epochs - sum(uppers)


@pytest.mark.parametrize(("ratio", "updates", "last"), [(0.29, 100, 29), (0.57, 100, 57)])
def test_a_share_of_the_run_that_is_whole_is_taken_whole(ratio, updates, last):
    """0.29 * 100 is 28.999... in binary floating point."""
    graph = config.GraphConfig(post_stable=True, post_ratio=ratio)
    training, _ = build(graph, updates=updates)
    assert schedule.stable_from(training) == last
    logits, noise = jnp.eye(3), jnp.arange(9.0).reshape(3, 3)
    for update, stable in ((last, False), (last + 1, True)):
        found = graphs.scheduled_graph(logits, noise, update, updates, 1, graph)
        assert np.array_equal(found, jnp.eye(3)) == stable
    for number in range(1, 200):  # thousandths, up to millions of updates
        assert whole_part(number / 1000, 29_000_000) == number * 29_000


@pytest.mark.parametrize("update", [0, 5])
def test_training_on_the_rollouts_graph_starts_at_ratio_one(compiled, update):
    training, init, _ = compiled
    state = init(jax.random.key(1), None)._replace(update=jnp.int32(update))
    noise = jax.random.gumbel(jax.random.key(2), (3, 3))

    def first_loss(state):
        state, _, samples = experience.collect(training, state, noise, jax.random.key(3))
        levels = state.levels
        return method.minibatch_loss(
            training,
            levels.lower,
            levels.upper,
            samples,
            state.value_norm,
            noise,
            state.update,
            jax.random.key(4),
        )

    _, (_, metrics) = jax.jit(first_loss)(state)
    np.testing.assert_allclose(metrics["ratio"], 1.0, atol=1e-5)


@pytest.mark.slow
def test_a_fixed_graph_never_changes():
    training, trained = build(config.GraphConfig(kind="random"))
    before = jax.jit(trained.init)(jax.random.key(0), None)
    after, metrics = jax.jit(trained.step)(before, None)
    chex.assert_trees_all_equal(before.levels.upper, after.levels.upper)
    assert schedule.hardened_graph(training, after.levels.upper).sum() == 3
    assert "edge_logit_range" not in metrics


@pytest.mark.parametrize("kind", ["full", "none", "random"])
def test_no_epoch_moves_a_fixed_graph(kind):
    training, _ = build(config.GraphConfig(kind=kind))
    assert not schedule.moves_upper(training, jnp.int32(3)).any()


@pytest.mark.parametrize("shares", [1, 2])
def test_minibatches_are_a_partition_with_as_many_samples_of_every_share(shares):
    samples = jnp.arange(12)
    collected = experience.Experience(samples, samples, samples, samples)
    split = shuffled_minibatches(jax.random.key(0), collected, 3, shares)
    assert split.action.shape == (3, 4)
    assert sorted(split.action.ravel().tolist()) == list(range(12))
    if shares == 2:
        assert ((split.action < 6).sum(1) == 2).all()
    assert split.action.ravel().tolist() != list(range(12))


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


@pytest.mark.slow
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
    start = EpisodeStatistics(zeros.astype(jnp.int32), zeros, zeros, zeros)
    last = jnp.array([[False], [True], [False]])
    trajectory = envs.Trajectory(*[None] * 2, jnp.full((3, 1, 2), 0.5), None, last, None, None)
    after = follow_episodes(start, trajectory)
    assert after.length.tolist() == [2.0]
    assert after.returned.tolist() == [1.0]
    assert after.running_length.tolist() == [1]


class TestLevels:
    """What moves, when, and on which samples."""

    @pytest.mark.slow
    def test_joint_updates_move_both_levels_in_every_step(self):
        graph = config.GraphConfig(warmup_updates=1, levels="joint")
        _, after, metrics = one_update(graph=graph)
        assert after.levels.lower_optimizer[1][0].count == PPO.epochs
        assert after.levels.upper_optimizer[0].count == PPO.epochs
        assert jnp.isfinite(metrics["gradient_norm"])

    def test_a_frozen_graph_leaves_every_epoch_to_the_network(self):
        training, _ = build(graph=config.GraphConfig(levels="frozen"))
        assert not schedule.moves_upper(training, jnp.int32(3)).any()
        assert schedule.lower_steps(training) == 8 * PPO.epochs

    @pytest.mark.parametrize(("environments", "fraction"), [(2, 0.9), (2, 0.1), (3, 0.9)])
    def test_split_data_leaves_both_levels_an_environment(self, environments, fraction):
        graph = config.GraphConfig(upper_data="split", upper_fraction=fraction)
        ppo = config.PPOConfig(environments=environments, minibatches=1)
        held_out = experience.held_out_samples(build(graph=graph, ppo=ppo)[0])
        assert held_out.any(1).all()
        assert (~held_out).any(1).all()

    @pytest.mark.parametrize(("kind", "model"), [("full", "commformer"), ("learned", "mappo")])
    def test_where_no_graph_is_learned_all_samples_are_the_networks(self, kind, model):
        graph = config.GraphConfig(kind=kind, upper_data="split")
        network = NETWORK.model_copy(update={"model": model})
        assert experience.held_out_samples(build(graph=graph, network=network)[0]) is None

    def test_one_environment_cannot_be_split(self):
        graph = config.GraphConfig(upper_data="split")
        ppo = config.PPOConfig(environments=1, minibatches=1)
        with pytest.raises(ValueError, match="split needs two environments, got 1"):
            experience.held_out_samples(build(graph=graph, ppo=ppo)[0])

    def test_split_data_gives_each_level_its_own_environments(self):
        graph = config.GraphConfig(upper_data="split", upper_fraction=0.25)
        training, _ = build(graph=graph)
        held_out = experience.held_out_samples(training)
        assert held_out.shape == (PPO.rollout, PPO.environments)
        assert held_out.sum(1).tolist() == [2] * PPO.rollout
        flat = jnp.swapaxes(held_out, 0, 1).reshape(-1)
        shape = (len(flat), 3)
        alive = jnp.ones(shape).at[:, 0].set(0)
        for active in (None, alive):
            targets = objectives.PPOTargets(*[jnp.zeros(shape)] * 4, active=active)
            samples = experience.Experience(None, None, None, targets, held_out=flat)
            lower, upper = (experience.of_level(samples, u).targets.active for u in (False, True))
            np.testing.assert_array_equal(
                lower + upper, jnp.ones(shape) if active is None else alive
            )
            assert upper[:, 1].sum() == held_out.sum()


@pytest.mark.slow
class TestUnrolledGradient:
    """The edge logits' gradient through one step of the network, on collected experience."""

    @pytest.fixture(scope="class")
    def gradients(self):
        training, trained = build(network=config.NetworkConfig(embed=8, heads=2))
        state = jax.jit(trained.init)(jax.random.key(0), None)._replace(update=jnp.int32(5))
        noise = jax.random.gumbel(jax.random.key(2), (3, 3))

        @jax.jit
        def compute(state):
            after, _, samples = experience.collect(training, state, noise, jax.random.key(3))
            rest = (after.value_norm, noise, state.update, jax.random.key(4))
            levels = state.levels

            def loss(lower, upper):
                return method.minibatch_loss(training, lower, upper, samples, *rest)[0]

            def unrolled(rate):
                graph = GRAPH.model_copy(update={"unroll": 1, "unroll_rate": rate})
                own = training._replace(graph=graph)
                return method.unrolled_edge_gradient(own, levels, samples, rest)

            def through_the_step(edges):
                step = jax.grad(loss)(levels.lower, edges)
                lower = jax.tree.map(lambda w, g: w - 0.3 * g, levels.lower, step)
                return loss(lower, edges)

            first_order = jax.grad(loss, argnums=1)(levels.lower, levels.upper)
            return (
                first_order,
                unrolled(0.0),
                unrolled(0.3),
                jax.grad(through_the_step)(levels.upper),
            )

        return compute(state)

    def test_at_rate_zero_it_is_the_first_order_one(self, gradients):
        first_order, at_zero, _, _ = gradients
        np.testing.assert_allclose(at_zero, first_order, atol=1e-6)

    def test_it_is_the_derivative_of_the_loss_after_the_step(self, gradients):
        first_order, _, at_rate, expected = gradients
        scale = jnp.abs(expected).max()
        np.testing.assert_allclose(at_rate, expected, atol=1e-4 * scale)
        assert not np.allclose(first_order, expected, atol=1e-3 * scale)


@pytest.mark.slow
def test_every_option_together_trains_and_moves_both_levels():
    gate = config.GateConfig(mode="sampled", initial_logit=0.0)
    before, after, metrics = one_update(
        network=config.NetworkConfig(embed=8, gate=gate),
        graph=config.GraphConfig(warmup_updates=1, unroll=1, upper_data="split"),
        ppo=PPO.model_copy(update={"minibatches": 2, "bootstrap_truncated": True}),
        env=envs.make("traffic_junction", n_cars=3, add_rate=0.5, time_limit=3),
    )
    assert moved(before, after) == (True, True)
    assert all(jnp.isfinite(value) for value in metrics.values())
    assert 0 < metrics["communication_rate"] < 1
    assert metrics["messages_per_step"] <= 3  # one sender for each of three cars


@pytest.mark.parametrize(
    ("model", "messages"),
    [
        pytest.param("mat", 6, marks=pytest.mark.slow),
        pytest.param("ippo", 0, marks=pytest.mark.slow),
        ("mappo", 0),
    ],
)
def test_baselines_train_on_the_same_path_without_a_learned_graph(model, messages):
    before, after, metrics = one_update(network=config.NetworkConfig(model=model, embed=8))
    assert moved(before, after) == (True, False)
    assert metrics["messages_per_step"] == messages
    assert after.levels.lower_optimizer[1][0].count == PPO.epochs
    np.testing.assert_allclose(metrics["ratio"], 1.0, atol=0.2)


def test_a_given_graph_is_used_as_it_is_and_must_fit_the_team():
    edges = ((1, 0, 0), (1, 0, 0), (0, 1, 0))
    training, trained = build(config.GraphConfig(kind="fixed", edges=edges))
    state = jax.eval_shape(trained.init, jax.random.key(0), None)
    assert state.levels.upper.shape == (3, 3)
    np.testing.assert_array_equal(schedule.initial_edges(training, jax.random.key(0)), edges)
    with pytest.raises(ValueError, match="edges must be 3 rows of 3 entries"):
        build(config.GraphConfig(kind="fixed", edges=((1, 0), (0, 1))))


class TestWhoTakesPart:
    """Agents that are not alive count neither in losses nor in the advantages' statistics."""

    def test_after_an_episode_those_alive_at_a_beginning_take_part(self):
        training, _ = build(env=envs.make("traffic_junction", n_cars=2))
        alive = jnp.array([[[1, 0]], [[1, 1]], [[0, 1]]], bool)  # [T, R, N]
        last = jnp.array([[False], [True], [False]])
        trajectory = envs.Trajectory(*[None] * 4, last, None, {"alive": alive})
        active = jnp.array([[False, True]])
        before, following = experience.active_agents(training, active, trajectory)
        expected = [[[0, 1]], [[1, 0]], [[0, 0]]]  # new roads are empty
        np.testing.assert_array_equal(before, expected)
        np.testing.assert_array_equal(following, alive[-1])

    def test_environments_without_mortal_agents_have_no_mask(self, compiled):
        _, init, _ = compiled
        assert init(jax.random.key(0), None).active is None


@pytest.mark.slow
class TestACarThatLeaves:
    """What happens in its slot afterward is no consequence of what it did."""

    @pytest.fixture(scope="class")
    def collected(self):
        """An undiscounted roll-out with values of 0, whose returns are plain sums: [T, R, N]."""
        ppo = PPO.model_copy(
            update={"discount": 1.0, "gae_lambda": 1.0, "environments": 16, "rollout": 24}
        )
        env = envs.make("traffic_junction", n_cars=4, add_rate=0.9)
        training, trained = build(ppo=ppo, env=env)
        state = jax.jit(trained.init)(jax.random.key(0), None)
        head = jax.tree.map(jnp.zeros_like, state.levels.lower)  # all weights 0: values 0
        state = state._replace(levels=state.levels._replace(lower=head))

        @jax.jit
        def collect(state):
            _, trajectory, samples = experience.collect(
                training, state, jnp.zeros((4, 4)), jax.random.key(1)
            )
            return trajectory, samples.targets

        trajectory, targets = collect(state)
        shape = (ppo.environments, ppo.rollout, 4)
        by_time = (leaf.reshape(shape).swapaxes(0, 1) for leaf in (targets.returns, targets.active))
        return jax.tree.map(np.asarray, (trajectory, *by_time))

    def test_a_return_is_the_sum_of_the_cars_own_rewards(self, collected):
        trajectory, returns, active = collected
        left = trajectory.discount == 0
        alive = trajectory.extras["alive"]
        assert left.sum() > 20
        assert (left & alive).any(), "a slot must be taken in the step in which it is freed"
        expected, total = np.zeros_like(returns), 0.0
        for step in reversed(range(len(returns))):
            paid = np.where(left[step] & alive[step], 0.0, trajectory.reward[step])
            total = paid + np.where(left[step], 0.0, total)
            expected[step] = total
        np.testing.assert_allclose(returns[active > 0], expected[active > 0], atol=1e-4)

    def test_its_last_step_is_worth_nothing_whoever_crashes_there_later(self, collected):
        trajectory, returns, active = collected
        left = trajectory.discount == 0
        assert (active[left] == 1).all()
        assert (trajectory.reward[1:][left[:-1]] < -5).any(), "somebody must crash there"
        np.testing.assert_allclose(returns[left], 0.0, atol=1e-6)


def test_rewards_of_a_terminated_episode_go_to_agents_that_are_alive():
    """All discounts are 0 there, of an episode that goes on only those of agents that left."""
    reward = -jnp.arange(1.0, 7.0).reshape(3, 1, 2)
    discount = jnp.array([[[0, 1]], [[0, 0]], [[0, 0]]], float)
    last = jnp.array([[False], [True], [False]])
    alive = jnp.array([[[1, 1]], [[1, 1]], [[1, 0]]], bool)
    trajectory = envs.Trajectory(None, None, reward, discount, last, None, {"alive": alive})
    expected = [[[0, -2]], [[-3, -4]], [[0, -6]]]
    np.testing.assert_array_equal(experience.own_rewards(trajectory), expected)


def test_environment_steps_count_on_beyond_what_int32_holds(compiled):
    _, init, step = compiled
    state = init(jax.random.key(0), None)._replace(update=jnp.int32(2**30))
    metrics = step(state, None)[1]
    np.testing.assert_allclose(metrics["environment_steps"], (2**30 + 1) * 8 * 6, rtol=1e-6)


@pytest.mark.slow
def test_a_truncated_episode_is_worth_what_the_state_it_reached_is():
    """With lambda 0 the return of a cut step is its reward plus the value of what it led to."""
    ppo = PPO.model_copy(update={"gae_lambda": 0.0, "bootstrap_truncated": True, "rollout": 3})
    env = envs.make("predator_prey", n_predators=3, dim=3, mode="cooperative", time_limit=2)
    training, trained = build(ppo=ppo, env=env)
    state = jax.jit(trained.init)(jax.random.key(0), None)
    noise = jnp.zeros((3, 3))

    @jax.jit
    def collected(state):
        after, trajectory, samples = experience.collect(training, state, noise, jax.random.key(1))
        reached = trajectory.extras["next_obs"].agents_view
        graph = schedule.acting_graph(training, state.levels.upper, noise, state.update)
        encoded = training.network.apply(
            state.levels.lower, reached.reshape(-1, *reached.shape[2:]), graph, method="encode"
        )
        value = objectives.value_norm_denormalize(state.value_norm, encoded.value)
        return after, trajectory, samples.targets.returns, value.reshape(trajectory.reward.shape)

    after, trajectory, returns, value = collected(state)
    chex.assert_trees_all_equal_structs(state, after)
    returns = returns.reshape(PPO.environments, 3, 3).swapaxes(0, 1)
    assert trajectory.last[1].all()
    np.testing.assert_allclose(returns, trajectory.reward + ppo.discount * value, atol=1e-6)
