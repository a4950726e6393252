"""The distillation as a method: its update, its sweeps, its program and that program's memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmethods.obd import method, synthetic
from jaxmethods.obd.config import OBDConfig
from jaxmethods.obd.types import Source, SynSet
from jaxmethods.offline_rl import policies as policy
from jaxmethods.offline_rl.types import Norm, OfflineData, Teacher, teacher_states
from tests.obd import small


def changed(**fields):
    return OBDConfig.model_validate(small.CONFIG.model_dump() | fields)


def start(config=small.CONFIG, seed=0):
    distilling = method.distiller(config)
    return distilling, jax.jit(distilling.init)(jax.random.key(seed), small.source())


def assert_close(actual, expected, tolerance=1e-4):
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance),
        actual,
        expected,
    )


def test_the_initial_set_is_different_rows_of_the_data():
    _, state = start()
    rows = {tuple(row) for row in np.asarray(jnp.hstack(small.source().data[:2]))}
    mine = {tuple(row) for row in np.asarray(jnp.hstack(state.syn))}
    assert len(mine) == small.N
    assert mine <= rows


def test_one_step_is_a_clipped_momentum_step_along_the_gradient():
    config = changed(objective="pbc", clip=5e-3)
    distilling, state = start(config)
    step = jax.jit(distilling.step)
    first, metrics = step(state, small.source())
    assert metrics["gradient_norm"] > config.clip
    moved = jax.tree.map(lambda a, b: a - b, first.syn, state.syn)
    np.testing.assert_allclose(optax.tree.norm(moved), config.outer_lr * config.clip, rtol=1e-3)
    second, _ = step(first, small.source())
    velocity = jax.tree.map(lambda a, b: (b - a) / config.outer_lr, second.syn, first.syn)
    previous = jax.tree.map(lambda m: -m / config.outer_lr, moved)
    gradient = jax.tree.map(lambda v, u: v - config.outer_momentum * u, velocity, previous)
    np.testing.assert_allclose(optax.tree.norm(gradient), config.clip, rtol=1e-2)
    assert int(second.step) == 2


@pytest.mark.parametrize(
    "fields",
    [{}, pytest.param({"n_inits": 2, "inner_momentum": 0.5}, marks=pytest.mark.slow)],
)
def test_the_objective_of_the_state_is_the_loss_of_the_next_step(fields):
    """Its gradient in the set is the one that the step clips and goes down on."""
    distilling, state = start(changed(**fields))

    @jax.jit
    def told(state, source):
        own = distilling.objective(state, source)
        loss, slope = jax.value_and_grad(own.loss)(own.params, state.key)
        return loss, optax.tree.norm(slope), distilling.step(state, source)[1]

    loss, norm, metrics = told(state, small.source())
    np.testing.assert_allclose(loss, metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(norm, metrics["gradient_norm"], rtol=1e-4)


@pytest.mark.slow
def test_an_inactive_clip_changes_nothing():
    distilling, state = start(changed(clip=1e3))
    unclipped, metrics = jax.jit(distilling.step)(state, small.source())
    norm = float(metrics["gradient_norm"])
    clipped, _ = jax.jit(method.distiller(changed(clip=2 * norm)).step)(state, small.source())
    jax.tree.map(np.testing.assert_array_equal, unclipped.syn, clipped.syn)


@pytest.mark.slow
def test_a_sweep_in_one_program_is_the_single_runs():
    keys = jax.random.split(jax.random.key(7), 4)
    betas, rates = jnp.array([0.0, 0.02, 0.1, 0.3]), jnp.array([0.1, 0.2, 0.05, 0.1])
    sizes = jnp.array([6, 3, 5, 6])
    distilling = method.distiller(changed(inner_momentum=0.5))

    source = jax.tree.map(jnp.asarray, small.source())

    def run(key, beta_w, lr, size):
        state = distilling.init(key, source)
        state = method.with_rates(state, beta_w=beta_w, inner_lr=lr, size=size)
        return jax.lax.scan(lambda s, _: distilling.step(s, source), state, length=3)

    together = jax.jit(jax.vmap(run))(keys, betas, rates, sizes)
    alone = jax.jit(run)
    for i in range(4):
        state, metrics = alone(keys[i], betas[i], rates[i], sizes[i])
        assert_close(jax.tree.map(lambda x, i=i: x[i], together[0].syn), state.syn)
        assert_close(jax.tree.map(lambda x, i=i: x[i], together[1]), metrics)


@pytest.mark.slow
def test_a_smaller_size_moves_its_pairs_only():
    distilling, state = start()
    state = method.with_rates(state, size=2)
    after, _ = jax.jit(distilling.step)(state, small.source())
    np.testing.assert_array_equal(after.syn.states[2:], state.syn.states[2:])
    assert np.all(np.asarray(after.syn.states[:2] != state.syn.states[:2]).any(1))
    assert len(method.used(after).states) == 2


@pytest.mark.parametrize("name", ["inner_momentum", "outer_rate"])
def test_rates_that_a_distillation_does_not_have_are_refused(name):
    config = changed(inner_momentum=0.0)
    state = method.init_state(config, jax.random.key(0), small.source())
    with pytest.raises(ValueError, match=f"{name}: expected one of inner_lr, outer_lr, .*got 0.5"):
        method.with_rates(state, **{name: 0.5})


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["mixed_saved", "reverse", "remat"])
def test_all_modes_take_the_same_step(mode):
    distilling, state = start()
    expected, _ = jax.jit(distilling.step)(state, small.source())
    other, _ = jax.jit(method.distiller(changed(mode=mode)).step)(state, small.source())
    assert_close(other.syn, expected.syn, 1e-5)


@pytest.mark.slow
def test_several_students_average_their_gradients():
    """The mean of J students' losses varies less over keys than one student's."""
    losses = {}
    for n_inits in (1, 8):
        distilling, state = start(changed(n_inits=n_inits))
        states = jax.vmap(lambda key, s=state: s._replace(key=key))(
            jax.random.split(jax.random.key(0), 32)
        )
        _, metrics = jax.jit(jax.vmap(distilling.step, (0, None)))(states, small.source())
        losses[n_inits] = np.asarray(metrics["inner_first"])
    assert losses[8].std() < 0.6 * losses[1].std()


def test_students_come_from_the_pool_where_there_is_one():
    config = changed(init_pool=3)
    student = method.make_student(config.student)
    pool = method.init_pool(jax.random.key(0), config, small.source(), student)
    source = small.source()._replace(init_pool=pool)
    first = np.asarray(pool.layers[0][0])
    for seed in range(4):
        drawn = method.initial_student(student, source, jax.random.key(seed))
        assert any(np.array_equal(drawn.layers[0][0], one) for one in first)


@pytest.mark.slow
def test_an_inner_loop_without_noise_ignores_its_key():
    config = changed(inner_noise=0.0, init_pool=1, n_inits=1)
    student = method.make_student(config.student)
    pool = method.init_pool(jax.random.key(0), config, small.source(), student)
    source = small.source()._replace(init_pool=pool)
    distilling, state = start(config)
    step = jax.jit(distilling.step)
    losses = [
        step(state._replace(key=jax.random.key(seed)), source)[1]["inner_last"] for seed in range(2)
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_fresh_backward_noise_takes_another_step():
    distilling, state = start()
    exact, exact_metrics = jax.jit(distilling.step)(state, small.source())
    published = method.distiller(changed(replay_noise=False))
    other, metrics = jax.jit(published.step)(state, small.source())
    assert metrics["loss"] == exact_metrics["loss"]
    assert not np.allclose(exact.syn.states, other.syn.states, rtol=0, atol=1e-5)


def test_dbc_needs_no_teacher_and_the_others_say_so():
    alone = small.source()._replace(teacher=None)
    distilling, state = start(changed(objective="dbc"))
    _, metrics = jax.jit(distilling.step)(state, alone)
    assert metrics["weight_mean"] == 1.0
    with pytest.raises(ValueError, match="'avpbc' needs a teacher"):
        method.distiller(small.CONFIG).step(state, alone)


def test_rows_of_the_highest_value():
    syn = synthetic.init_syn(jax.random.key(0), small.source(), changed(syn_init="top_q"))
    q = policy.q_value(
        small.source().teacher.q1, small.source().data.states, small.source().data.actions
    )
    best = np.argsort(-np.asarray(q))[: small.N]
    np.testing.assert_array_equal(syn.states, small.source().data.states[best])


@pytest.mark.slow
def test_clusters_give_different_rows_and_separated_groups_one_each():
    centers = 100.0 * jnp.arange(4.0)[:, None]
    states = (centers[:, None] + jax.random.normal(jax.random.key(0), (4, 10, 1))).reshape(40, 1)
    score = jax.random.normal(jax.random.key(1), (40,))
    found = [
        np.asarray(synthetic.best_of_clusters(jax.random.key(seed), states, score, 4))
        for seed in range(20)
    ]
    best = {10 * group + int(jnp.argmax(score[10 * group :][:10])) for group in range(4)}
    # Where the random start has a row of every group, each group's best row is found.
    assert any(set(rows) == best for rows in found)


def test_a_teacher_sees_states_in_its_own_normalization():
    norm = Norm(jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0]))
    own = Norm(jnp.array([0.0, 4.0]), jnp.array([2.0, 0.1]))
    raw = jax.random.normal(jax.random.key(0), (7, 2))
    teacher = small.teacher(own)
    assert_close(teacher_states(teacher, norm, norm.apply(raw)), own.apply(raw))


def abstract_state_and_source(config: OBDConfig, rows: int = 10_000):
    """Shapes of a Hopper distillation at full width."""
    states, actions = 11, 3
    floats = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731

    def teacher(key):
        actor, critic = (
            policy.init_policy(key, states, actions),
            policy.init_q(key, states, actions),
        )
        return Teacher(actor, critic, critic, Norm(jnp.zeros(states), jnp.ones(states)))

    source = Source(
        OfflineData(floats(rows, states), floats(rows, actions)),
        Norm(floats(states), floats(states)),
        jax.eval_shape(teacher, jax.random.key(0)),
    )
    init = method.distiller(config).init
    return jax.eval_shape(init, jax.random.key(0), source), source


@pytest.mark.slow
def test_the_program_does_not_grow_with_the_inner_steps():
    sizes = []
    for steps in (10, 200):
        config = OBDConfig(inner_steps=steps)
        state, source = abstract_state_and_source(config)
        step = method.distiller(config).step

        def run(state, source, step=step):
            return jax.lax.scan(lambda s, _: step(s, source), state, length=100)

        text = jax.jit(run).lower(state, source).as_text()
        assert "while" in text
        sizes.append(text.count("\n"))
    assert sizes[0] == sizes[1]


def test_other_data_of_the_same_shape_does_not_retrace():
    traces = []
    distilling, state = start()

    @jax.jit
    def step(state, source):
        traces.append(1)
        return distilling.step(state, source)

    state, _ = step(state, small.source())
    step(state, jax.tree.map(lambda leaf: leaf * 0.5, small.source()))
    assert len(traces) == 1


@pytest.mark.slow
def test_mixed_mode_needs_a_third_of_the_memory_of_reverse_mode():
    """At the paper's size: N = 256, T = 100, B = 2560, width 256."""
    temporary = {}
    for mode in ("mixed", "reverse"):
        config = OBDConfig(mode=mode)
        step = method.distiller(config).step
        compiled = jax.jit(step, donate_argnums=0).lower(*abstract_state_and_source(config))
        temporary[mode] = compiled.compile().memory_analysis().temp_size_in_bytes
    assert temporary["mixed"] <= 100e6
    assert temporary["mixed"] <= temporary["reverse"] / 3


def test_synthetic_noise_starts_from_normal_states_and_bounded_actions():
    config = changed(syn_init="noise", n_syn=400)
    syn: SynSet = synthetic.init_syn(jax.random.key(0), small.source(), config)
    assert abs(float(syn.states.std()) - 1.0) < 0.05
    assert float(jnp.abs(syn.actions).max()) <= 1.0
